"""Photos shown larger than they were stored, blurred as that makes them."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from featherface.data.labelled_photo import FACE_SCORE, LabelledPhoto
from featherface.data.pixel_changes import store_jpeg

STORED = 416
QUALITY = 90
LONG_SIDE = 1024
LONGEST = 1400  # of a photo that is scaled to the size of its faces


def stored_small(photo: LabelledPhoto) -> LabelledPhoto:
    """Squeezed to 416x416, stored as a JPEG, and enlarged to a long side of 1,024 pixels."""
    height, width = photo.image.shape[:2]
    how = cv2.INTER_AREA if min(height, width) > STORED else cv2.INTER_LINEAR
    small = cv2.resize(np.ascontiguousarray(photo.image), (STORED, STORED), interpolation=how)
    return shown_as(
        photo, store_jpeg(small, QUALITY), LONG_SIDE / max(height, width), cv2.INTER_LINEAR
    )


def scaled(photo: LabelledPhoto, size: float) -> LabelledPhoto:
    """Scaled until its largest sure face has ``size`` pixels, to 1,400 pixels at most."""
    sides = np.sqrt((photo.boxes[:, 2:] - photo.boxes[:, :2]).prod(1))
    largest = float(sides[photo.scores >= FACE_SCORE].max())
    factor = min(size / largest, LONGEST / max(photo.image.shape[:2]))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return shown_as(photo, np.ascontiguousarray(photo.image), factor, how)


def shown_as(
    photo: LabelledPhoto, image: cv2.typing.MatLike, factor: float, interpolation: int
) -> LabelledPhoto:
    """``image`` at ``factor`` times the size of ``photo``, with its labels."""
    height, width = photo.image.shape[:2]
    new = (max(1, round(width * factor)), max(1, round(height * factor)))
    scale = np.array([new[0] / width, new[1] / height])
    return replace(
        photo,
        image=np.asarray(cv2.resize(image, new, interpolation=interpolation), np.uint8),
        boxes=(photo.boxes * np.tile(scale, 2)).astype(np.float32),
        landmarks=(photo.landmarks * scale).astype(np.float32),
    )
