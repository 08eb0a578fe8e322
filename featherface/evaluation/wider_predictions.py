"""Predictions in the WIDER FACE submission format: ``EVENT/PHOTO.txt`` in one folder.

Each file holds the photo's name, the number of faces, then a line ``x y width height score`` a face
(pixels of the original photo), best score first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featherface.errors import DataError
from featherface.evaluation.wider_ground_truth import WiderPhoto

Predictions = Mapping[str, NDArray[np.floating]]


def read_predictions(
    folder: str | Path, photos: Iterable[WiderPhoto]
) -> dict[str, NDArray[np.float64]]:
    """Read the predictions for ``photos``: ``event/name`` to ``[N, 5]`` x1, y1, x2, y2, score.

    Raises ``DataError`` for a missing event folder, a photo without a file, a file for a photo that
    is not in the ground truth, and a malformed line (named by file and number).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder of EVENT/PHOTO.txt predictions")
    wanted: dict[str, list[WiderPhoto]] = {}
    for photo in photos:
        wanted.setdefault(photo.event, []).append(photo)
    present = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    for event in present - wanted.keys():
        if any(name.endswith(".txt") for name in os.listdir(folder / event)):
            raise DataError(
                f"{folder / event} is no event of the ground truth: do they belong together?"
            )
    predictions = {}
    for event, photos_of_event in wanted.items():
        event_folder = folder / event
        if event not in present:
            raise DataError(
                f"{event_folder} is missing: the predictions need a folder for each of the "
                f"{len(wanted)} events"
            )
        files = {name[:-4] for name in os.listdir(event_folder) if name.endswith(".txt")}
        unknown = files - {photo.name for photo in photos_of_event}
        if unknown:
            raise DataError(
                f"{event_folder / (min(unknown) + '.txt')}: unknown image, the ground truth has "
                f"no photo {event}/{min(unknown)}"
            )
        for photo in photos_of_event:
            path = event_folder / f"{photo.name}.txt"
            if photo.name not in files:
                raise DataError(
                    f"{path} is missing: every photo needs a file, one with 0 faces where "
                    "nothing was found"
                )
            predictions[photo.key] = read_prediction_file(path)
    return predictions


def read_prediction_file(path: str | Path) -> NDArray[np.float64]:
    """Read one photo's file to ``[N, 5]`` x1, y1, x2, y2, score; ``DataError`` names a bad line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) < 2:
        raise DataError(f"{path}:{len(lines) + 1}: expected the photo's name, then the face count")
    try:
        count = int(lines[1])
    except ValueError:
        raise DataError(
            f"{path}:2: expected the number of faces, found {lines[1][:60]!r}"
        ) from None
    rows = []
    for number, line in enumerate(lines[2:], start=3):
        try:
            left, top, width, height, score = map(float, line.split())
        except ValueError:
            raise DataError(
                f"{path}:{number}: expected 'x y width height score', found {line[:60]!r}"
            ) from None
        if not math.isfinite(left + top + width + height + score):
            raise DataError(f"{path}:{number}: a value is not finite in {line[:60]!r}")
        rows.append((left, top, left + width, top + height, score))
    if count != len(rows):
        raise DataError(f"{path}:2: announces {count} faces, but {len(rows)} lines follow")
    return np.array(rows, np.float64).reshape(-1, 5)


def write_prediction_file(path: str | Path, name: str, faces: NDArray[np.floating]) -> None:
    """Write one photo's ``[N, 5]`` x1, y1, x2, y2, score, sorted by score; atomic."""
    path = Path(path)
    faces = np.asarray(faces, np.float64).reshape(-1, 5)
    faces = faces[np.argsort(-faces[:, 4], kind="stable")]
    lines = [name, str(len(faces))]
    for left, top, right, bottom, score in faces.tolist():
        lines.append(f"{left:.4f} {top:.4f} {right - left:.4f} {bottom - top:.4f} {score:.9g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def write_predictions(
    folder: str | Path, predictions: Predictions, photos: Iterable[WiderPhoto]
) -> None:
    """Write the submission folder for ``photos``; a photo without predictions gets 0 faces."""
    for photo in photos:
        faces = predictions.get(photo.key, np.empty((0, 5)))
        write_prediction_file(Path(folder) / photo.event / f"{photo.name}.txt", photo.name, faces)
