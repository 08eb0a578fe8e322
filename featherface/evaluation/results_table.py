"""The results block of the documents, made from the files under ``results/``.

A document holds an empty pair of markers, and ``fill`` writes between them:

    <!-- results -->
    <!-- /results -->

Read are, where they are there: ``results/benchmark/benchmark.json`` (all detectors under one
evaluator), and ``results/evaluation/NAME/wider_mini.json`` and ``masks/result.json``, which
``featherface evaluate`` writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from featherface.errors import DataError
from featherface.evaluation.result_files import write_result_text

DIFFICULTIES = ("easy", "medium", "hard")


def results_block(results: Path) -> str:
    """Markdown tables of what lies in ``results``; an empty text where there is nothing."""
    tables = [benchmark_table(results / "benchmark"), evaluation_table(results / "evaluation")]
    return "\n".join(table for table in tables if table)


def benchmark_table(folder: Path) -> str:
    """``benchmark.md`` of a benchmark, as the benchmark wrote it beside its JSON."""
    path = folder / "benchmark.md"
    return path.read_text(encoding="utf-8").strip() + "\n" if path.is_file() else ""


def evaluation_table(folder: Path) -> str:
    """One row a detector: WIDER FACE subset and masks, percent."""
    rows = []
    for place in sorted(path for path in folder.glob("*") if path.is_dir()):
        wider = read_json(place / "wider_mini.json")
        masks = read_json(place / "masks" / "result.json")
        if wider or masks:
            figures = [wider.get(name) for name in DIFFICULTIES] + [masks.get("ap50_voc")]
            rows.append(f"| {place.name} | " + " | ".join(map(percent, figures)) + " |")
    if not rows:
        return ""
    head = "| AP, % | WIDER subset, easy | medium | hard | masks |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def percent(fraction: float | None) -> str:
    """``0.9012`` as ``90.1``; a dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty where there is no such file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); write it anew") from None
    return content


def fill(document: Path, block: str, marker: str = "results") -> bool:
    """Write ``block`` between the markers of ``document``; whether that changed it.

    Raises:
        DataError: no such file, or no markers in it.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{document}: cannot be read ({error.strerror})") from None
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise DataError(f"{document}: has no <!-- {marker} --> and <!-- /{marker} --> to fill")
    body = f"\n{block}\n" if block else ""
    filled = pattern.sub(lambda match: f"{match[1]}{body}{match[2]}", text)
    if filled != text:
        write_result_text(document, filled)
    return filled != text
