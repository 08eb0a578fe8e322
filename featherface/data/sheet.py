"""A contact sheet of training crops with their faces drawn in, to look at what training sees."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.data.crop_geometry import Sample
from featherface.data.labelled_photo import FACE_SCORE

FACE_COLOUR = (60, 220, 60)
IGNORED_COLOUR = (255, 150, 0)
LANDMARK_COLOURS = ((255, 60, 60), (80, 130, 255), (255, 255, 80), (255, 80, 255), (80, 255, 255))
LANDMARK_NAMES = ("left eye", "right eye", "nose", "left mouth", "right mouth")
LEGEND_HEIGHT = 56
MARGIN = 6


def draw_sample(sample: Sample) -> NDArray[np.uint8]:
    """A copy of the crop, uint8 RGB [S, S, 3], with boxes and landmarks."""
    image = sample.image.copy()
    for box, score, points in zip(sample.boxes, sample.scores, sample.landmarks, strict=True):
        is_face = score >= FACE_SCORE
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        colour = FACE_COLOUR if is_face else IGNORED_COLOUR
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), colour, 1)
        if not is_face or x2 - x1 < 12:
            continue
        radius = max(1, (x2 - x1) // 40)
        for point, point_colour in zip(points, LANDMARK_COLOURS, strict=True):
            if np.isfinite(point).all():
                cv2.circle(image, (int(point[0]), int(point[1])), radius, point_colour, -1)
    return image


def contact_sheet(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    """Crops of one size in a near-square grid above a legend; uint8 RGB [H, W, 3]."""
    size = samples[0].image.shape[0]
    columns = int(np.ceil(np.sqrt(len(samples))))
    rows = -(-len(samples) // columns)
    pitch = size + MARGIN
    width = max(columns * pitch + MARGIN, 640)
    sheet = np.full((rows * pitch + MARGIN + LEGEND_HEIGHT, width, 3), 32, np.uint8)
    for place, sample in enumerate(samples):
        x = MARGIN + place % columns * pitch
        y = MARGIN + place // columns * pitch
        sheet[y : y + size, x : x + size] = draw_sample(sample)
    draw_legend(sheet[-LEGEND_HEIGHT:])
    return sheet


def draw_legend(strip: NDArray[np.uint8]) -> None:
    """Write what the colours mean into ``strip``, uint8 RGB [56, W, 3], in place."""
    x = 12
    for name, colour in (("face", FACE_COLOUR), ("ignored", IGNORED_COLOUR)):
        cv2.rectangle(strip, (x, 8), (x + 14, 22), colour, 2)
        x = write(strip, name, x + 22, 20)
    x = 12
    for name, colour in zip(LANDMARK_NAMES, LANDMARK_COLOURS, strict=True):
        cv2.circle(strip, (x + 7, 40), 5, colour, -1)
        x = write(strip, name, x + 22, 45)


def write(strip: NDArray[np.uint8], text: str, x: int, baseline: int) -> int:
    """Write ``text`` and return where the next word may begin."""
    font, scale, white = cv2.FONT_HERSHEY_SIMPLEX, 0.5, (235, 235, 235)
    cv2.putText(strip, text, (x, baseline), font, scale, white, 1, cv2.LINE_AA)
    (width, _), _ = cv2.getTextSize(text, font, scale, 1)
    return x + width + 20
