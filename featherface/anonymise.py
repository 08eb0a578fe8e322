"""Faces made unrecognisable: blurred, pixelated or covered.

Blur and pixels keep the same little: the region is first averaged to a coarse grid of at most
``detail`` cells a side, so neither sharpening nor any other filter brings more than that back. Of
a covered face nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.errors import ConfigError

ByteImage = NDArray[np.uint8]
FloatArray = NDArray[np.float32]

STYLES: tuple[str, ...] = ("blur", "pixelate", "box")
SHAPES: tuple[str, ...] = ("rectangle", "ellipse")
SMALLEST_CELL = 4  # pixels: a face of few pixels is coarsened too


@dataclass(frozen=True)
class Anonymiser:
    """Hides regions of an image.

    >>> hidden = Anonymiser("pixelate")(image, faces.boxes)

    ``style``: ``blur``, ``pixelate`` or ``box`` (one colour). ``shape``: ``rectangle``, or the
    ``ellipse`` within it. ``padding``: how far a region goes beyond the box on each side, as a
    share of the box's sides; the box of a detector ends at chin and forehead, hair and ears lie
    outside. ``detail``: cells that are left of the longer side of a region, 1 to 64. ``colour``:
    RGB of ``box``. Raises ``ConfigError`` for values out of range.
    """

    style: str = "blur"
    shape: str = "rectangle"
    padding: float = 0.2
    detail: int = 8
    colour: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ConfigError(f"style={self.style!r}: one of {', '.join(STYLES)}")
        if self.shape not in SHAPES:
            raise ConfigError(f"shape={self.shape!r}: one of {', '.join(SHAPES)}")
        if not 0 <= self.padding <= 2:
            raise ConfigError(f"padding={self.padding}: give 0 to 2 times the box's sides")
        if not 1 <= self.detail <= 64:
            raise ConfigError(f"detail={self.detail}: give 1 to 64 cells")
        if not all(0 <= value <= 255 for value in self.colour):
            raise ConfigError(f"colour={self.colour}: give three numbers from 0 to 255")

    def __call__(self, image: ByteImage, boxes: FloatArray) -> ByteImage:
        """A copy of ``image`` (uint8 RGB ``[H, W, 3]``) with the ``boxes`` ``[N, 4]`` hidden."""
        hidden = np.ascontiguousarray(image).copy()
        height, width = image.shape[:2]
        for box in boxes:
            x1, y1, x2, y2 = padded_region(box, self.padding, width, height)
            if x1 >= x2 or y1 >= y2:
                continue
            # From what is hidden already: where two regions overlap, neither shows the other's.
            region = hidden[y1:y2, x1:x2]
            covered = self._covered(region)
            if self.shape == "ellipse":
                inside = ellipse_in(x2 - x1, y2 - y1)
                region[inside] = covered[inside]
            else:
                region[:] = covered
        return hidden

    def _covered(self, region: ByteImage) -> ByteImage:
        """``region`` ``[h, w, 3]`` with its content gone."""
        height, width = region.shape[:2]
        if self.style == "box":
            return np.full_like(region, self.colour)
        cell = max(SMALLEST_CELL, max(height, width) / self.detail)
        coarse_size = max(1, round(width / cell)), max(1, round(height / cell))
        coarse = cv2.resize(region, coarse_size, interpolation=cv2.INTER_AREA)
        if self.style == "pixelate":
            cells = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
            return np.asarray(cells, np.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        blurred = cv2.GaussianBlur(smooth, (0, 0), sigmaX=0.5 * cell)
        return np.asarray(blurred, np.uint8)


def padded_region(
    box: FloatArray, padding: float, width: int, height: int
) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 in whole pixels of ``box`` grown by ``padding``, within the image."""
    grow_x, grow_y = padding * (box[2] - box[0]), padding * (box[3] - box[1])
    return (
        max(0, int(np.floor(box[0] - grow_x))),
        max(0, int(np.floor(box[1] - grow_y))),
        min(width, int(np.ceil(box[2] + grow_x))),
        min(height, int(np.ceil(box[3] + grow_y))),
    )


def ellipse_in(width: int, height: int) -> NDArray[np.bool_]:
    """The pixels ``[height, width]`` whose centres lie in the ellipse that touches the sides."""
    x = (2 * np.arange(width) + 1 - width) / width
    y = (2 * np.arange(height) + 1 - height) / height
    return np.asarray(x[None, :] ** 2 + y[:, None] ** 2 <= 1)
