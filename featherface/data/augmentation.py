"""Training crops: square cut-outs at a wide range of scales, mosaics, and changes of the pixels.

The size of a face on the crop is drawn first and the crop is laid around it, so that the sizes the
network sees follow the settings and not the collection. Everything works on uint8 with OpenCV:
a sample of 320 pixels takes about two milliseconds of one core.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from featherface.anchors import STRIDES
from featherface.data.drawn_masks import draw_masks, piece_of
from featherface.data.labelled_photo import LabelledPhoto
from featherface.errors import ConfigError

FACE_SCORE = 0.5
IGNORED_SCORE = 0.2
FARTHEST_TURN = 100.0  # degrees: a phone held the other way, and some
MOST_STRETCH = 1.6  # of the width to the height, against the photo's
LETTERS = string.ascii_letters + string.digits
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)
MIRRORED_LANDMARKS = [1, 0, 2, 4, 3]
SOURCE_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"crowd": 3.0, "bikes": 2.0, "flickr": 1.2, "portraits": 1.6, "sports": 0.8, "lfw": 0.6}
)


class Photos(Protocol):
    """Random access over labelled photos: a ``PhotoStore``, a ``WiderFacePhotos``, or yours."""

    sources: NDArray[np.str_]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledPhoto: ...


class CropSettings(BaseModel):
    """What a training crop may look like: chances from 0 to 1, sizes in pixels of the crop.

    A face's size is the square root of its box's area.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    face_sizes: tuple[float, float] = Field(default=(8.0, 250.0), description="log-uniform range")
    largest_share: float = Field(
        default=0.0, ge=0, le=1, description="largest face, of the crop's side, if that is more"
    )
    random_window: float = Field(
        default=0.1, ge=0, le=1, description="crops laid without a target face"
    )
    enlarge: float = Field(default=2.0, gt=0, description="most that a photo is enlarged")
    enlarge_rarely: float = Field(default=4.0, gt=0, description="the same in 1 of 20 crops")
    free_scales: tuple[float, float] = Field(
        default=(0.3, 1.5), description="without a target face"
    )
    least_cover: float = Field(default=0.75, gt=0, description="least long side, of the crop's")
    mosaic: float = Field(default=0.5, ge=0, le=1)
    mosaic_sources: tuple[str, ...] = ("lfw", "sports", "flickr", "portraits")
    mosaic_grids: tuple[float, ...] = Field(
        default=(0.6, 0.3, 0.1), description="shares of 2x2, 3x3, and so on"
    )
    mosaic_face_sizes: tuple[float, float] = (10.0, 80.0)
    mix: float = Field(default=0.0, ge=0, le=1, description="another photo shines through")
    mix_shares: tuple[float, float] = Field(default=(0.1, 0.4), description="of that photo")
    least_face: float = Field(default=4.0, ge=0, description="smaller faces are ignored")
    least_visible: float = Field(default=0.3, ge=0, le=1, description="faces seen less are ignored")
    flip: float = Field(default=0.5, ge=0, le=1)
    rotate: float = Field(default=0.2, ge=0, le=1)
    degrees: float = Field(default=10.0, ge=0, le=45)
    turn: float = Field(default=0.0, ge=0, le=1, description="turned by up to 100 degrees")
    stretch: float = Field(
        default=0.0, ge=0, le=1, description="up to 1.6 times as wide or as high as it was"
    )
    colour: float = Field(default=0.8, ge=0, le=1)
    grey: float = Field(default=0.05, ge=0, le=1)
    hide: float = Field(default=0.0, ge=0, le=1, description="faces partly covered by a patch")
    masks: float = Field(default=0.0, ge=0, le=1, description="faces with a mask drawn on them")
    letters: float = Field(default=0.0, ge=0, le=1, description="writing over the picture")
    dim: float = Field(default=0.0, ge=0, le=1, description="night, haze, little contrast")
    glare: float = Field(default=0.0, ge=0, le=1, description="over-exposed or of hard contrast")
    cast: float = Field(default=0.0, ge=0, le=1, description="coloured light")
    shade: float = Field(default=0.0, ge=0, le=1, description="light from one side")
    blur: float = Field(default=0.1, ge=0, le=1)
    longest_motion: int = Field(default=7, ge=3, description="of blur by movement, pixels")
    coarsen: float = Field(default=0.1, ge=0, le=1, description="shrunk and enlarged again")
    coarsen_to: tuple[float, float] = Field(default=(0.4, 0.8), description="of the crop's side")
    noise: float = Field(default=0.1, ge=0, le=1)
    grain: tuple[float, float] = Field(
        default=(2.0, 12.0), description="standard deviation of the noise, of 255"
    )
    jpeg: float = Field(default=0.15, ge=0, le=1)
    pad: float = Field(
        default=0.0, ge=0, le=1, description="black at the right and below, as a detector fills up"
    )


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


