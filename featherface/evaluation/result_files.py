"""Result files that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from featherface.errors import DataError


def write_result_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8), making the folder; ``DataError`` where that is impossible."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def write_result_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON, floats at full precision, NaN as null."""
    write_result_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
