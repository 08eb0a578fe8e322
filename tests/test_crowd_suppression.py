"""Suppression in crowds equals the plain loop, box for box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherface import boxes as box_functions
from featherface.boxes import box_iou, non_maximum_suppression
from featherface.crowd_suppression import keep_best


def plain_loop(boxes: np.ndarray, threshold: float) -> list[int]:
    """Greedy suppression of boxes that come best first."""
    kept: list[int] = []
    overlaps = box_iou(boxes.astype(np.float64), boxes.astype(np.float64))
    for index in range(len(boxes)):
        if not kept or overlaps[index, kept].max() <= threshold:
            kept.append(index)
    return kept


def random_boxes(seed: int, count: int, spread: float) -> np.ndarray:
    """Sizes from 3 to 150 pixels, so that tall and low ones meet."""
    random = np.random.default_rng(seed)
    centres = random.uniform(0, spread, (count, 2))
    sides = np.exp(random.uniform(1, 5, (count, 1)) + random.normal(0, 0.2, (count, 2)))
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 120),
    spread=st.sampled_from([60.0, 300.0, 2000.0]),
    threshold=st.sampled_from([0.05, 0.3, 0.4, 0.5, 0.9]),
)
def test_equals_the_plain_loop(seed: int, count: int, spread: float, threshold: float) -> None:
    boxes = random_boxes(seed, count, spread)
    kept = keep_best(boxes, threshold)
    if kept is not None:  # else too many neighbours
        assert kept.tolist() == plain_loop(boxes, threshold)


def test_a_crowd_of_400_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[0:20, 0:20]
    centres = np.stack([columns.ravel() * 32 + 16, rows.ravel() * 24 + 12], axis=1)
    boxes = np.concatenate([centres - 10, centres + 10], axis=1).repeat(6, axis=0)
    boxes = (boxes + random.normal(0, 1, boxes.shape)).astype(np.float32)
    scores = random.uniform(0.5, 1, len(boxes)).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    assert keep_best(boxes[order], 0.4) is not None
    fast = non_maximum_suppression(boxes, scores, 0.4)
    monkeypatch.setattr(box_functions, "CROWD", len(boxes) + 1)
    np.testing.assert_array_equal(fast, non_maximum_suppression(boxes, scores, 0.4))
    assert len(fast) == 400


def test_one_face_with_a_crowd_of_boxes() -> None:
    random = np.random.default_rng(2)
    boxes = (np.array([50, 50, 90, 90]) + random.normal(0, 1, (3000, 4))).astype(np.float32)
    scores = random.uniform(0.1, 1, 3000).astype(np.float32)
    assert keep_best(boxes, 0.4) is None
    assert non_maximum_suppression(boxes, scores, 0.4).tolist() == [int(scores.argmax())]


def test_impossible_boxes_are_left_to_the_plain_loop() -> None:
    boxes = random_boxes(3, 20, 100.0)
    swapped, broken = boxes[:, [2, 3, 0, 1]], boxes.copy()
    broken[7, 2] = np.nan
    assert keep_best(swapped, 0.4) is None
    assert keep_best(broken, 0.4) is None
