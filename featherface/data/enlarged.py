"""Photos shown larger than they were stored, blurred as that makes them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.data.augmentation import FACE_SCORE, store_jpeg
from featherface.data.labelled_photo import LabelledPhoto

STORED = 416
QUALITY = 90
LONG_SIDE = 1024
LONGEST = 1400  # of a photo that is scaled to the size of its faces

Enlarged = tuple[NDArray[np.uint8], NDArray[np.float64]]


def stored_small(photo: LabelledPhoto) -> Enlarged:
    """Squeezed to 416x416, stored as a JPEG, and enlarged to a long side of 1,024 pixels.

    Returns:
        uint8 RGB [H, W, 3] and its float64 boxes [N, 4].
    """
    height, width = photo.image.shape[:2]
    how = cv2.INTER_AREA if min(height, width) > STORED else cv2.INTER_LINEAR
    small = cv2.resize(np.ascontiguousarray(photo.image), (STORED, STORED), interpolation=how)
    factor = LONG_SIDE / max(height, width)
    new = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = cv2.resize(store_jpeg(small, QUALITY), new, interpolation=cv2.INTER_LINEAR)
    boxes = photo.boxes * np.array([new[0] / width, new[1] / height] * 2)
    return np.asarray(image, np.uint8), boxes


def scaled(photo: LabelledPhoto, size: float) -> Enlarged:
    """Scaled until its largest sure face has ``size`` pixels, to 1,400 pixels at most.

    Returns:
        uint8 RGB [H, W, 3] and its float64 boxes [N, 4].
    """
    sides = np.sqrt((photo.boxes[:, 2:] - photo.boxes[:, :2]).prod(1))
    largest = float(sides[photo.scores >= FACE_SCORE].max())
    height, width = photo.image.shape[:2]
    factor = min(size / largest, LONGEST / max(height, width))
    new = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(np.ascontiguousarray(photo.image), new, interpolation=how))
    return image.astype(np.uint8), photo.boxes * np.array([new[0] / width, new[1] / height] * 2)
