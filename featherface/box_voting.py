"""Box voting: a face's box is the mean of all boxes that the network laid on it.

The best-scored box of a face is seldom the best-placed one (Gidaris and Komodakis, Object detection
via a multi-region and semantic segmentation-aware CNN model, ICCV 2015, section 3.3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featherface.crowd_suppression import overlapping_pairs

FloatArray = NDArray[np.float32]

VOTE_IOU = 0.5  # with the face's best box; chosen on held-out training photos
LEAST_WEIGHT = 1e-6  # of boxes with a score of 0
DENSE = 100_000  # pairs that are compared at once


def vote(
    boxes: FloatArray, scores: FloatArray, kept: NDArray[np.intp], iou: float = VOTE_IOU
) -> FloatArray:
    """The boxes ``[K, 4]`` of ``kept``, each the mean of those in ``boxes`` ``[N, 4]`` (x1, y1, x2,
    y2) whose IoU with it is over ``iou``, itself among them, weighted by ``scores`` ``[N]``.
    """
    scores = np.maximum(scores, LEAST_WEIGHT)
    if len(kept) * len(boxes) > DENSE:
        pairs = overlapping_pairs(boxes.astype(np.float64), iou)
        if pairs is not None:
            return _vote_in_pairs(boxes, scores, kept, pairs)
    rows = max(1, DENSE // max(len(boxes), 1))
    parts = [
        _vote_by_all(boxes, scores, kept[start : start + rows], iou)
        for start in range(0, len(kept), rows)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 4), np.float32)


def _vote_by_all(
    boxes: FloatArray, scores: FloatArray, kept: NDArray[np.intp], iou: float
) -> FloatArray:
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    one = boxes[kept][:, :, None]
    width = np.minimum(right, one[:, 2]) - np.maximum(left, one[:, 0])
    height = np.minimum(bottom, one[:, 3]) - np.maximum(top, one[:, 1])
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    area = (right - left) * (bottom - top)
    votes = overlap > iou * (area[kept][:, None] + area - overlap)
    votes[np.arange(len(kept)), kept] = True  # boxes without an area, too
    weights = votes * scores
    mean: FloatArray = (weights @ boxes) / weights.sum(axis=1, keepdims=True)
    return mean


def _vote_in_pairs(
    boxes: FloatArray, scores: FloatArray, kept: NDArray[np.intp], pairs: NDArray[np.intp]
) -> FloatArray:
    place = np.full(len(boxes), -1)
    place[kept] = np.arange(len(kept))
    own = np.arange(len(kept))
    faces = np.concatenate([own, place[pairs[0]], place[pairs[1]]])
    voters = np.concatenate([kept, pairs[1], pairs[0]])
    faces, voters = faces[faces >= 0], voters[faces >= 0]
    weights = scores[voters].astype(np.float64)
    total = np.bincount(faces, weights, len(kept))
    sums = [np.bincount(faces, weights * boxes[voters, side], len(kept)) for side in range(4)]
    return (np.stack(sums, axis=1) / total[:, None]).astype(np.float32)
