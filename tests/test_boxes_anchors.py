"""Anchors, the coding against them, overlap and suppression: properties on random boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherface.anchors import (
    decode_boxes,
    decode_landmarks,
    encode_boxes,
    encode_landmarks,
    make_anchors,
)
from featherface.boxes import box_iou, non_maximum_suppression


def random_boxes(rng: np.random.Generator, count: int, extent: float = 640) -> np.ndarray:
    corners = rng.uniform(0, extent, (count, 2))
    sides = rng.uniform(2, extent / 2, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 160), (640, 640)])
def test_anchor_count_and_order(height: int, width: int) -> None:
    anchors = make_anchors(height, width)
    assert len(anchors) == 2 * sum((height // s) * (width // s) for s in (8, 16, 32))
    np.testing.assert_array_equal(anchors[:2], [[4, 4, 16, 16], [4, 4, 32, 32]])
    np.testing.assert_array_equal(anchors[2, :2], [12, 4])
    np.testing.assert_array_equal(anchors[-1], [width - 16, height - 16, 512, 512])
    assert anchors is make_anchors(height, width)
    assert not anchors.flags.writeable


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 50))
def test_boxes_survive_coding(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    anchors = make_anchors(320, 640)
    anchors = anchors[rng.integers(0, len(anchors), count)]
    boxes = random_boxes(rng, count)
    decoded = decode_boxes(encode_boxes(boxes, anchors), anchors)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, boxes, atol=0.02)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 50))
def test_landmarks_survive_coding(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    anchors = make_anchors(320, 640)
    anchors = anchors[rng.integers(0, len(anchors), count)]
    landmarks = rng.uniform(-50, 700, (count, 5, 2)).astype(np.float32)
    deltas = encode_landmarks(landmarks, anchors)
    assert deltas.shape == (count, 10)
    np.testing.assert_allclose(decode_landmarks(deltas, anchors), landmarks, atol=0.02)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 20))
def test_overlap_is_symmetric_and_bounded(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_boxes(rng, count), random_boxes(rng, 7)
    overlap = box_iou(first, second)
    assert overlap.shape == (count, 7)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    np.testing.assert_allclose(overlap, box_iou(second, first).T, rtol=1e-5)
    np.testing.assert_allclose(np.diag(box_iou(first, first)), 1, rtol=1e-5)


def test_overlap_by_hand() -> None:
    first = np.array([[0, 0, 10, 10]], np.float32)
    second = np.array([[5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], np.float32)
    np.testing.assert_allclose(box_iou(first, second), [[1 / 3, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(
        box_iou(first, second[:1], plus_one=True), [[66 / (2 * 121 - 66)]], rtol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    threshold=st.sampled_from([0.2, 0.4, 0.7]),
)
def test_suppression_keeps_the_best_and_covers_the_rest(
    seed: int, count: int, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, count, 100)
    scores = rng.permutation(count).astype(np.float32) / count + 0.01
    kept = non_maximum_suppression(boxes, scores, threshold)
    assert kept[0] == scores.argmax()
    assert (np.diff(scores[kept]) < 0).all()
    among = box_iou(boxes[kept], boxes[kept]) - np.eye(len(kept))
    assert (among <= threshold + 1e-4).all()
    dropped = np.setdiff1d(np.arange(count), kept)
    for index in dropped:  # each lies under a better one that was kept
        better = kept[scores[kept] > scores[index]]
        assert box_iou(boxes[index : index + 1], boxes[better]).max() > threshold - 1e-4
    np.testing.assert_array_equal(
        non_maximum_suppression(boxes[kept], scores[kept], threshold), np.arange(len(kept))
    )


def test_suppression_of_nothing() -> None:
    empty = np.empty((0, 4), np.float32)
    assert len(non_maximum_suppression(empty, np.empty(0, np.float32), 0.4)) == 0
