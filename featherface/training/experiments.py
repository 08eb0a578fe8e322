"""``results/experiments.csv``: one row for each run that came to its end.

The trainer appends the rows; ``featherface experiments`` draws them. The figures are those of the
validation photos; the measuring sets play no part in choosing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherface.errors import DataError

if TYPE_CHECKING:
    from featherface.evaluation.validation import ValidationResult
    from featherface.training.config import RunConfig

SIZE_COLUMNS: dict[str, str] = {
    "ap_under_16": "under 16",
    "ap_16_32": "16-32",
    "ap_32_96": "32-96",
    "ap_over_96": "over 96",
}
COLUMNS: tuple[str, ...] = (
    "finished",
    "run",
    "config",
    "changes",
    "seed",
    "parameters",
    "data",
    "photos",
    "images",
    "epochs",
    "seconds",
    "device",
    "validation_photos",
    "validation_faces",
    "ap",
    *SIZE_COLUMNS,
)
# Where things lie and how they are loaded says nothing about what was tried.
UNTOLD = {"name", "seed", "images", "output", "checkpoint_minutes", "data.shards", "data.cache"}
UNTOLD |= {"data.workers"}

Row = dict[str, str]


def experiment_row(
    config: RunConfig,
    parameters: int,
    photos: int,
    device: str,
    validation: ValidationResult | None,
) -> Row:
    """One row: the run, its budget, its device, and its AP by face size, fractions 0..1.

    ``photos``: how many the run trained on. Without held-out photos the figures stay empty.
    """
    row: dict[str, Any] = {
        "finished": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "run": config.name,
        "config": config.fingerprint(),
        "changes": describe_changes(config),
        "seed": config.seed,
        "parameters": parameters,
        "data": "+".join(x.stem for x in (config.data.shards, *config.data.more_shards)),
        "photos": photos,
        "images": config.images,
        "epochs": f"{config.images / max(photos, 1):.2f}",
        "seconds": round(logged_seconds(config.folder / "log.csv")),
        "device": device,
    }
    if validation is not None and validation.faces:
        row |= {
            "validation_photos": validation.photos,
            "validation_faces": validation.faces,
            "ap": f"{validation.ap:.4f}",
        }
        for column, name in SIZE_COLUMNS.items():
            size = validation.by_size[name]
            row[column] = f"{size.ap:.4f}" if size.faces else ""
    return {column: str(row.get(column, "")) for column in COLUMNS}


def describe_changes(config: RunConfig) -> str:
    """What differs from the defaults, such as ``loss.matching=retinaface start.v1=v1.safetensors``.

    Of files only the name is told.
    """
    ours, defaults = _flat(config.model_dump()), _flat(type(config)().model_dump())
    different = {key: value for key, value in ours.items() if value != defaults.get(key)}
    return " ".join(f"{key}={_short(value)}" for key, value in different.items())


def logged_seconds(log: Path) -> float:
    """Wall time of a run from its ``log.csv``, over all its restarts; 0 without a log.

    The clock in the log starts anew with each restart, and the images with each fresh start.
    """
    if not log.exists():
        return 0.0
    total = last = 0.0
    first_images = None
    with log.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            images, seconds = int(row["images"]), float(row["seconds"])
            first_images = images if first_images is None else first_images
            if images == first_images:
                total = last = 0.0
            elif seconds < last:
                total += last
            last = seconds
    return total + last


def append_experiment(path: Path, row: Mapping[str, str]) -> None:
    """Add ``row`` to ``path``, which is made with a header where it is missing.

    Raises:
        DataError: the file has other columns, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists() or path.stat().st_size == 0
        if not is_new:
            read_experiments(path)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
        # One write of one line: runs that end together do not mix their rows.
        with path.open("a", newline="", encoding="utf-8") as file:
            file.write(text.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_experiments(path: Path) -> list[Row]:
    """All rows of ``path``, oldest first.

    Raises:
        DataError: no such file, or not one of ours.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); `featherface train` writes it"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of experiments ({error})") from error
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]}; move it away, a new one is begun")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{path}: line {number} has not {len(COLUMNS)} values; mend it")
    return rows


def is_recorded(path: Path, config: RunConfig) -> bool:
    """Whether the table has a row of this very configuration."""
    if not path.exists():
        return False
    own = (config.name, config.fingerprint())
    return any((row["run"], row["config"]) == own for row in read_experiments(path))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in UNTOLD:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, list) and value and isinstance(value[0], Path):
        return "+".join(path.name for path in value)
    return str(value).replace(" ", "").replace("(", "[").replace(")", "]")
