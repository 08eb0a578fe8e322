"""The figures of the documents come from files, and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featherface.analysis.results_block import results_block
from featherface.cli import app
from featherface.errors import DataError
from featherface.evaluation.results_table import fill

EMPTY = "# Card\n\n<!-- results -->\n<!-- /results -->\n\nEnd.\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    place = folder / "evaluation" / "V2"
    (place / "masks").mkdir(parents=True)
    wider = {"easy": 0.9012, "medium": 0.8, "hard": 0.7}
    (place / "wider_mini.json").write_text(json.dumps(wider))
    (place / "masks" / "result.json").write_text(json.dumps({"ap50_voc": 0.85}))
    return folder


def test_block_holds_the_figures_of_the_files(results: Path, tmp_path: Path) -> None:
    assert "| V2 | 90.1 | 80.0 | 70.0 | 85.0 |" in results_block(results)
    assert results_block(tmp_path / "nothing") == ""


def test_benchmark_comes_before_single_evaluations(results: Path) -> None:
    latency = {"640x480, 1 thread": {"whole_ms": 12.34, "whole_ratio": 1.0}}
    model = {
        "parameters": 247263,
        "bytes": 1_080_000,
        "accuracy": {"wider_easy": 0.9, "wider_medium": 0.8, "wider_hard": 0.7, "masks": 0.6},
        "speed": {"latency": latency},
    }
    record = {
        "models": {"featherface_v2": model, "other": {"parameters": 5, "bytes": 10}},
        "accuracy": {"date": "2026-01-02", "sets": {"wider_mini": 102, "masks": 430}},
        "speed": {"date": "2026-01-03", "rounds": 30, "machine": {"cpu": "A processor"}},
    }
    (results / "benchmark").mkdir()
    (results / "benchmark" / "benchmark.json").write_text(json.dumps(record))
    block = results_block(results)
    row = "| FeatherFace V2 | 247,263 | 1.08 | 90.0 | 80.0 | 70.0 | 60.0 | 12.3 (1.00) |"
    assert row in block
    assert "| other | 5 | 0.00 | – | – | – | – | – |" in block
    assert "102 photos of wider_mini, 430 photos of masks" in block
    assert "A processor, 2026-01-03, median of 30 rounds" in block


def test_a_missing_figure_is_a_dash(results: Path) -> None:
    (results / "evaluation" / "V2" / "masks" / "result.json").unlink()
    assert "| 70.0 | – |" in results_block(results)


def test_filling_twice_changes_nothing(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "card.md"
    document.write_text(EMPTY)
    assert fill(document, results_block(results))
    first = document.read_text()
    assert not fill(document, results_block(results))
    assert document.read_text() == first
    assert first.startswith("# Card\n\n<!-- results -->\n\n|")
    assert first.endswith("\n\nEnd.\n")
    assert fill(document, "")
    assert document.read_text() == EMPTY


def test_a_document_without_markers_is_named(tmp_path: Path) -> None:
    document = tmp_path / "card.md"
    document.write_text("# Card\n")
    with pytest.raises(DataError, match=r"card\.md: has no"):
        fill(document, "")


def test_command_prints_or_writes(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "card.md"
    document.write_text(EMPTY)
    printed = CliRunner().invoke(app, ["results-table", "--results", str(results)])
    assert printed.exit_code == 0
    assert "| V2 |" in printed.output
    arguments = ["results-table", "--write", str(document), "--results", str(results)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "| V2 |" in document.read_text()


def test_quantization_goes_where_a_document_has_room_for_it(results: Path) -> None:
    (results / "quantization.md").write_text("| INT8 | 82.9 |\n")
    card, readme = results / "card.md", results / "README.md"
    card.write_text(EMPTY + "<!-- quantization -->\n<!-- /quantization -->\n")
    readme.write_text(EMPTY)
    command = ["results-table", "--write", str(card), str(readme), "--results", str(results)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert "| INT8 | 82.9 |" in card.read_text()
    assert "INT8" not in readme.read_text()
