"""Box voting: the plain definition, by whichever way, and better boxes from noisy ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherface import box_voting
from featherface.box_voting import VOTE_IOU, vote
from featherface.boxes import FloatArray, box_iou, non_maximum_suppression


def crowd(seed: int, faces: int, boxes_each: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Noisy boxes around faces that do not touch, their scores, and the faces."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.divmod(np.arange(faces), 20), axis=1) * 60.0
    sizes = rng.uniform(8, 40, (faces, 1))
    truth = np.concatenate([places, places + sizes], axis=1).astype(np.float32)
    noise = rng.normal(0, 0.06, (faces, boxes_each, 4)) * sizes[:, :, None]
    boxes = (truth[:, None] + noise).reshape(-1, 4).astype(np.float32)
    return boxes, rng.uniform(0.1, 1, len(boxes)).astype(np.float32), truth


def plain(boxes: FloatArray, scores: FloatArray, kept: np.ndarray) -> FloatArray:
    means = []
    for index in kept:
        near = box_iou(boxes[index : index + 1], boxes)[0] > VOTE_IOU
        near[index] = True
        means.append(np.average(boxes[near], axis=0, weights=scores[near]))
    return np.array(means, np.float32).reshape(-1, 4)


@pytest.mark.parametrize("dense", [0, 1_000, 10**9], ids=["pairs", "in parts", "at once"])
def test_every_way_is_the_plain_definition(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_voting, "DENSE", dense)
    boxes, scores, _ = crowd(0, 60, 5)
    kept = non_maximum_suppression(boxes, scores, 0.4)
    np.testing.assert_allclose(vote(boxes, scores, kept), plain(boxes, scores, kept), atol=1e-3)


def test_many_boxes_on_one_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_voting, "DENSE", 10)
    boxes, scores, truth = crowd(1, 1, 400)
    kept = non_maximum_suppression(boxes, scores, 0.4)
    voted = vote(boxes, scores, kept)
    np.testing.assert_allclose(voted, plain(boxes, scores, kept), atol=1e-3)
    assert box_iou(voted[:1], truth)[0, 0] > 0.97


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 8))
def test_boxes_move_towards_the_faces(seed: int, each: int) -> None:
    # Over many faces: a single one may be voted away from its place.
    boxes, scores, truth = crowd(seed, 200, each)
    kept = non_maximum_suppression(boxes, scores, 0.3)
    before = box_iou(truth, boxes[kept]).max(axis=1).mean()
    after = box_iou(truth, vote(boxes, scores, kept)).max(axis=1).mean()
    assert after > before


def test_a_box_alone_stays_and_none_gives_none() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [5, 5, 5, 5]], np.float32)
    scores = np.array([0.9, 0.5, 0.3], np.float32)
    np.testing.assert_array_equal(vote(boxes, scores, np.arange(3)), boxes)
    np.testing.assert_array_equal(vote(boxes, 0 * scores, np.arange(3)), boxes)
    assert vote(boxes[:0], scores[:0], np.empty(0, np.intp)).shape == (0, 4)
