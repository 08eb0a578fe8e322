"""Detection at one or more sizes, mirrored or not: the test-time options.

Evaluation takes any callable ``detect(image) -> faces`` that looks at the image at its given size;
this file hands it the views and brings what it finds back to the pixels of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.boxes import box_iou, non_maximum_suppression
from featherface.errors import ConfigError, DataError, ImageError
from featherface.faces import MIRRORED_LANDMARKS, Detect, FacesLike

MERGE_IOU = 0.4
VOTING_IOU = 0.5

Image = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FoundFaces:
    """``boxes`` float64 ``[N, 4]``, ``scores`` ``[N]``, ``landmarks`` ``[N, 5, 2]`` or None."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    landmarks: NDArray[np.float64] | None

    def rows(self) -> NDArray[np.float64]:
        """``[N, 5]``: x1, y1, x2, y2, score."""
        return np.concatenate([self.boxes, self.scores[:, None]], axis=1)


@dataclass(frozen=True)
class Views:
    """How a photo is shown to the detector.

    ``long_sides``: one view each, resized (bilinear) so that the long side has so many pixels; None
    is the photo's own size. ``flip`` adds each view's mirror image. Several views are merged by
    non-maximum suppression (IoU 0.4); each kept box becomes the score-weighted mean of all boxes
    that overlap it by 0.5 and more, and keeps its score.
    """

    long_sides: tuple[int | None, ...] = (None,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.long_sides:
            raise ConfigError("Views without a size: give at least one long side, or None")
        for side in self.long_sides:
            if side is not None and not 32 <= side <= 16384:
                raise ConfigError(f"Long side {side} is out of range: 32 to 16384 pixels")

    def describe(self) -> str:
        """One line for a result file, such as ``long side 640, 1024; flip``."""
        if self.long_sides == (None,):
            sizes = "original size"
        else:
            names = ", ".join("original" if s is None else str(s) for s in self.long_sides)
            sizes = f"long side {names}"
        return f"{sizes}; flip" if self.flip else sizes


def detect_in_views(detect: Detect, image: Image, views: Views | None = None) -> FoundFaces:
    """Detect faces of ``image`` (uint8 RGB ``[H, W, 3]``) in every view; original pixels.

    Raises ``DataError`` where the detector returns arrays that do not fit together or values that
    are not finite.
    """
    views = views or Views()
    height, width = image.shape[:2]
    found = []
    for side in views.long_sides:
        factor = 1.0 if side is None else side / max(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        view = image if size == (width, height) else resize_bilinear(image, size)
        scale = np.array([width / size[0], height / size[1]])
        for mirrored in (False, True)[: 1 + views.flip]:
            shown = np.ascontiguousarray(view[:, ::-1]) if mirrored else view
            faces = _checked(detect(shown))
            if mirrored:
                faces = _unmirror(faces, size[0])
            boxes = faces.boxes * np.tile(scale, 2)
            landmarks = None if faces.landmarks is None else faces.landmarks * scale
            found.append(FoundFaces(boxes, faces.scores, landmarks))
    return found[0] if len(found) == 1 else _merge(found)


def read_rgb(path: str | Path) -> Image:
    """Read a photo as uint8 RGB ``[H, W, 3]``, as stored (labels refer to the stored pixels)."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error
    decoded = (
        cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if len(content)
        else None
    )
    if decoded is None:
        raise ImageError(f"{path} is no picture that OpenCV can read: repair or remove it")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def resize_bilinear(image: Image, size: tuple[int, int]) -> Image:
    """Resize to ``size`` = (width, height) in pixels."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _checked(faces: FacesLike) -> FoundFaces:
    boxes = np.asarray(faces.boxes, np.float64).reshape(-1, 4)
    scores = np.asarray(faces.scores, np.float64).reshape(-1)
    landmarks = None
    if faces.landmarks is not None:
        landmarks = np.asarray(faces.landmarks, np.float64).reshape(-1, 5, 2)
    if len(boxes) != len(scores) or (landmarks is not None and len(landmarks) != len(boxes)):
        raise DataError(f"The detector returned {len(boxes)} boxes for {len(scores)} scores")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DataError("The detector returned a box or score that is not finite")
    return FoundFaces(boxes, scores, landmarks)


def _unmirror(faces: FoundFaces, width: int) -> FoundFaces:
    boxes = faces.boxes.copy()
    boxes[:, [0, 2]] = width - faces.boxes[:, [2, 0]]
    landmarks = None
    if faces.landmarks is not None:
        landmarks = faces.landmarks[:, MIRRORED_LANDMARKS, :].copy()
        landmarks[..., 0] = width - landmarks[..., 0]
    return FoundFaces(boxes, faces.scores, landmarks)


def _merge(found: list[FoundFaces]) -> FoundFaces:
    boxes = np.concatenate([f.boxes for f in found])
    scores = np.concatenate([f.scores for f in found])
    parts = [f.landmarks for f in found if f.landmarks is not None]
    landmarks = np.concatenate(parts) if len(parts) == len(found) else None
    keep = non_maximum_suppression(boxes, scores, MERGE_IOU)
    if len(keep) == 0:
        return FoundFaces(boxes[:0], scores[:0], None if landmarks is None else landmarks[:0])
    overlaps = box_iou(boxes[keep], boxes)
    weights = np.where(overlaps >= VOTING_IOU, np.maximum(scores, 1e-12), 0.0)
    weights[np.arange(len(keep)), keep] = np.maximum(scores[keep], 1e-12)
    voted = weights @ boxes / weights.sum(axis=1, keepdims=True)
    return FoundFaces(voted, scores[keep], None if landmarks is None else landmarks[keep])
