"""A detector measured on any labelled folder.

evaluate_voc(detect, "masks")              # AP50 alone, a float
result = evaluate_folder(detect, "masks")  # everything, see FolderResult
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from featherface.errors import DataError
from featherface.evaluation.average_precision import match_voc
from featherface.evaluation.label_formats import LabelledPhoto, read_labelled_folder
from featherface.evaluation.views import (
    Detect,
    FoundFaces,
    Image,
    Views,
    detect_in_views,
    read_rgb,
    resize_bilinear,
)

Progress = Callable[[Sequence[LabelledPhoto]], Iterable[LabelledPhoto]]


def evaluate_voc(
    detect: Detect,
    folder: str | Path,
    long_side: int | None = 640,
    label_format: str | None = None,
    progress: Progress | None = None,
) -> float:
    """AP at IoU 0.5 by PASCAL VOC (all points, +1 pixel convention), a fraction 0..1.

    Each photo is resized (bilinear) so that its long side has ``long_side`` pixels; None keeps its
    size. ``detect`` should return faces down to a score of 0.02.
    """
    photos = read_labelled_folder(folder, label_format)
    found = detect_photos(detect, photos, Views((long_side,)), progress)
    return match_voc(
        [faces.rows() for faces in found],
        [photo.boxes for photo in photos],
        [photo.ignored for photo in photos],
    ).average_precision


def detect_photos(
    detect: Detect,
    photos: Sequence[LabelledPhoto],
    views: Views,
    progress: Progress | None = None,
) -> list[FoundFaces]:
    """Detect each photo in ``views``; faces in pixels of the labels."""
    return [
        detect_in_views(detect, read_labelled_photo(photo), views)
        for photo in (progress(photos) if progress else photos)
    ]


def read_labelled_photo(photo: LabelledPhoto) -> Image:
    """Read a photo as uint8 RGB at the size its labels tell; ``DataError`` for another shape."""
    image = read_rgb(photo.path)
    height, width = image.shape[:2]
    if (width, height) == photo.size:
        return image
    if not np.isclose(width / height, photo.size[0] / photo.size[1], rtol=0.02):
        raise DataError(
            f"{photo.path} has {width}x{height} pixels and its labels say "
            f"{photo.size[0]}x{photo.size[1]}: label and photo do not belong together"
        )
    return resize_bilinear(image, photo.size)
