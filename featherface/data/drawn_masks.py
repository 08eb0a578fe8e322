"""Masks drawn on faces from their five landmarks: what few photos of a training set show."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

LEAST_FACE = 6.0  # pixels, the shorter side of a face that a mask is drawn on
SHARPEST = 16  # cv2.fillPoly counts in sixteenths of a pixel

# Surgical and cloth masks, RGB: most are light blue, white, black, grey or green.
COLOURS = np.array(
    [(150, 195, 215), (235, 238, 240), (25, 25, 28), (120, 122, 125), (125, 180, 160)], np.float32
)


def draw_masks(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    landmarks: NDArray[np.float32],
    chance: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draw a mask on each face with ``chance``.

    Args:
        image: uint8 RGB ``[H, W, 3]``; it stays as it is.
        boxes: float32 ``[N, 4]``, x1, y1, x2, y2 in pixels.
        landmarks: float32 ``[N, 5, 2]`` in pixels. A face with a landmark that is NaN stays bare.

    Returns:
        uint8 RGB ``[H, W, 3]``.
    """
    masked = image.copy()
    known = np.isfinite(landmarks).all((1, 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    large = sides.min(1) >= LEAST_FACE
    chosen = np.flatnonzero(known & large & (rng.random(len(boxes)) < chance))
    # The largest face stands in front, so its mask is the last.
    for face in chosen[np.argsort(sides[chosen].prod(1))]:
        outline = mask_outline(boxes[face], landmarks[face], rng)
        if outline is not None:
            fill(masked, image, outline, rng)
    return masked


def mask_outline(
    box: NDArray[np.float32], landmarks: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32] | None:
    """The corners of a mask, float32 ``[7, 2]`` in pixels, or None where eyes and mouth coincide.

    It is laid out along the line from the eyes to the mouth, so it turns with the head: over the
    bridge of the nose, along the cheeks as far as the box goes, and under the chin. One in ten
    leaves the nose free.
    """
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    length = float(np.linalg.norm(mouth - eyes))
    width, height = (float(side) for side in box[2:] - box[:2])
    if length < 0.1 * height:
        return None
    down = (mouth - eyes) / length
    across = np.array([down[1], -down[0]], np.float32)  # to the right where the head is upright
    # Half a turned ellipse's width: box corners would be too far out.
    half = 0.5 * float(np.hypot(width * across[0], height * across[1])) * rng.uniform(0.85, 1.0)
    centre = (box[:2] + box[2:]) / 2 - eyes
    middle = float(centre @ across)
    nose = float((landmarks[2] - eyes) @ across)
    if rng.random() < 0.1:
        bridge, cheek = rng.uniform(0.75, 0.9), rng.uniform(0.75, 0.95)
    else:
        bridge, cheek = rng.uniform(0.15, 0.5), rng.uniform(0.3, 0.65)
    lowest = float(centre @ down + height / 2) / length
    chin = min(max(lowest, 1.25), 1.9) * rng.uniform(0.92, 1.05)
    corners = np.array(
        [
            (middle - half, cheek),
            (nose, bridge),
            (middle + half, cheek),
            (middle + 0.9 * half, 1.0),
            (middle + 0.4 * half, chin),
            (middle - 0.4 * half, chin),
            (middle - 0.9 * half, 1.0),
        ],
        np.float32,
    )
    return np.asarray(eyes + corners[:, :1] * across + corners[:, 1:] * length * down, np.float32)


def fill(
    image: NDArray[np.uint8],
    original: NDArray[np.uint8],
    outline: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Paint inside ``outline``: one colour, or a piece of ``original`` as a pattern, with shade."""
    height, width = image.shape[:2]
    low = np.clip(np.floor(outline.min(0)), 0, [width, height]).astype(int)
    high = np.clip(np.ceil(outline.max(0)) + 1, 0, [width, height]).astype(int)
    (x1, y1), (x2, y2) = low.tolist(), high.tolist()
    if x2 <= x1 or y2 <= y1:
        return
    if rng.random() < 0.2:
        cloth = piece_of(original, x2 - x1, y2 - y1, rng).astype(np.float32)
    else:
        known = rng.random() < 0.8
        colour = COLOURS[rng.integers(len(COLOURS))] if known else rng.uniform(0, 255, 3)
        # As light as the face it lies on: a white mask is grey in a dark room.
        light = original[y1:y2, x1:x2].mean() / 128
        colour = (colour + rng.normal(0, 12, 3)) * np.clip(light, 0.3, 1.3) * rng.uniform(0.8, 1.1)
        cloth = np.broadcast_to(colour.astype(np.float32), (y2 - y1, x2 - x1, 3))
    folds = np.linspace(0, 1, y2 - y1, dtype=np.float32)[:, None, None]
    shade = 1 - rng.uniform(0, 0.35) * folds
    if rng.random() < 0.4:
        shade = shade + rng.uniform(0.02, 0.08) * np.sin(folds * rng.uniform(10, 22))
    cover = np.zeros((y2 - y1, x2 - x1), np.uint8)
    corners = np.rint((outline - np.array([x1, y1]) - 0.5) * SHARPEST).astype(np.int32)
    cv2.fillPoly(cover, [corners], 255, cv2.LINE_AA, shift=4)
    share = (cover.astype(np.float32) / 255)[..., None]
    painted = share * np.clip(cloth * shade, 0, 255) + (1 - share) * image[y1:y2, x1:x2]
    image[y1:y2, x1:x2] = np.rint(painted).astype(np.uint8)


def piece_of(
    image: NDArray[np.uint8], width: int, height: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A view of ``width`` x ``height`` pixels anywhere on ``image``, which is no smaller."""
    left = int(rng.integers(image.shape[1] - width + 1))
    top = int(rng.integers(image.shape[0] - height + 1))
    return image[top : top + height, left : left + width]
