"""What the benchmarks on held-out photos share: their options, the detectors, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.peers import PEERS
from featherface.data.labelled_photo import FACE_SCORE
from featherface.detector import FaceDetector
from featherface.evaluation.average_precision import VocMatches
from featherface.evaluation.result_files import write_result_json, write_result_text
from featherface.faces import Detect

Weights = Annotated[list[Path], typer.Argument(help="ONNX files")]
Data = Annotated[Path, typer.Option(help="folder of shards")]
Cache = Annotated[Path, typer.Option(help="where decoded photos are kept")]
Out = Annotated[Path, typer.Option(help="folder for the results")]


def open_detector(weights: Path) -> Detect:
    """Ours, or the peer of that name."""
    if weights.stem in PEERS:
        return PEERS[weights.stem](weights, threads=1)
    return FaceDetector(weights, input_size=None, score_threshold=0.02, threads=1)


def detector_name(weights: Path) -> str:
    """Folder and name, which tell the runs from one another."""
    return f"{weights.parent.name}/{weights.stem}"


def false_boxes(matches: VocMatches) -> int:
    """How many boxes of a score of 0.5 and more are no face."""
    return int((~matches.hit & (matches.scores >= FACE_SCORE)).sum())


def detector_table(
    columns: Iterable[str], rows: Mapping[str, Iterable[str]], note: str, of: str = "detector"
) -> str:
    """Markdown: a row of cells a detector, or what else the rows are ``of``; ``note`` under it."""
    heads = [of, *columns]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()]
    return "\n".join([*lines, "", note]) + "\n"


def write_comparison(out: Path, name: str, result: dict[str, Any], table: str) -> None:
    """Write ``name.json`` and ``name.md`` to the folder ``out``, and print the table."""
    write_result_json(out / f"{name}.json", result)
    write_result_text(out / f"{name}.md", table)
    print(table)
