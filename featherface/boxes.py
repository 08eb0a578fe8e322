"""Boxes as x1, y1, x2, y2 in pixels: overlap and non-maximum suppression (NumPy, OpenCV)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.crowd_suppression import keep_best

FloatArray = NDArray[np.float32]

CROWD = 512  # boxes from which array operations are faster than OpenCV's loop


def box_iou(first: FloatArray, second: FloatArray, plus_one: bool = False) -> NDArray[np.floating]:
    """Intersection over union of every pair: ``[N, 4]`` and ``[M, 4]`` give ``[N, M]``.

    ``plus_one`` counts pixels inclusively (width = x2 - x1 + 1), as PASCAL VOC and WIDER FACE do.
    """
    extra = 1.0 if plus_one else 0.0
    overlap = box_overlap(first, second, extra)
    areas = [np.prod(np.maximum(b[:, 2:4] - b[:, :2] + extra, 0), axis=1) for b in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def box_overlap(first: FloatArray, second: FloatArray, extra: float = 0.0) -> NDArray[np.floating]:
    """Area that every pair shares: ``[N, 4]`` and ``[M, 4]`` give ``[N, M]``.

    ``extra`` is added to every width and height.
    """
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:4], second[None, :, 2:4])
    sides = np.maximum(bottom_right - top_left + extra, 0)
    overlap: NDArray[np.floating] = sides[..., 0] * sides[..., 1]
    return overlap


def non_maximum_suppression(
    boxes: FloatArray, scores: FloatArray, iou_threshold: float, top_k: int = 0
) -> NDArray[np.intp]:
    """Indices of the boxes to keep, best first, at most ``top_k`` (0: all)."""
    if len(boxes) == 0:
        return np.empty(0, np.intp)
    if len(boxes) >= CROWD:
        order = np.argsort(-scores, kind="stable")
        kept_ranks = keep_best(boxes[order], iou_threshold)
        if kept_ranks is not None:
            return order[kept_ranks][: top_k or None]
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    # OpenCV's type stub asks for lists; arrays are what it reads fastest.
    rectangles: Any = corner_and_size.astype(np.float64)
    values: Any = scores.astype(np.float32)
    kept = cv2.dnn.NMSBoxes(rectangles, values, 0.0, iou_threshold, 1.0, top_k)
    return np.asarray(kept, np.intp).reshape(-1)