class TrainingCrop:
    """Cuts one augmented training crop out of a photo; the same ``rng`` state gives the same crop.

    Example:
        >>> crop = TrainingCrop(320)                                      # doctest: +SKIP
        >>> sample = crop(7, store, np.random.default_rng(0))             # doctest: +SKIP
        >>> sample.image.shape, sample.boxes.shape                        # doctest: +SKIP
        ((320, 320, 3), (5, 4))
    """

    def __init__(self, size: int = 320, settings: CropSettings | None = None) -> None:
        self.size = size
        self.settings = settings or CropSettings()
        least, largest = self.settings.face_sizes
        self.face_sizes = least, max(largest, self.settings.largest_share * size)

    def __call__(
        self,
        index: int,
        store: Photos,
        rng: np.random.Generator,
        partners: NDArray[np.int64] | None = None,
    ) -> Sample:
        """A crop of photo ``index``.

        Args:
            partners: int64 [P], photos that may fill the other tiles of a mosaic: give those of
                the training split. Without them there is no mosaic.
        """
        settings = self.settings
        photo = store[index]
        if partners is not None and not len(partners):
            partners = None
        if (
            partners is not None
            and photo.source in settings.mosaic_sources
            and rng.random() < settings.mosaic
        ):
            image, labels = self.mosaic(photo, store, partners, rng)
        else:
            image, labels = self.turned_window(
                photo, self.size, self.size, rng, self.face_sizes, self.size
            )
        if partners is not None and settings.mix and rng.random() < settings.mix:
            image, labels = self.mix(image, labels, store[int(rng.choice(partners))], rng)
        labels = confine(labels, self.size, self.size, settings.least_visible, settings.least_face)
        if rng.random() < settings.flip:
            image, labels = mirror(image, labels)
        if settings.masks:
            sure = labels.scores >= FACE_SCORE
            image = draw_masks(
                image, labels.boxes[sure], labels.landmarks[sure], settings.masks, rng
            )
        if settings.hide:
            image = hide_faces(image, labels, settings.hide, rng)
        if settings.letters and rng.random() < settings.letters:
            image = write_letters(image, rng)
        image = change_pixels(image, settings, rng)
        if settings.pad and rng.random() < settings.pad:
            image, labels = self.pad(image, labels, rng)
        return Sample(np.ascontiguousarray(image), labels.boxes, labels.scores, labels.landmarks)

    def pad(
        self, image: NDArray[np.uint8], labels: Labels, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Labels]:
        """Black strips of up to 31 pixels, as on photos filled up to a multiple of the stride."""
        width, height = (self.size - rng.integers(0, STRIDES[-1], 2)).tolist()
        padded = image.copy()
        padded[height:], padded[:, width:] = 0, 0
        settings = self.settings
        return padded, confine(labels, width, height, settings.least_visible, settings.least_face)

    def mix(
        self,
        image: NDArray[np.uint8],
        labels: Labels,
        other: LabelledPhoto,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], Labels]:
        """``image`` with another photo shining through, whose faces are ignored.

        A teacher answers on pictures that no camera takes, and its answers there teach too (Beyer
        et al., CVPR 2022).
        """
        ghost, faint = self.turned_window(
            other, self.size, self.size, rng, self.face_sizes, self.size
        )
        share = rng.uniform(*self.settings.mix_shares)
        mixed = cv2.addWeighted(image, 1 - share, ghost, share, 0)
        return np.asarray(mixed, np.uint8), Labels(
            np.concatenate([labels.boxes, faint.boxes]),
            np.concatenate([labels.scores, np.minimum(faint.scores, np.float32(IGNORED_SCORE))]),
            np.concatenate([labels.landmarks, faint.landmarks]),
        )

    def turned_window(
        self,
        photo: LabelledPhoto,
        width: int,
        height: int,
        rng: np.random.Generator,
        face_sizes: tuple[float, float],
        span: float,
    ) -> tuple[NDArray[np.uint8], Labels]:
        """:meth:`stretched_window`, turned by some degrees now and then, and far by chance."""
        settings = self.settings
        if settings.turn and rng.random() < settings.turn:
            angle = rng.uniform(-FARTHEST_TURN, FARTHEST_TURN)
        elif rng.random() < settings.rotate:
            angle = rng.uniform(-settings.degrees, settings.degrees)
        else:
            return self.stretched_window(photo, width, height, rng, face_sizes, span)
        # Room for the corners: a square of S turned by 10 degrees needs 1.16 S.
        cosine, sine = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
        wide = int(np.ceil(width * cosine + height * sine))
        high = int(np.ceil(height * cosine + width * sine))
        image, labels = self.stretched_window(photo, wide, high, rng, face_sizes, span)
        return rotate(image, labels, angle, width, height)

    def stretched_window(
        self,
        photo: LabelledPhoto,
        width: int,
        height: int,
        rng: np.random.Generator,
        face_sizes: tuple[float, float],
        span: float,
    ) -> tuple[NDArray[np.uint8], Labels]:
        """:meth:`window`, wider or higher than the photo was now and then."""
        if not self.settings.stretch or rng.random() >= self.settings.stretch:
            return self.window(photo, width, height, rng, face_sizes, span)
        # The window is of another shape and as large, so that faces keep their size.
        factor = np.exp(rng.uniform(-0.5, 0.5) * np.log(MOST_STRETCH))
        wide, high = max(1, round(width / factor)), max(1, round(height * factor))
        image, labels = self.window(photo, wide, high, rng, face_sizes, span)
        return stretch(image, labels, width, height)

    def window(
        self,
        photo: LabelledPhoto,
        width: int,
        height: int,
        rng: np.random.Generator,
        face_sizes: tuple[float, float],
        span: float,
    ) -> tuple[NDArray[np.uint8], Labels]:
        """A window of ``width`` x ``height`` on the photo, scaled so that one face gets its size.

        Args:
            face_sizes: range of the size of the chosen face, pixels of the window.
            span: side that the photo has to cover by ``least_cover`` at least.

        Returns:
            uint8 [height, width, 3], black outside the photo; labels in pixels of the window,
            neither clipped nor filtered.
        """
        settings = self.settings
        photo_height, photo_width = photo.image.shape[:2]
        enlarge = settings.enlarge_rarely if rng.random() < 0.05 else settings.enlarge
        least = min(settings.least_cover * span / max(photo_height, photo_width), enlarge)
        faces = np.flatnonzero(photo.scores >= FACE_SCORE)
        target = None
        if len(faces) and rng.random() >= settings.random_window:
            target = photo.boxes[rng.choice(faces)]
        if target is None:
            low, high = settings.free_scales
        else:
            side = float(np.sqrt((target[2] - target[0]) * (target[3] - target[1])))
            low, high = face_sizes[0] / side, face_sizes[1] / side
        low = min(max(low, least), enlarge)
        high = max(min(high, enlarge), low)
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        left = place(width / scale, photo_width, target, 0, rng)
        top = place(height / scale, photo_height, target, 1, rng)
        return cut(photo, left, top, scale, width, height, rng)

    def mosaic(
        self,
        photo: LabelledPhoto,
        store: Photos,
        partners: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], Labels]:
        """A grid of windows on the photo and its partners, with random grid lines."""
        settings = self.settings
        shares = np.asarray(settings.mosaic_grids)
        grid = 2 + int(rng.choice(len(shares), p=shares / shares.sum()))
        canvas = np.empty((self.size, self.size, 3), np.uint8)
        columns, rows = grid_lines(self.size, grid, rng), grid_lines(self.size, grid, rng)
        own = int(rng.integers(grid * grid))
        parts: list[Labels] = []
        for tile in range(grid * grid):
            x1, x2 = columns[tile % grid : tile % grid + 2]
            y1, y2 = rows[tile // grid : tile // grid + 2]
            other = photo if tile == own else store[int(partners[rng.integers(len(partners))])]
            # Cover at least 0.8 of the tile, with a face that it has room for.
            span = 0.8 * max(x2 - x1, y2 - y1) / settings.least_cover
            smallest, largest = settings.mosaic_face_sizes
            sizes = (smallest, max(smallest, min(largest, 0.8 * min(x2 - x1, y2 - y1))))
            part, labels = self.turned_window(other, x2 - x1, y2 - y1, rng, sizes, span)
            canvas[y1:y2, x1:x2] = part
            # Faces end at their tile, so they are confined before the tiles are joined.
            labels = confine(labels, x2 - x1, y2 - y1, settings.least_visible, settings.least_face)
            shift = np.array([x1, y1], np.float32)
            parts.append(
                Labels(labels.boxes + shift[[0, 1, 0, 1]], labels.scores, labels.landmarks + shift)
            )
        return canvas, Labels(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.landmarks for part in parts]),
        )


