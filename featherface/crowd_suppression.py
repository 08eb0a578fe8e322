"""Non-maximum suppression for crowds: the same boxes as the plain loop, in a few array operations.

The loop compares every box with every face found so far. Here the pairs that overlap too much are
found first, by sorting, and then a box is kept in the first round in which no better neighbour is
left: greedy suppression is the independent set that comes first in the order of the scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_NEIGHBOURS = 16  # pairs a box; with more, few faces have many boxes: good for the plain loop

Ranks = NDArray[np.intp]


def keep_best(ranked: NDArray[np.floating], iou_threshold: float) -> Ranks | None:
    """Indices of the boxes to keep among ``ranked`` ``[N, 4]`` (x1, y1, x2, y2), best first.

    None if there are too many pairs of neighbours for this way, and where a box is not finite or
    its corners are swapped.
    """
    if not (np.isfinite(ranked).all() and (ranked[:, 2:] >= ranked[:, :2]).all()):
        return None
    pairs = overlapping_pairs(ranked.astype(np.float64), iou_threshold)
    if pairs is None:
        return None
    better, worse = pairs.min(axis=0), pairs.max(axis=0)
    undecided = np.ones(len(ranked), bool)
    kept = np.zeros(len(ranked), bool)
    while undecided.any():
        leads = undecided.copy()
        leads[worse] = False
        kept |= leads
        undecided &= ~leads
        undecided[worse[leads[better]]] = False
        open_pairs = undecided[better] & undecided[worse]
        better, worse = better[open_pairs], worse[open_pairs]
    return np.flatnonzero(kept)


def overlapping_pairs(boxes: NDArray[np.float64], iou_threshold: float) -> Ranks | None:
    """Pairs ``[2, P]`` of boxes whose IoU exceeds the threshold; None with too many of them.

    Boxes that overlap so much have nearly the same height. So the low ones are compared among
    themselves, in bands of the tallest of them, then the others, and so on.
    """
    heights = boxes[:, 3] - boxes[:, 1]
    members = np.arange(len(boxes))
    found = []
    while len(members) > 1:
        limit = np.median(heights[members]) * max(4.0, 2.0 / max(iou_threshold, 1e-3))
        low = members[heights[members] <= limit]
        near = _pairs_in_bands(boxes[low], 1 - iou_threshold)
        if near is None:
            return None
        found.append(low[near])
        if len(low) == len(members):
            break
        members = members[heights[members] > iou_threshold * limit]
    if not found:
        return np.empty((2, 0), np.intp)
    pairs = np.concatenate(found, axis=1)
    first, second = boxes[pairs[0]], boxes[pairs[1]]
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    overlap = np.maximum(sides[:, 0], 0) * np.maximum(sides[:, 1], 0)
    areas = (boxes[:, 2] - boxes[:, 0]) * heights
    union = areas[pairs[0]] + areas[pairs[1]] - overlap
    return pairs[:, overlap > iou_threshold * union]


def _pairs_in_bands(boxes: NDArray[np.float64], reach: float) -> Ranks | None:
    """Pairs ``[2, P]`` that may overlap enough: no further apart than ``reach`` times a side.

    A box's top left corner lies in a band as high as the tallest box reaches, so that only boxes of
    one band and of the next can be a pair.
    """
    left, top, right, bottom = boxes.T
    widest, tallest = reach * float((right - left).max()), reach * float((bottom - top).max())
    band = np.floor((top - top.min()) / max(tallest, 1e-9))
    # One number orders the boxes by band and then by x; bands lie too far apart to touch.
    stride = right.max() - left.min() + 2 * widest + 1
    key = band * stride + (left - left.min())
    order = np.argsort(key, kind="stable")
    key, right_key = key[order], (key + reach * (right - left))[order]
    same_end = np.searchsorted(key, right_key)
    next_start = np.searchsorted(key, key + stride - widest)
    next_end = np.searchsorted(key, right_key + stride)
    own = np.arange(len(boxes))
    starts = np.concatenate([own + 1, next_start])
    counts = np.maximum(np.concatenate([same_end, next_end]) - starts, 0)
    total = int(counts.sum())
    if total > MAX_NEIGHBOURS * len(boxes):
        return None
    one = np.repeat(np.concatenate([own, own]), counts)
    other = np.arange(total) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    top, bottom = top[order], bottom[order]
    crossing = (top[one] < bottom[other]) & (top[other] < bottom[one])
    return np.stack([order[one[crossing]], order[other[crossing]]])
