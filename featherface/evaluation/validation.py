"""AP on the photos that training holds back: what experiments are compared by.

    result = validate(detect, PhotoStore("data/train", "cache"))
    result.ap, result.by_size["16-32"].ap

The split goes by photo and never by crop, so that no part of these photos is trained on. Labels
with a score under 0.5 are doubtful: they are ignored, neither missed nor false.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featherface.data.labelled_photo import FACE_SCORE, LabelledPhoto
from featherface.errors import ConfigError, DataError
from featherface.evaluation.average_precision import (
    VocMatches,
    envelope_average_precision,
    match_voc,
)
from featherface.evaluation.labelled_folder import face_sizes
from featherface.evaluation.views import detect_in_views
from featherface.faces import Detect

VALIDATION_FRACTION = 0.04
VALIDATION_SEED = 0
SIZE_EDGES: tuple[float, ...] = (0, 16, 32, 96, float("inf"))
SIZE_NAMES: tuple[str, ...] = ("under 16", "16-32", "32-96", "over 96")

Progress = Callable[[Sequence[int]], Iterable[int]]


class SplitPhotos(Protocol):
    """Labelled photos that know which of them are held out, such as ``PhotoStore``."""

    def __getitem__(self, index: int) -> LabelledPhoto: ...

    def split(
        self, validation_fraction: float = ..., seed: int = ...
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...


@dataclass(frozen=True)
class SizeAp:
    """``ap`` of the ``faces`` faces of one size, a fraction 0..1; NaN where there is none."""

    ap: float
    faces: int


@dataclass(frozen=True)
class ValidationResult:
    """``ap``: AP at IoU 0.5 over all sizes, a fraction 0..1, NaN without faces.

    ``by_size`` has the entries of ``SIZE_NAMES``: sqrt(width * height) of the face in pixels of the
    stored photo.
    """

    photos: int
    faces: int
    ap: float
    by_size: dict[str, SizeAp]

    def as_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        sizes = {name: {"ap": one.ap, "faces": one.faces} for name, one in self.by_size.items()}
        return {"photos": self.photos, "faces": self.faces, "ap": self.ap, "by_size": sizes}


def validate(
    detect: Detect,
    store: SplitPhotos,
    fraction: float = VALIDATION_FRACTION,
    limit: int | None = None,
    progress: Progress | None = None,
) -> ValidationResult:
    """Measure ``detect`` on the held-out ``fraction`` of ``store``, photos at their stored size.

    ``detect`` takes uint8 RGB ``[H, W, 3]`` and should return faces down to a score of 0.02.
    ``limit``: at most so many photos, spread evenly over the split.

    Raises:
        DataError: no photo is held out.
        ConfigError: a limit under 1.
    """
    chosen = held_out_photos(store, fraction, limit)
    predictions, boxes, doubtful = [], [], []
    for index in progress(chosen) if progress else chosen:
        photo = store[index]
        image = np.ascontiguousarray(photo.image)
        predictions.append(detect_in_views(detect, image).rows())
        boxes.append(photo.boxes.astype(np.float64))
        doubtful.append(photo.scores < FACE_SCORE)
    return score_validation(predictions, boxes, doubtful)


def held_out_photos(
    store: SplitPhotos, fraction: float = VALIDATION_FRACTION, limit: int | None = None
) -> list[int]:
    """Indices of the held-out photos, at most ``limit`` of them, spread evenly."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit}: give at least one photo")
    _, held_out = store.split(fraction, VALIDATION_SEED)
    if not len(held_out):
        raise DataError(f"no photo is held out by a fraction of {fraction:g}: give more photos")
    if limit is not None and limit < len(held_out):
        held_out = evenly(held_out, limit)
    return [int(index) for index in held_out]


def evenly(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` of more ``indices``, spread evenly."""
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]


def score_validation(
    predictions: Sequence[NDArray[np.float64]],
    boxes: Sequence[NDArray[np.float64]],
    doubtful: Sequence[NDArray[np.bool_]],
) -> ValidationResult:
    """AP over all sizes and by size, from what was found.

    Per photo: ``predictions`` ``[N, 5]`` (x1, y1, x2, y2, score), ``boxes`` ``[M, 4]``, and
    ``doubtful`` bool ``[M]``.
    """
    matches = match_voc(predictions, boxes, doubtful)
    by_size = {}
    for name, (low, high) in zip(SIZE_NAMES, itertools.pairwise(SIZE_EDGES), strict=True):
        ignored = [
            unsure | ~_within(face_sizes(faces), low, high)
            for faces, unsure in zip(boxes, doubtful, strict=True)
        ]
        by_size[name] = _size_ap(match_voc(predictions, boxes, ignored), predictions, low, high)
    return ValidationResult(
        photos=len(boxes),
        faces=matches.faces,
        ap=matches.average_precision if matches.faces else float("nan"),
        by_size=by_size,
    )


def _size_ap(
    matches: VocMatches, predictions: Sequence[NDArray[np.float64]], low: float, high: float
) -> SizeAp:
    """As COCO does by area: a false detection counts only if it has the size in question."""
    if not matches.faces:
        return SizeAp(float("nan"), 0)
    sizes = [
        face_sizes(np.asarray(found, np.float64).reshape(-1, 5)[:, :4]) for found in predictions
    ]
    first = np.concatenate([[0], np.cumsum([len(one) for one in sizes])])
    of_matches = np.concatenate(sizes)[first[matches.photo] + matches.index]
    hit = matches.hit[matches.hit | _within(of_matches, low, high)]
    found = np.cumsum(hit)
    average = envelope_average_precision(found / matches.faces, found / np.arange(1, len(hit) + 1))
    return SizeAp(average, matches.faces)


def _within(sizes: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    return np.asarray((sizes >= low) & (sizes < high))
