"""The table of experiments: written by the trainer, drawn by the command."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import pytest
from test_training_loop import draw_photo, make_config
from typer.testing import CliRunner

from featherface.analysis.experiment_plot import run_names
from featherface.cli import app
from featherface.data.pack import pack
from featherface.errors import DataError
from featherface.evaluation.validation import SIZE_NAMES, SizeAp, ValidationResult
from featherface.training import loop
from featherface.training.config import RunConfig, StartConfig
from featherface.training.experiments import (
    COLUMNS,
    SIZE_COLUMNS,
    append_experiment,
    describe_changes,
    experiment_row,
    logged_seconds,
    read_experiments,
)


def result(ap: float = 0.5) -> ValidationResult:
    sizes = [SizeAp(ap, 3), SizeAp(ap, 4), SizeAp(ap, 5), SizeAp(math.nan, 0)]
    return ValidationResult(7, 12, ap, dict(zip(SIZE_NAMES, sizes, strict=True)))


def test_the_fingerprint_of_existing_runs_stays() -> None:
    """Runs on disk go on only while their fingerprint is what it was when they began."""
    assert RunConfig().fingerprint() == "23cf964b"
    for changed in (
        {"loss": {"quality": 0.5}},
        {"loss": {"quality_full": 0.6}},
        {"loss": {"quality_largest": 32}},
        {"loss": {"class_largest": 32}},
        {"data": {"crop": {"masks": 0.1}}},
    ):
        assert RunConfig.model_validate(changed).fingerprint() != "23cf964b"


def test_a_row_tells_the_run_and_no_path(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "name": "wide",
            "output": tmp_path,
            "start": {"v1": tmp_path / "v1.safetensors"},
            "loss": {"matching": "retinaface"},
            "data": {"shards": tmp_path / "train"},
        }
    )
    row = experiment_row(config, 249_000, 100, "1 x CPU", result())
    assert tuple(row) == COLUMNS
    assert row["changes"] == "start.v1=v1.safetensors loss.matching=retinaface"
    assert str(tmp_path) not in "".join(row.values())
    assert (row["data"], row["photos"], row["epochs"]) == ("train", "100", "2000.00")
    assert (row["ap"], row["ap_under_16"], row["ap_over_96"]) == ("0.5000", "0.5000", "")
    assert set(SIZE_COLUMNS.values()) == set(SIZE_NAMES)
    assert describe_changes(RunConfig()) == ""
    several = config.model_copy(
        update={"start": StartConfig(weights=[tmp_path / "a.safetensors", tmp_path / "b.onnx"])}
    )
    assert "start.weights=a.safetensors+b.onnx" in describe_changes(several)


def test_wall_time_adds_up_over_sessions(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    assert logged_seconds(log) == 0
    old = [(8, 1), (168, 500)]  # an earlier start with the same name, begun anew since
    rows = [*old, (8, 2), (168, 40), (328, 80), (200, 5), (360, 45), (520, 7)]
    log.write_text("images,seconds\n" + "".join(f"{i},{s}\n" for i, s in rows))
    assert logged_seconds(log) == 80 + 45 + 7


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    table = tmp_path / "results" / "experiments.csv"
    for name in ("first, with a comma", "second"):
        row = experiment_row(RunConfig(name=name, output=tmp_path), 1, 1, "1 x CPU", None)
        append_experiment(table, row)
    rows = read_experiments(table)
    assert [row["run"] for row in rows] == ["first, with a comma", "second"]
    assert len(table.read_text().splitlines()) == 3


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    with pytest.raises(DataError, match="cannot be read"):
        read_experiments(table)
    table.write_text("a,b\n1,2\n")
    row = experiment_row(RunConfig(output=tmp_path), 1, 1, "1 x CPU", None)
    with pytest.raises(DataError, match="no column finished"):
        append_experiment(table, row)
    assert table.read_text() == "a,b\n1,2\n"
    table.write_text(",".join(COLUMNS) + "\n1,2\n")
    with pytest.raises(DataError, match="line 2"):
        read_experiments(table)


def test_the_trainer_records_its_run_once(tmp_path: Path) -> None:
    pack([draw_photo(n) for n in range(24)], tmp_path / "train")
    config = make_config(
        tmp_path / "train",
        tmp_path / "runs",
        images=8,
        data={
            "shards": tmp_path / "train",
            "cache": tmp_path / "cache",
            "sizes": [(64, 1.0)],
            "workers": 0,
            "validation_fraction": 0.3,
        },
    )
    table = tmp_path / "experiments.csv"
    said: list[str] = []
    for _ in range(2):
        loop.train(config, accelerator="cpu", report=said.append, experiments=table)
    (row,) = read_experiments(table)
    assert (row["run"], row["config"]) == ("run", config.fingerprint())
    assert 0 <= float(row["ap"]) <= 1
    assert int(row["photos"]) + int(row["validation_photos"]) == 24
    assert row["device"] == "1 x CPU"
    assert sum(line.startswith("Experiment:") for line in said) == 1


def test_a_run_without_held_out_photos_is_recorded_without_figures(tmp_path: Path) -> None:
    pack([draw_photo(n) for n in range(8)], tmp_path / "train")
    data = {
        "shards": tmp_path / "train",
        "cache": tmp_path / "cache",
        "sizes": [(64, 1.0)],
        "workers": 0,
        "validation_fraction": 0.0,
    }
    config = make_config(tmp_path / "train", tmp_path / "runs", images=8, data=data)
    table = tmp_path / "experiments.csv"
    table.write_text("not ours\n")
    said: list[str] = []
    path = loop.train(config, accelerator="cpu", report=said.append, experiments=table)
    assert path.exists()
    assert any(line.startswith("Not recorded:") for line in said)
    table.unlink()
    loop.train(config, accelerator="cpu", report=said.append, experiments=table)
    (row,) = read_experiments(table)
    assert row["ap"] == ""


def test_the_command_draws_table_and_plot(tmp_path: Path) -> None:
    table, plot = tmp_path / "experiments.csv", tmp_path / "images" / "experiments.png"
    document = tmp_path / "experiments.md"
    document.write_text("# Tried\n\n<!-- experiments -->\n<!-- /experiments -->\n")
    for name, ap in (("plain", 0.412), ("wide", 0.436)):
        config = RunConfig(name=name, output=tmp_path)
        append_experiment(table, experiment_row(config, 249_000, 10, "1 x CPU", result(ap)))
    empty = experiment_row(RunConfig(name="blind", output=tmp_path), 1, 1, "1 x CPU", None)
    append_experiment(table, empty)
    arguments = [str(table), "--plot", str(plot), "--best-first", "--document", str(document)]
    outcome = CliRunner().invoke(app, ["experiments", *arguments], env={"COLUMNS": "160"})
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.index("wide") < outcome.output.index("plain")
    assert cv2.imread(str(plot)) is not None
    text = document.read_text()
    assert "| wide | 249,000 | 200,000 |" in text
    assert "| blind |" in text


def test_a_run_by_other_labels_says_so(tmp_path: Path) -> None:
    rows = []
    for name, shards in (("voted", "train_voted"), ("plain", "train"), ("wide", "train")):
        config = RunConfig.model_validate({"name": name, "data": {"shards": tmp_path / shards}})
        rows.append(experiment_row(config, 1, 1, "1 x CPU", result()))
    assert run_names(rows) == ["voted (by train_voted)", "plain", "wide"]
    assert run_names([]) == []


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["experiments", str(tmp_path / "none.csv")])
    assert outcome.exit_code == 1
    assert "cannot be read" in outcome.output
