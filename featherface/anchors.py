"""Anchors of FeatherFace V1 and V2, and the coding of boxes and landmarks against them (NumPy).

Two square anchors a cell, 16/32, 64/128 and 256/512 pixels on strides 8, 16 and 32, centred at
``(i + 0.5) * stride``. Order: stride by stride, row by row, column by column, small before large
(RetinaFace, Deng et al., CVPR 2020; the FeatherFace paper keeps it).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

STRIDES: tuple[int, ...] = (8, 16, 32)
ANCHOR_SIZES: tuple[tuple[int, ...], ...] = ((16, 32), (64, 128), (256, 512))
ANCHORS_PER_CELL = 2
SIZES = len(STRIDES) * ANCHORS_PER_CELL
CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2

FloatArray = NDArray[np.float32]


@lru_cache(maxsize=32)
def make_anchors(height: int, width: int) -> FloatArray:
    """Anchors of an image, float32 ``[A, 4]`` as centre x, centre y, width, height in pixels.

    The array is cached and read-only. ``height`` and ``width`` should be multiples of 32.
    """
    levels = []
    for stride, sizes in zip(STRIDES, ANCHOR_SIZES, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
        centres = np.stack([(x + 0.5) * stride, (y + 0.5) * stride], axis=-1)
        level = np.empty((rows, columns, len(sizes), 4), np.float32)
        level[..., :2] = centres[:, :, None]
        level[..., 2:] = np.asarray(sizes, np.float32)[:, None]
        levels.append(level.reshape(-1, 4))
    anchors = np.concatenate(levels)
    anchors.setflags(write=False)
    return anchors


def of_stride(values: Sequence[float], level: int) -> Sequence[float]:
    """Those of a stride's anchors, of one value for each of the six sizes of anchors."""
    return values[ANCHORS_PER_CELL * level : ANCHORS_PER_CELL * (level + 1)]


def encode_boxes(boxes: FloatArray, anchors: FloatArray) -> FloatArray:
    """Boxes ``[N, 4]`` as x1, y1, x2, y2 to deltas ``[N, 4]`` against as many anchors."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    return np.concatenate(
        [
            (centres - anchors[:, :2]) / (CENTRE_VARIANCE * anchors[:, 2:]),
            np.log(sizes / anchors[:, 2:]) / SIZE_VARIANCE,
        ],
        axis=1,
    ).astype(np.float32)


def decode_boxes(deltas: FloatArray, anchors: FloatArray) -> FloatArray:
    """Deltas ``[N, 4]`` against as many anchors to boxes ``[N, 4]`` as x1, y1, x2, y2 in pixels."""
    centres = anchors[:, :2] + deltas[:, :2] * (CENTRE_VARIANCE * anchors[:, 2:])
    halves = 0.5 * anchors[:, 2:] * np.exp(SIZE_VARIANCE * deltas[:, 2:])
    return np.concatenate([centres - halves, centres + halves], axis=1)


def encode_landmarks(landmarks: FloatArray, anchors: FloatArray) -> FloatArray:
    """Landmarks ``[N, 5, 2]`` in pixels to deltas ``[N, 10]``."""
    scale = CENTRE_VARIANCE * anchors[:, None, 2:]
    return ((landmarks - anchors[:, None, :2]) / scale).reshape(-1, 10).astype(np.float32)


def decode_landmarks(deltas: FloatArray, anchors: FloatArray) -> FloatArray:
    """Deltas ``[N, 10]`` against as many anchors to landmarks ``[N, 5, 2]`` in pixels."""
    scale = CENTRE_VARIANCE * anchors[:, None, 2:]
    return anchors[:, None, :2] + deltas.reshape(-1, 5, 2) * scale
