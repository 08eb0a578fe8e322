"""Masks drawn on faces: they cover mouths and leave eyes and the rest of the picture alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featherface.data.drawn_masks import draw_masks

SIDE = 240


def face(
    size: float, degrees: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Box ``[1, 4]``, landmarks ``[1, 5, 2]`` and the unit vector from eyes to mouth."""
    shares = np.array([[-0.2, -0.12], [0.2, -0.12], [0, 0.08], [-0.15, 0.25], [0.15, 0.25]])
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = SIDE / 2 + size * shares @ turn
    half = size / 2
    box = np.array([[SIDE / 2 - half, SIDE / 2 - half, SIDE / 2 + half, SIDE / 2 + half]])
    down = np.array([0, 1]) @ turn
    return box.astype(np.float32), points[None].astype(np.float32), down.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(size=st.floats(24, 160), degrees=st.floats(-180, 180), seed=st.integers(0, 2**31))
def test_a_mask_covers_the_mouth_and_leaves_the_eyes(
    size: float, degrees: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    boxes, landmarks, down = face(size, degrees)
    before = image.copy()
    masked = draw_masks(image, boxes, landmarks, 1.0, rng)
    np.testing.assert_array_equal(image, before)
    assert masked.shape == image.shape
    assert masked.dtype == np.uint8
    changed = (masked != image).any(2)
    ys, xs = np.nonzero(changed)
    depth = (np.stack([xs, ys], 1) + 0.5 - landmarks[0, :2].mean(0)) @ down
    assert depth.min() > -1.5, "nothing above the line of the eyes"
    mouth = landmarks[0, 3:].mean(0).astype(int)
    assert changed[mouth[1] - 1 : mouth[1] + 2, mouth[0] - 1 : mouth[0] + 2].mean() > 0.8
    # A turned face reaches as far as its circle.
    far = np.hypot(*(np.stack([xs, ys], 0) + 0.5 - SIDE / 2))
    assert far.max() < 0.75 * size
    assert 0.08 * size**2 < changed.sum() < 0.6 * size**2


@pytest.mark.parametrize(
    ("size", "landmark", "chance"), [(24, 0.0, 0.0), (5, 0.0, 1.0), (24, np.nan, 1.0)]
)
def test_faces_stay_bare(size: float, landmark: float, chance: float) -> None:
    """By chance, when they are too small, and where nothing is known of eyes and mouth."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    boxes, landmarks, _ = face(size)
    landmarks[0, 2] += landmark
    np.testing.assert_array_equal(draw_masks(image, boxes, landmarks, chance, rng), image)


def test_landmarks_in_one_point_and_pictures_without_faces_are_borne() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    box = np.array([[4, 4, 40, 60]], np.float32)
    point = np.full((1, 5, 2), 20, np.float32)
    np.testing.assert_array_equal(draw_masks(image, box, point, 1.0, rng), image)
    none = draw_masks(image, box[:0], point[:0], 1.0, rng)
    np.testing.assert_array_equal(none, image)


@pytest.mark.parametrize("shift", [(-150, 0), (150, 0), (0, -150), (0, 150), (400, 400)])
def test_faces_half_or_wholly_outside(shift: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    boxes, landmarks, _ = face(100)
    move = np.array(shift, np.float32)
    masked = draw_masks(image, boxes + np.tile(move, 2), landmarks + move, 1.0, rng)
    assert masked.shape == image.shape
    assert (masked != image).any(2).mean() < 0.2
