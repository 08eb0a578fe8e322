"""Windows on a photo: cut, turned, stretched and mirrored, and their labels with them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.data.labelled_photo import IGNORED_SCORE, LabelledPhoto
from featherface.faces import MIRRORED_LANDMARKS


@dataclass(frozen=True)
class Sample:
    """One training crop; boxes lie inside it, landmarks may lie outside.

    Attributes:
        image: uint8 RGB [S, S, 3].
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the crop.
        scores: float32 [N]; below 0.5 the face is to be ignored, neither face nor background.
        landmarks: float32 [N, 5, 2], NaN where absent.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]


@dataclass(frozen=True)
class Labels:
    """Faces on their way through the augmentation; fields as in :class:`Sample`."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]


def place(
    window: float,
    photo: int,
    target: NDArray[np.float32] | None,
    axis: int,
    rng: np.random.Generator,
) -> float:
    """Where a window of ``window`` photo pixels begins along one axis of ``photo`` pixels.

    It lies inside the photo where it fits, else around it, and holds the target where it can.
    """
    low, high = sorted((0.0, photo - window))
    if target is not None:
        begin, end = float(target[axis]), float(target[axis + 2])
        from_end, to_begin = sorted((end - window, begin))
        low, high = max(low, min(from_end, high)), min(high, max(to_begin, low))
    return float(rng.uniform(low, max(low, high)))


def cut(
    photo: LabelledPhoto,
    left: float,
    top: float,
    scale: float,
    width: int,
    height: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], Labels]:
    """The window of ``width`` x ``height`` that begins at ``left``, ``top`` of the photo, scaled.

    Whole photo pixels are cut and resized, and labels follow the exact factors of that step.
    """
    photo_height, photo_width = photo.image.shape[:2]
    x1, x2 = max(0, round(left)), min(photo_width, round(left + width / scale))
    y1, y2 = max(0, round(top)), min(photo_height, round(top + height / scale))
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    if x1 >= photo_width or y1 >= photo_height:
        raise ValueError("the window lies outside the photo")
    out_x, out_y = max(0, round((x1 - left) * scale)), max(0, round((y1 - top) * scale))
    out_width = min(max(1, round((x2 - x1) * scale)), width - out_x)
    out_height = min(max(1, round((y2 - y1) * scale)), height - out_y)
    if x1 > 0 and x2 < photo_width and y1 > 0 and y2 < photo_height:
        out_x, out_y, out_width, out_height = 0, 0, width, height
    part = cv2.resize(
        photo.image[y1:y2, x1:x2],
        (out_width, out_height),
        interpolation=choose_interpolation(scale, rng),
    )
    if (out_width, out_height) == (width, height):
        image = part
    else:
        image = np.zeros((height, width, 3), np.uint8)
        image[out_y : out_y + out_height, out_x : out_x + out_width] = part
    factor = np.array([out_width / (x2 - x1), out_height / (y2 - y1)], np.float32)
    shift = np.array([out_x, out_y], np.float32) - np.array([x1, y1], np.float32) * factor
    # Detectors and people also draw boxes beyond the photo's edge, where black begins.
    corner = np.array([photo_width, photo_height], np.float32)
    corners = np.clip(photo.boxes.reshape(-1, 2, 2), 0, corner)
    labels = Labels(
        (corners * factor + shift).reshape(-1, 4),
        photo.scores.copy(),
        photo.landmarks * factor + shift,
    )
    return np.asarray(image, np.uint8), labels


def choose_interpolation(scale: float, rng: np.random.Generator) -> int:
    """Areas when shrinking by a third and more (no aliasing), else one of three at random."""
    if scale < 0.67:
        return cv2.INTER_AREA
    return (cv2.INTER_LINEAR, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[int(rng.integers(3))]


def rotate(
    image: NDArray[np.uint8], labels: Labels, degrees: float, out_width: int, out_height: int
) -> tuple[NDArray[np.uint8], Labels]:
    """Turn about the centre and keep the middle ``out_width`` x ``out_height``.

    A face is near an ellipse that fills its box, so the new box bounds the turned ellipse: the box
    of the turned corners would grow with the angle.
    """
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (out_width - width) / 2, (out_height - height) / 2
    turned = cv2.warpAffine(image, matrix, (out_width, out_height), flags=cv2.INTER_LINEAR)
    # Pixel centres are at whole numbers for OpenCV, at halves for boxes.
    linear = matrix[:, :2].astype(np.float32)
    shift = (matrix[:, 2] + linear @ np.array([0.5, 0.5]) * -1 + 0.5).astype(np.float32)
    centres = (labels.boxes[:, :2] + labels.boxes[:, 2:]) / 2 @ linear.T + shift
    halves = (labels.boxes[:, 2:] - labels.boxes[:, :2]) / 2
    halves = np.sqrt(halves**2 @ (linear**2).T)
    boxes = np.concatenate([centres - halves, centres + halves], 1)
    return np.asarray(turned, np.uint8), Labels(
        boxes, labels.scores, labels.landmarks @ linear.T + shift
    )


def stretch(
    image: NDArray[np.uint8], labels: Labels, width: int, height: int
) -> tuple[NDArray[np.uint8], Labels]:
    """Resize to ``width`` x ``height``, whatever the shape was, and the labels with it."""
    scale = np.array([width / image.shape[1], height / image.shape[0]], np.float32)
    stretched = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(stretched, np.uint8), Labels(
        labels.boxes * np.tile(scale, 2), labels.scores, labels.landmarks * scale
    )


def confine(
    labels: Labels, width: int, height: int, least_visible: float, least_face: float
) -> Labels:
    """Clip boxes to the picture, and say which are no good faces any more.

    Ignored from here on (score at most 0.2) are faces whose centre left the picture, of which less
    than ``least_visible`` is left, or that are smaller than ``least_face`` pixels. Dropped are
    those of which less than 5 % is left.
    """
    boxes = labels.boxes
    if not len(boxes):
        return labels
    extent = np.array([width, height], np.float32)
    corners = boxes.reshape(-1, 2, 2)
    clipped = np.clip(corners, 0, extent)
    areas = (corners[:, 1] - corners[:, 0]).prod(1)
    left = (clipped[:, 1] - clipped[:, 0]).prod(1)
    visible = left / np.maximum(areas, 1e-6)
    centres = corners.mean(1)
    inside = ((centres >= 0) & (centres < extent)).all(1)
    good = inside & (visible >= least_visible) & (areas >= least_face**2)
    scores = np.where(good, labels.scores, np.minimum(labels.scores, np.float32(IGNORED_SCORE)))
    kept = (visible >= 0.05) & (left > 0)
    return Labels(clipped.reshape(-1, 4)[kept], scores[kept], labels.landmarks[kept])


def mirror(image: NDArray[np.uint8], labels: Labels) -> tuple[NDArray[np.uint8], Labels]:
    """Flip left and right; the left eye of the new picture was the right one of the old."""
    width = image.shape[1]
    boxes = labels.boxes[:, [2, 1, 0, 3]].copy()
    boxes[:, [0, 2]] = width - boxes[:, [0, 2]]
    landmarks = labels.landmarks[:, MIRRORED_LANDMARKS].copy()
    landmarks[..., 0] = width - landmarks[..., 0]
    return np.asarray(cv2.flip(image, 1), np.uint8), Labels(boxes, labels.scores, landmarks)
