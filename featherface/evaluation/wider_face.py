"""The official WIDER FACE protocol on predictions: average precision for easy, medium and hard.

    photos = read_official_ground_truth("wider_face_split")
    result = score_predictions(read_predictions("predictions", photos), photos)

The rules (Yang et al., CVPR 2016, and the evaluation code published with it):

* scores are normalised to 0..1 by the minimum and maximum over the whole set of predictions;
* detections of a photo claim faces in score order; each looks only at the face it overlaps most,
  by IoU of boxes that count pixels inclusively (+1), and needs at least 0.5;
* a face that the difficulty ignores swallows its detections: neither hit nor proposal; a counted
  face is found once, and further detections of it are false;
* precision and recall are taken at 1000 score thresholds, 1 - (t + 1) / 1000, over all photos
  together; detections on photos without any labelled face do not count;
* average precision is the area under the envelope of precision.

Which face a detection claims depends neither on the threshold nor on the difficulty, so that each
photo's overlaps are computed once, and all thresholds follow from two cumulative counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.boxes import box_iou
from featherface.errors import DataError
from featherface.evaluation.average_precision import envelope_average_precision
from featherface.evaluation.views import Image, Views, detect_in_views, read_rgb, resize_bilinear
from featherface.evaluation.wider_ground_truth import (
    DIFFICULTIES,
    WiderPhoto,
    read_subset_ground_truth,
)
from featherface.evaluation.wider_predictions import Predictions
from featherface.faces import Detect

Progress = Callable[[Sequence[WiderPhoto]], Iterable[WiderPhoto]]

IOU_THRESHOLD = 0.5
THRESHOLDS: NDArray[np.float64] = 1 - (np.arange(1000) + 1) / 1000


@dataclass(frozen=True, eq=False)
class WiderCurve:
    """Precision and recall, float64 ``[1000]``, one entry a score threshold; counted faces."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    faces: int


@dataclass(frozen=True)
class WiderResult:
    """Average precision (fractions, 0..1) for each difficulty, with the curves behind it."""

    easy: float
    medium: float
    hard: float
    curves: Mapping[str, WiderCurve] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, float]:
        """``{"easy": ..., "medium": ..., "hard": ...}``."""
        return {"easy": self.easy, "medium": self.medium, "hard": self.hard}


def score_predictions(predictions: Predictions, photos: Sequence[WiderPhoto]) -> WiderResult:
    """Score ``predictions`` (``event/name`` to ``[N, 5]`` x1, y1, x2, y2, score) over ``photos``.

    Every photo needs an entry, an empty one where nothing was found. Raises ``DataError`` for a
    photo without an entry, an entry without a photo, and values that are not finite.
    """
    detections = _collect(predictions, photos)
    scores = _normalised([faces[:, 4] for faces in detections])
    claimed: list[NDArray[np.int64]] = []  # the face each detection claims, -1: none
    claim_scores: list[NDArray[np.float64]] = []
    first_face = 0
    for photo, faces, photo_scores in zip(photos, detections, scores, strict=True):
        if len(faces) and len(photo.boxes):
            order = np.argsort(-photo_scores, kind="stable")
            claimed.append(_claims(faces[order, :4], photo.boxes, first_face))
            claim_scores.append(photo_scores[order])
        first_face += len(photo.boxes)
    face_of = np.concatenate(claimed) if claimed else np.empty(0, np.int64)
    score_of = np.concatenate(claim_scores) if claim_scores else np.empty(0)

    # The first threshold that lets a detection in, and the first detection that claims each face.
    entry = np.searchsorted(-THRESHOLDS, -score_of, side="left")
    claims = face_of >= 0
    first_claim = np.zeros(len(face_of), bool)
    first_claim[np.unique(face_of, return_index=True)[1]] = True
    first_claim &= claims

    curves = {}
    for difficulty in DIFFICULTIES:
        counted = np.concatenate([np.empty(0, bool), *(p.counted[difficulty] for p in photos)])
        # With no face at all, nothing is claimed, and the look-up below needs one entry.
        on_counted = claims & (counted if len(counted) else np.zeros(1, bool))[face_of]
        proposals = _cumulative(entry[on_counted | ~claims])
        hits = _cumulative(entry[first_claim & on_counted])
        total = int(counted.sum())
        precision = np.divide(hits, proposals, out=np.zeros(len(THRESHOLDS)), where=proposals > 0)
        curves[difficulty] = WiderCurve(precision, hits / max(total, 1), total)
    averages = {d: envelope_average_precision(c.recall, c.precision) for d, c in curves.items()}
    return WiderResult(**averages, curves=curves)


