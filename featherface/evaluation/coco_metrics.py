"""AP50 and AP50:95 by pycocotools, the COCO evaluator (Lin et al., ECCV 2014)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.errors import MissingExtraError

DETECTIONS_PER_PHOTO = 1000


@dataclass(frozen=True)
class CocoAp:
    """COCO's average precision, fractions 0..1; NaN where no face counts."""

    ap50: float
    ap50_95: float


def coco_average_precision(
    predictions: Sequence[NDArray[np.floating]],
    faces: Sequence[NDArray[np.floating]],
    ignored: Sequence[NDArray[np.bool_]],
) -> CocoAp:
    """Score per-photo ``predictions`` ``[N, 5]`` against ``faces`` ``[M, 4]``, x1, y1, x2, y2.

    ``ignored`` (bool ``[M]``) are COCO crowds. Up to 1000 detections a photo count (COCO's own
    limit of 100 is less than a crowd). Widths are x2 - x1. Raises ``MissingExtraError`` without
    pycocotools.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise MissingExtraError(
            "COCO's AP needs pycocotools: pip install 'featherface[evaluate]'"
        ) from None
    if not any((~skip).any() for skip in ignored):
        return CocoAp(float("nan"), float("nan"))
    rows = [
        _annotation(photo, box, crowd=bool(crowd))
        for photo, (boxes, skip) in enumerate(zip(faces, ignored, strict=True), start=1)
        for box, crowd in zip(boxes.tolist(), skip, strict=True)
    ]
    found = [
        _annotation(photo, row[:4], score=row[4])
        for photo, detections in enumerate(predictions, start=1)
        for row in detections.tolist()
    ]
    if not found:
        return CocoAp(0.0, 0.0)
    images = [{"id": photo} for photo in range(1, len(faces) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _coco_set(COCO(), images, rows)
        evaluation = COCOeval(truth, _coco_set(COCO(), images, found), "bbox")
        evaluation.params.maxDets = [DETECTIONS_PER_PHOTO]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]  # [10 IoUs, 101 recalls]
    return CocoAp(float(precision[0].mean()), float(precision.mean()))


def _annotation(
    photo: int, box: list[float], score: float | None = None, crowd: bool = False
) -> dict[str, Any]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    annotation = {
        "image_id": photo,
        "category_id": 1,
        "bbox": [left, top, width, height],
        "area": max(width, 0.0) * max(height, 0.0),
        "iscrowd": int(crowd),
    }
    return annotation if score is None else annotation | {"score": score}


def _coco_set(coco: Any, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Any:
    numbered = [row | {"id": number} for number, row in enumerate(annotations, start=1)]
    categories = [{"id": 1, "name": "face"}]
    coco.dataset = {"images": images, "annotations": numbered, "categories": categories}
    coco.createIndex()
    return coco
