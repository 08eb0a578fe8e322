"""Hiding faces: what is left of a region, where it ends, and how long it is held in a video."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherface.anonymise import SHAPES, STYLES, Anonymiser, padded_region
from featherface.errors import ConfigError
from featherface.steady_boxes import steady_boxes

NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
BOX = np.array([[40, 30, 100, 90]], np.float32)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_region_changes(style: str, shape: str) -> None:
    before = NOISE.copy()
    hidden = Anonymiser(style, shape, padding=0.1)(NOISE, BOX)
    assert (before == NOISE).all()
    changed = (hidden != NOISE).any(axis=2)
    x1, y1, x2, y2 = padded_region(BOX[0], 0.1, 160, 120)
    assert (x1, y1, x2, y2) == (34, 24, 106, 96)
    assert not changed[:y1].any()
    assert not changed[:, :x1].any()
    assert not changed[y2:].any()
    assert not changed[:, x2:].any()
    covered = changed[y1:y2, x1:x2].mean()
    assert covered > 0.98 if shape == "rectangle" else 0.75 < covered < 0.8


@pytest.mark.parametrize("style", ["blur", "pixelate"])
def test_no_more_is_left_than_the_cells(style: str) -> None:
    """A region whose cell averages are equal is hidden to the same pixels, whatever it shows."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    first = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    box = np.array([[0, 0, 64, 64]], np.float32)
    hide = Anonymiser(style, padding=0, detail=8)
    assert (hide(first, box) == hide(255 - first, box)).all()
    assert len(np.unique(hide(first, box))) == 1


def test_small_faces_are_coarsened_too() -> None:
    box = np.array([[10, 10, 20, 20]], np.float32)
    hidden = Anonymiser("pixelate", padding=0)(NOISE, box)[10:20, 10:20]
    assert len(np.unique(hidden.reshape(-1, 3), axis=0)) <= 9


def test_overlapping_and_outside() -> None:
    boxes = np.array([[40, 30, 100, 90], [60, 30, 120, 90], [-50, -50, -1, -1]], np.float32)
    hidden = Anonymiser("box", colour=(9, 8, 7), padding=0)(NOISE, boxes)
    assert (hidden[30:90, 40:120] == (9, 8, 7)).all()


@given(st.lists(st.floats(-1e4, 1e4), min_size=4, max_size=4))
def test_any_box_is_survived(values: list[float]) -> None:
    hidden = Anonymiser()(NOISE, np.array([values], np.float32))
    assert hidden.shape == NOISE.shape


@pytest.mark.parametrize(
    ("name", "value"), [("style", "x"), ("shape", "x"), ("padding", -1), ("detail", 0)]
)
def test_impossible_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        Anonymiser(**{name: value})  # type: ignore[arg-type]


def test_blur_looks_smooth() -> None:
    gradient = np.repeat(np.arange(160, dtype=np.uint8)[None], 120, axis=0)
    image = cv2.merge([gradient] * 3)
    hidden = Anonymiser("blur")(np.asarray(image, np.uint8), BOX).astype(int)
    x1, y1, x2, y2 = padded_region(BOX[0], 0.2, 160, 120)
    steps = np.abs(np.diff(hidden[y1:y2, x1:x2], axis=1))
    assert steps.max() <= 6


def test_a_missed_frame_is_covered_from_both_sides() -> None:
    seen = [BOX if number in (3, 4, 7) else np.empty((0, 4), np.float32) for number in range(12)]
    steady = list(steady_boxes(enumerate(seen), hold=2))
    assert [number for number, _ in steady] == list(range(12))
    covered = [len(boxes) > 0 for _, boxes in steady]
    assert covered == [False, *[True] * 9, False, False]


def test_a_moving_face_leaves_no_trail() -> None:
    boxes = [BOX + np.float32([10 * number, 0, 10 * number, 0]) for number in range(20)]
    steady = list(steady_boxes(enumerate(boxes), hold=5))
    assert all(len(held) == 1 for _, held in steady)


def test_nothing_is_held() -> None:
    seen = [BOX, np.empty((0, 4), np.float32), BOX]
    assert [len(boxes) for _, boxes in steady_boxes(enumerate(seen), hold=0)] == [1, 0, 1]
