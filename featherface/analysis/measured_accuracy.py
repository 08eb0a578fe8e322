"""Average precision of a contender on the two measuring sets; what it finds is kept.

A detector is run once for each state of its file, its code and the photos; later runs read what it
found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.analysis.contenders import Entry
from featherface.errors import DataError
from featherface.evaluation.average_precision import match_voc
from featherface.evaluation.label_formats import read_labelled_folder
from featherface.evaluation.labelled_folder import read_labelled_photo
from featherface.evaluation.views import Image, Views, detect_in_views
from featherface.evaluation.wider_face import read_wider_photo, score_predictions
from featherface.evaluation.wider_ground_truth import read_subset_ground_truth

SCORE_THRESHOLD = 0.02
WIDER, MASKS = "wider_mini", "masks"
MASKS_LONG_SIDE = 640

Rows = NDArray[np.float64]
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


def measuring_sets(data: Path) -> list[str]:
    """The sets that ``data`` holds; ``DataError`` if it holds none."""
    found = [name for name in (WIDER, MASKS) if (data / name).is_dir()]
    if not found:
        raise DataError(f"{data} holds neither {WIDER} nor {MASKS}: give the folder above them")
    return found


def measure_accuracy(
    entry: Entry, data: Path, cache: Path, threads: int, progress: Progress | None = None
) -> dict[str, float]:
    """AP in fractions 0..1: ``wider_easy``, ``wider_medium``, ``wider_hard`` and ``masks``.

    ``wider_mini`` at the photos' original size by the WIDER FACE protocol; ``masks`` with a long
    side of 640 pixels by PASCAL VOC at IoU 0.5.
    """
    result: dict[str, float] = {}
    for name in measuring_sets(data):
        detections = _Detections(entry, data / name, cache, threads, progress)
        if name == WIDER:
            result |= _wider_accuracy(data / name, detections)
        else:
            result[MASKS] = _masks_accuracy(data / name, detections)
    return result


def _wider_accuracy(folder: Path, detections: _Detections) -> dict[str, float]:
    photos = read_subset_ground_truth(folder)
    images = folder / "images"
    rows = detections.of(photos, lambda photo: read_wider_photo(images, photo), Views())
    found = {photo.key: faces for photo, faces in zip(photos, rows, strict=True)}
    scores = score_predictions(found, photos).as_dict()
    return {f"wider_{difficulty}": value for difficulty, value in scores.items()}


def _masks_accuracy(folder: Path, detections: _Detections) -> float:
    photos = read_labelled_folder(folder)
    rows = detections.of(photos, read_labelled_photo, Views((MASKS_LONG_SIDE,)))
    boxes, ignored = [photo.boxes for photo in photos], [photo.ignored for photo in photos]
    return match_voc(rows, boxes, ignored).average_precision


@dataclass(frozen=True)
class _Detections:
    """What ``entry`` finds in the photos of ``folder``, kept in ``cache``."""

    entry: Entry
    folder: Path
    cache: Path
    threads: int
    progress: Progress | None

    def of(self, photos: Sequence[Any], read: Callable[[Any], Image], views: Views) -> list[Rows]:
        """``[N, 5]`` x1, y1, x2, y2, score for each photo."""
        kept = self.cache / f"{self.entry.name}-{self.folder.name}-{self._key(views)}.npz"
        if kept.is_file():
            with np.load(kept) as archive:
                return np.split(archive["rows"], archive["offsets"][1:-1])
        detector = self.entry.open(self.threads, SCORE_THRESHOLD)
        title = f"{self.entry.name} on {self.folder.name}"
        found = [
            detect_in_views(detector, read(photo), views).rows()
            for photo in (self.progress(photos, title) if self.progress else photos)
        ]
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_name(f".{kept.name}.{os.getpid()}.npz")
        np.savez_compressed(
            unfinished,
            offsets=np.cumsum([0, *map(len, found)]),
            rows=np.concatenate([np.empty((0, 5)), *found]),
        )
        os.replace(unfinished, kept)
        return found

    def _key(self, views: Views) -> str:
        photos = (self.folder / "images").iterdir()
        parts = [
            self.entry.sha256,
            self.entry.code_sha256,
            sorted((one.name, one.stat().st_size) for one in photos),
            views.describe(),
            SCORE_THRESHOLD,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