def grid_lines(size: int, grid: int, rng: np.random.Generator) -> list[int]:
    """``grid`` + 1 lines from 0 to ``size``, each inner one moved by up to 0.35 of a cell."""
    moves = rng.uniform(-0.35, 0.35, grid - 1)
    inner = [int(size * (line + 1 + move) / grid) for line, move in enumerate(moves)]
    return [0, *inner, size]


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


def dim_light(image: cv2.typing.MatLike, rng: np.random.Generator) -> cv2.typing.MatLike:
    """Night (gamma and gain) or haze (contrast down to a fifth about a grey), uint8."""
    levels = np.arange(256) / 255.0
    if rng.random() < 0.6:
        levels = 255 * rng.uniform(0.3, 1.0) * levels ** rng.uniform(1.2, 2.8)
    else:
        levels = rng.uniform(60, 190) + 255 * rng.uniform(0.2, 0.6) * (levels - 0.5)
    return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def write_letters(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One to four words of chance letters, of any size, colour and place; uint8 in and out.

    Signs, subtitles and shirts: the loops and dots of letters look like small faces.
    """
    height, width = image.shape[:2]
    written = image.copy()
    for _ in range(int(rng.integers(1, 5))):
        word = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 11))))
        scale = float(np.exp(rng.uniform(np.log(0.4), np.log(5.0)))) * height / 320
        cv2.putText(
            written,
            word,
            (int(rng.integers(-width // 4, width)), int(rng.integers(height // 10, height))),
            int(rng.choice(FONTS)),
            scale,
            rng.integers(0, 256, 3).tolist(),
            max(1, round(scale * rng.uniform(1, 6))),
            cv2.LINE_AA,
        )
    return written


def glaring_light(image: cv2.typing.MatLike, rng: np.random.Generator) -> cv2.typing.MatLike:
    """Too long exposed, or of up to three times the contrast, uint8."""
    levels = np.arange(256) / 255.0
    if rng.random() < 0.5:
        levels = rng.uniform(1.2, 2.4) * levels ** rng.uniform(0.6, 1.0)
    else:
        middle = rng.uniform(0.3, 0.7)
        levels = 0.5 + rng.uniform(1.5, 3.0) * (levels - middle)
    return cv2.LUT(image, np.clip(np.rint(255 * levels), 0, 255).astype(np.uint8))


def coloured_light(image: cv2.typing.MatLike, rng: np.random.Generator) -> cv2.typing.MatLike:
    """A lamp of a colour: each channel by 0.3 to 1.2, uint8 [H, W, 3]."""
    gains = rng.uniform(0.3, 1.2, 3)
    return cv2.transform(image, np.diag(gains).astype(np.float32))


def light_from_one_side(image: cv2.typing.MatLike, rng: np.random.Generator) -> cv2.typing.MatLike:
    """A shadow of a soft or hard edge across the picture, uint8 [H, W, 3]."""
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    across = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(np.cos(angle))
    down = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(np.sin(angle))
    edge = (down[:, None] + across + rng.uniform(-0.6, 0.6)) / rng.uniform(0.05, 1.0)
    darkest = rng.uniform(0.1, 0.6)
    light = (darkest + (1 - darkest) * np.clip(edge + 0.5, 0, 1)).astype(np.float32)
    return cv2.multiply(image, cv2.merge([light] * 3), dtype=cv2.CV_8U)


def change_pixels(
    image: NDArray[np.uint8], settings: CropSettings, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Colour, light, blur, lost resolution, noise, JPEG, each by its chance; uint8 in and out."""
    result: cv2.typing.MatLike = image
    colour, grey, blur, coarsen, noise, jpeg = rng.random(6)
    if colour < settings.colour or grey < settings.grey:
        result = cv2.transform(result, colour_matrix(rng, grey < settings.grey))
        if rng.random() < 0.3:
            levels = np.linspace(0, 1, 256) ** rng.uniform(0.7, 1.4)
            result = cv2.LUT(result, np.rint(levels * 255).astype(np.uint8))
    for chance, change_light in (
        (settings.dim, dim_light),
        (settings.glare, glaring_light),
        (settings.cast, coloured_light),
        (settings.shade, light_from_one_side),
    ):
        if chance and rng.random() < chance:
            result = change_light(result, rng)
    if blur < settings.blur:
        sigma = rng.uniform(0.4, 1.6)
        if rng.random() < 0.5:
            result = cv2.GaussianBlur(result, (0, 0), sigma)
        else:
            result = cv2.filter2D(result, -1, motion_kernel(rng, settings.longest_motion))
    if coarsen < settings.coarsen:
        height, width = image.shape[:2]
        least, most = settings.coarsen_to
        shares = rng.uniform(least, most) * rng.uniform(0.8, 1.25, 2)
        across, down = np.clip(shares, 0.875 * least, 1)
        small = (max(1, int(width * across)), max(1, int(height * down)))
        result = cv2.resize(result, small, interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:  # thumbnails are stored before they are enlarged
            result = store_jpeg(result, int(rng.integers(60, 96)))
        result = cv2.resize(result, (width, height), interpolation=cv2.INTER_LINEAR)
    if noise < settings.noise:
        cv2.setRNGSeed(int(rng.integers(2**31)))
        grain = np.empty(image.shape, np.int16)
        cv2.randn(grain, np.zeros(3), np.full(3, rng.uniform(*settings.grain)))
        result = cv2.add(result, grain, dtype=cv2.CV_8U)
    if jpeg < settings.jpeg:
        result = store_jpeg(result, int(rng.integers(30, 91)))
    return np.asarray(result, np.uint8)


def store_jpeg(image: cv2.typing.MatLike, quality: int) -> cv2.typing.MatLike:
    """``image``, uint8 [H, W, 3], as it comes back from a JPEG of ``quality`` (1 to 100)."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return image if decoded is None else decoded


def colour_matrix(rng: np.random.Generator, grey: bool) -> NDArray[np.float32]:
    """Brightness, contrast, saturation and a little hue in one affine map, float32 [3, 4]."""
    contrast = rng.uniform(0.6, 1.4)
    brightness = rng.uniform(-40, 40)
    saturation = 0.0 if grey else rng.uniform(0.5, 1.5)
    hue = rng.uniform(-0.15, 0.15)
    weights = np.array([0.299, 0.587, 0.114])
    luma = np.tile(weights, (3, 1))
    # Hue turns the colour about the grey axis (Rodrigues' formula).
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(hue) * np.eye(3) + np.sin(hue) * axis + (1 - np.cos(hue)) / 3
    colours = contrast * (luma + saturation * (turn - luma @ turn))
    offset = brightness + 127.5 * (1 - contrast)
    return np.concatenate([colours, np.full((3, 1), offset)], 1).astype(np.float32)


def motion_kernel(rng: np.random.Generator, longest: int) -> NDArray[np.float32]:
    """A blurring line of 3 to ``longest`` pixels in any direction, float32 [K, K], sum 1."""
    length = 3 + 2 * int(rng.integers((longest - 1) // 2))
    line = np.zeros((length, length), np.float32)
    line[length // 2] = 1
    middle = (length - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), rng.uniform(0, 180), 1.0)
    kernel = np.asarray(cv2.warpAffine(line, turn, (length, length)), np.float32)
    return kernel / kernel.sum()


def sample_weights(
    store: Photos,
    indices: NDArray[np.int64],
    source_weights: Mapping[str, float] = MappingProxyType({}),
) -> NDArray[np.float64]:
    """The chance of each photo of ``indices`` to be drawn, float64 [len(indices)], sum 1.

    ``source_weights`` are laid over ``SOURCE_WEIGHTS``; a source in neither weighs 1.

    Raises:
        ConfigError: every photo weighs 0.
    """
    by_source = {**SOURCE_WEIGHTS, **source_weights}
    weights = np.array([by_source.get(str(name), 1.0) for name in store.sources[indices]])
    if not weights.sum() > 0:
        raise ConfigError("source_weights: every source of these photos weighs 0; let one count")
    return weights / weights.sum()
