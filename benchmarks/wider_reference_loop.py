"""The WIDER FACE protocol as a plain loop, straight from its definition: slow, and easy to check.

For every difficulty, photo and score threshold it walks through that photo's detections again. The
package's own implementation (``featherface.evaluation.wider_face``) is compared with this one for
agreement by the tests and for speed by ``benchmarks/wider_protocol.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featherface.evaluation.wider_ground_truth import DIFFICULTIES, WiderPhoto

THRESHOLD_COUNT = 1000
MIN_IOU = 0.5


def plain_wider_ap(
    predictions: Mapping[str, NDArray[np.floating]], photos: Sequence[WiderPhoto]
) -> dict[str, float]:
    """Average precision of each difficulty; arguments as in ``score_predictions``."""
    everything = np.concatenate([predictions[photo.key][:, 4] for photo in photos])
    low, high = (everything.min(), everything.max()) if len(everything) else (0.0, 1.0)
    averages = {}
    for difficulty in DIFFICULTIES:
        proposals = np.zeros(THRESHOLD_COUNT)
        hits = np.zeros(THRESHOLD_COUNT)
        faces = 0
        for photo in photos:
            counted = photo.counted[difficulty]
            faces += int(counted.sum())
            found = np.array(predictions[photo.key], np.float64)
            if len(found) == 0 or len(photo.boxes) == 0:
                continue
            found[:, 4] = (found[:, 4] - low) / (high - low) if high > low else 1.0
            found = found[np.argsort(-found[:, 4], kind="stable")]
            is_proposal, hits_so_far = _walk(found, photo.boxes, counted)
            for step in range(THRESHOLD_COUNT):
                threshold = 1 - (step + 1) / THRESHOLD_COUNT
                admitted = np.where(found[:, 4] >= threshold)[0]
                if len(admitted):
                    last = admitted[-1]
                    proposals[step] += len(np.where(is_proposal[: last + 1])[0])
                    hits[step] += hits_so_far[last]
        averages[difficulty] = _area(hits, proposals, faces)
    return averages


def _walk(
    found: NDArray[np.float64], boxes: NDArray[np.float64], counted: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each detection is a proposal, and how many faces are found after it."""
    overlaps = _overlaps(found, boxes)
    is_proposal = np.ones(len(found), bool)
    hits_so_far = np.zeros(len(found), np.int64)
    taken: set[int] = set()
    for row in range(len(found)):
        face = int(overlaps[row].argmax())
        if overlaps[row, face] >= MIN_IOU:
            if counted[face]:
                taken.add(face)
            else:
                is_proposal[row] = False
        hits_so_far[row] = len(taken)
    return is_proposal, hits_so_far


def _overlaps(found: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    left, top, right, bottom = (found[:, column, None] for column in range(4))
    width = np.minimum(right, boxes[:, 2]) - np.maximum(left, boxes[:, 0]) + 1
    height = np.minimum(bottom, boxes[:, 3]) - np.maximum(top, boxes[:, 1]) + 1
    shared = width.clip(min=0) * height.clip(min=0)
    found_area = (right - left + 1) * (bottom - top + 1)
    face_area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    return np.asarray(shared / (found_area + face_area - shared), np.float64)


def _area(hits: NDArray[np.float64], proposals: NDArray[np.float64], faces: int) -> float:
    area, best_precision, recall_after = 0.0, 0.0, 1.0
    # From the loosest threshold to the strictest: the envelope is the best precision met so far.
    for hit, proposed in zip(hits[::-1], proposals[::-1], strict=True):
        recall = hit / faces if faces else 0.0
        area += (recall_after - recall) * best_precision
        best_precision = max(best_precision, hit / proposed if proposed else 0.0)
        recall_after = recall
    return area + recall_after * best_precision
