"""Boxes that outlast a frame in which the detector misses a face: for hiding faces in a video.

One frame without its box shows the face. So a box that ends is held for some frames after, and one
that begins was there for some frames before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from featherface.boxes import box_iou

FloatArray = NDArray[np.float32]
Frame = TypeVar("Frame")

SAME_FACE_IOU = 0.1  # of boxes a few frames apart: a face moves, but not by its own width


def steady_boxes(
    frames: Iterable[tuple[Frame, FloatArray]], hold: int
) -> Iterator[tuple[Frame, FloatArray]]:
    """Each frame with its boxes ``[N, 4]`` and those held from up to ``hold`` frames around it.

    A box is held from frame to frame until a box of the next frame overlaps it (IoU 0.1), forwards
    and backwards in time. Keeps ``hold`` frames in memory.
    """
    ahead: deque[tuple[Frame, FloatArray]] = deque()
    carried = _Carried(hold)

    def settle() -> tuple[Frame, FloatArray]:
        frame, boxes = ahead.popleft()
        backwards = _Carried(hold)
        for _, later in reversed(ahead):
            backwards.step(later)
        held = [boxes, carried.missing_in(boxes), backwards.missing_in(boxes)]
        carried.step(boxes)
        return frame, np.concatenate(held)

    for item in frames:
        ahead.append(item)
        if len(ahead) > hold:
            yield settle()
    while ahead:
        yield settle()


class _Carried:
    """Boxes on their way through the frames, each with the number of frames it may still go."""

    def __init__(self, hold: int) -> None:
        self.hold = hold
        self.boxes: FloatArray = np.empty((0, 4), np.float32)
        self.left = np.empty(0, int)

    def missing_in(self, boxes: FloatArray) -> FloatArray:
        """The carried boxes ``[K, 4]`` that none of ``boxes`` ``[N, 4]`` takes over."""
        return self.boxes[self._missing(boxes)]

    def step(self, boxes: FloatArray) -> None:
        """Go past a frame with ``boxes`` ``[N, 4]``."""
        missing = self._missing(boxes)
        missing[self.left <= 1] = False
        fresh = np.full(len(boxes), self.hold)
        self.left = np.concatenate([fresh, self.left[missing] - 1])
        self.boxes = np.concatenate([boxes.astype(np.float32), self.boxes[missing]])

    def _missing(self, boxes: FloatArray) -> NDArray[np.bool_]:
        alive = self.left > 0
        return np.asarray(alive & (box_iou(self.boxes, boxes) < SAME_FACE_IOU).all(axis=1))
