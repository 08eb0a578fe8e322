"""Training crops: square cut-outs at a wide range of scales, mosaics, and changes of the pixels.

The size of a face on the crop is drawn first and the crop is laid around it, so that the sizes the
network sees follow the settings and not the collection. Everything works on uint8 with OpenCV:
a sample of 320 pixels takes about two milliseconds of one core.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.anchors import STRIDES
from featherface.data.crop_geometry import (
    Labels,
    Sample,
    confine,
    cut,
    mirror,
    place,
    rotate,
    stretch,
)
from featherface.data.crop_settings import CropSettings
from featherface.data.drawn_masks import draw_masks
from featherface.data.hidden_faces import hide_faces
from featherface.data.labelled_photo import FACE_SCORE, IGNORED_SCORE, LabelledPhoto, Photos
from featherface.data.pixel_changes import change_pixels, write_letters

FARTHEST_TURN = 100.0  # degrees: a phone held the other way, and some
MOST_STRETCH = 1.6  # of the width to the height, against the photo's


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
