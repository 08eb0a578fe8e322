"""Faces partly covered, as hands, hats and other people cover them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.data.crop_geometry import Labels
from featherface.data.drawn_masks import piece_of


def hide_faces(
    image: NDArray[np.uint8], labels: Labels, chance: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Cover a part of some faces, as hands, masks, hats and other people do; uint8 in and out.

    Each face of 8 pixels and more is chosen with ``chance``; a patch covers 25 to 60 % of it from
    one side, most often from below. Patches of the same kind lie beside the faces too, so that a
    patch does not tell of a face.
    """
    covered = image.copy()
    boxes = labels.boxes
    sides = (boxes[:, 2:] - boxes[:, :2]).min(1) if len(boxes) else np.zeros(0)
    chosen = np.flatnonzero((sides >= 8) & (rng.random(len(boxes)) < chance))
    for box in boxes[chosen]:
        cover(covered, image, part_of(box, rng), rng)
        decoy = part_of(box, rng)
        decoy += np.tile(rng.uniform(-2, 2, 2) * (box[2:] - box[:2]), 2).astype(np.float32)
        low, high = np.maximum(boxes[:, :2], decoy[:2]), np.minimum(boxes[:, 2:], decoy[2:])
        if not (high > low).all(1).any():
            cover(covered, image, decoy, rng)
    return covered


def part_of(box: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The lower, upper, left or right 25 to 60 % of a box, up to a tenth beyond its sides."""
    part = box.astype(np.float32)
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    share = rng.uniform(0.25, 0.6)
    side = rng.choice(4, p=[0.15, 0.15, 0.15, 0.55])
    if side == 0:
        part[2] = part[0] + share * width
    elif side == 1:
        part[1], part[3] = part[1] - 0.1 * height, part[1] + share * height
    elif side == 2:
        part[0] = part[2] - share * width
    else:
        part[1] = part[3] - share * height
    beyond = rng.uniform(-0.05, 0.1, 4) * np.array([-width, -height, width, height])
    return part + beyond.astype(np.float32)


def cover(
    image: NDArray[np.uint8],
    original: NDArray[np.uint8],
    box: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Fill a box of ``image``, or the ellipse in it, with one colour or a piece of ``original``."""
    height, width = image.shape[:2]
    x1, y1 = np.clip(np.rint(box[:2]), 0, [width, height]).astype(int)
    x2, y2 = np.clip(np.rint(box[2:]), 0, [width, height]).astype(int)
    if x2 <= x1 or y2 <= y1:
        return
    patch = piece_of(original, x2 - x1, y2 - y1, rng).copy()
    if rng.random() < 0.5:
        patch[:] = patch[0, 0] if rng.random() < 0.5 else rng.integers(0, 256, 3)
    if rng.random() < 0.5:
        shape = np.zeros(patch.shape[:2], np.uint8)
        # Lower patches bulge upwards and so on: a larger ellipse than the box fills its corners.
        axes = (int(np.ceil((x2 - x1) * 0.6)), int(np.ceil((y2 - y1) * 0.6)))
        cv2.ellipse(shape, ((x2 - x1) // 2, (y2 - y1) // 2), axes, 0, 0, 360, 1, -1)
        np.copyto(image[y1:y2, x1:x2], patch, where=shape[..., None].astype(bool))
    else:
        image[y1:y2, x1:x2] = patch
