"""One photo with its faces: what every reader yields and every augmentation takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FACE_SCORE = 0.5  # from here on a label counts as a face; under it as doubtful
IGNORED_SCORE = 0.2  # of what is neither to be found nor to be called background


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and its faces, in pixels of the photo.

    Attributes:
        key: name of the photo, unique in its collection.
        source: the collection's part it comes from ("crowd", "lfw", ...).
        image: uint8 RGB [H, W, 3]; may be a read-only view.
        boxes: float32 [N, 4], x1, y1, x2, y2.
        scores: float32 [N], 1.0 for human labels; 0.5 and more are faces, less is doubtful.
        landmarks: float32 [N, 5, 2], left eye, right eye, nose, left and right mouth corner as
            seen in the image; NaN where absent.
    """

    key: str
    source: str
    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]


class Photos(Protocol):
    """Random access over labelled photos: a ``PhotoStore``, a ``WiderFacePhotos``, or yours."""

    sources: NDArray[np.str_]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledPhoto: ...
