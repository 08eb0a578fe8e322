"""Blocks of the documents that commands write, and the table of ``results/evaluation``.

A document holds an empty pair of markers, and ``fill`` writes between them:

    <!-- results -->
    <!-- /results -->
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from featherface.errors import DataError
from featherface.evaluation.result_files import write_result_text

DIFFICULTIES = ("easy", "medium", "hard")


def evaluation_table(folder: Path) -> str:
    """One row a detector: WIDER FACE subset and masks, percent; empty where nothing was measured.

    Read are ``FOLDER/NAME/wider_mini.json`` and ``FOLDER/NAME/masks/result.json``, which
    ``featherface evaluate`` writes.
    """
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


def has_markers(document: Path, marker: str) -> bool:
    """Whether ``document`` has a place for a block of that name."""
    return f"<!-- {marker} -->\n" in document.read_text(encoding="utf-8")


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
