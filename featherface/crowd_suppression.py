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
    better, worse = np.minimum(pairs[0], pairs[1]), np.maximum(pairs[0], pairs[1])
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
    found = [np.empty((2, 0), np.intp)]
    while len(members) > 1:
        limit = np.median(heights[members]) * max(4.0, 2.0 / max(iou_threshold, 1e-3))
        low = members[heights[members] <= limit]
        pairs = _pairs_in_bands(boxes[low], iou_threshold)
        if pairs is None:
            return None
        found.append(low[pairs])
        if len(low) == len(members):
            break
        members = members[heights[members] > iou_threshold * limit]
    return np.concatenate(found, axis=1)


def _pairs_in_bands(boxes: NDArray[np.float64], iou_threshold: float) -> Ranks | None:
    """``overlapping_pairs`` of boxes that are alike in height.

    To overlap enough, two boxes may lie no further apart than ``reach`` times their sides. A box's
    top lies in a band as high as the tallest box reaches, so that only boxes of one band and of the
    next can be a pair.
    """
    # Columns are small enough to stay in the processor's cache, unlike rows of four.
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    reach = 1 - iou_threshold
    widest, tallest = reach * float((right - left).max()), reach * float((bottom - top).max())
    band = np.floor((top - top.min()) / max(tallest, 1e-9))
    # One number orders the boxes by band and then by x; bands lie too far apart to touch.
    stride = right.max() - left.min() + 2 * widest + 1
    key = band * stride + (left - left.min())
    order = np.argsort(key)
    left, top, right, bottom, key = left[order], top[order], right[order], bottom[order], key[order]
    right_key = key + reach * (right - left)
    own = np.arange(len(boxes))
    starts = np.concatenate([own + 1, np.searchsorted(key, key + (stride - widest))])
    ends = np.concatenate(
        [np.searchsorted(key, right_key), np.searchsorted(key, right_key + stride)]
    )
    counts = np.maximum(ends - starts, 0)
    total = int(counts.sum())
    if total > MAX_NEIGHBOURS * len(boxes):
        return None
    one = np.repeat(np.concatenate([own, own]), counts)
    other = np.arange(total) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    width = np.minimum(right[one], right[other]) - np.maximum(left[one], left[other])
    height = np.minimum(bottom[one], bottom[other]) - np.maximum(top[one], top[other])
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    area = (right - left) * (bottom - top)
    pairs = np.flatnonzero(overlap > iou_threshold * (area[one] + area[other] - overlap))
    return np.stack([order[one[pairs]], order[other[pairs]]])