def _collect(predictions: Predictions, photos: Sequence[WiderPhoto]) -> list[NDArray[np.float64]]:
    if not photos:
        raise DataError("The ground truth names no photos: nothing to score")
    known = {photo.key for photo in photos}
    for key in predictions:
        if key not in known:
            raise DataError(
                f"Unknown image {key} in the predictions: the ground truth has no such photo"
            )
    collected = []
    for photo in photos:
        if photo.key not in predictions:
            raise DataError(
                f"No predictions for {photo.key}: give an empty entry where nothing was found"
            )
        faces = np.asarray(predictions[photo.key], np.float64)
        if faces.size == 0:
            faces = faces.reshape(0, 5)
        if faces.ndim != 2 or faces.shape[1] != 5:
            raise DataError(
                f"Predictions for {photo.key} have the shape {list(faces.shape)}: "
                "expected [N, 5], x1, y1, x2, y2, score"
            )
        if not np.isfinite(faces).all():
            row = int(np.argmin(np.isfinite(faces).all(axis=1)))
            raise DataError(
                f"Prediction {row} for {photo.key} is not finite: {faces[row].tolist()}"
            )
        collected.append(faces)
    return collected


def _normalised(scores: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    filled = [s for s in scores if len(s)]
    if not filled:
        return scores
    low, high = min(s.min() for s in filled), max(s.max() for s in filled)
    if high == low:  # nothing to rank by: every threshold admits all
        return [np.ones_like(s) for s in scores]
    return [(s - low) / (high - low) for s in scores]


def _claims(boxes: NDArray[Any], faces: NDArray[Any], first_face: int) -> NDArray[np.int64]:
    overlaps = box_iou(boxes, faces, plus_one=True)
    best = overlaps.argmax(axis=1)
    enough = overlaps[np.arange(len(boxes)), best] >= IOU_THRESHOLD
    return np.where(enough, best + first_face, -1)


def _cumulative(entries: NDArray[np.intp]) -> NDArray[np.int64]:
    return np.cumsum(np.bincount(entries, minlength=len(THRESHOLDS)))


def evaluate_wider_subset(
    detect: Detect,
    folder: str | Path,
    views: Views | None = None,
    progress: Progress | None = None,
) -> WiderResult:
    """Detect and score the photos of a subset folder (``ground_truth.json`` and ``images/``).

    Each copy is resized (bilinear) to the original width and height first, then shown in ``views``;
    the protocol runs over these photos only. ``detect`` takes uint8 RGB ``[H, W, 3]``, and should
    return faces down to a score of 0.02. ``progress`` wraps the photos while they are detected.
    """
    photos = read_subset_ground_truth(folder)
    predictions = {}
    for photo in progress(photos) if progress else photos:
        predictions[photo.key] = detect_in_views(
            detect, read_wider_photo(Path(folder) / "images", photo), views
        ).rows()
    return score_predictions(predictions, photos)


def read_wider_photo(images: str | Path, photo: WiderPhoto) -> Image:
    """Read a photo from ``images/EVENT/NAME.jpg`` or ``images/NAME.jpg``: uint8 RGB ``[H, W, 3]``.

    A copy of another size is resized (bilinear) to the size that the ground truth tells.
    """
    candidates = (
        Path(images) / photo.event / f"{photo.name}.jpg",
        Path(images) / f"{photo.name}.jpg",
    )
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise DataError(f"{candidates[0]} is missing: {images} lacks a photo of the ground truth")
    image = read_rgb(path)
    if photo.size is None or (image.shape[1], image.shape[0]) == photo.size:
        return image
    return resize_bilinear(image, photo.size)
