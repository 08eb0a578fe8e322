"""What a detector takes for a face and is none, cut out to learn from.

A crop has hard negatives only where the detector errs, and a crop drawn at random seldom shows a
place where it does. So the detector looks at whole photos first (bootstrapping, Sung and Poggio,
PAMI 1998): as they are, and enlarged, where it errs the most. A box is a false alarm where no label
is, doubtful ones included, and no other detector sees anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.boxes import box_iou
from featherface.data.augmentation import FACE_SCORE, Sample
from featherface.data.enlarged import Enlarged, scaled, stored_small
from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.shards import CROP_MARK
from featherface.data.sheet import contact_sheet
from featherface.evaluation.views import Detect, detect_in_views

SIDE = 512
SOURCE = "false-alarm"
LEAST_SCORE = 0.35
JUDGED = 0.15  # score from which on another detector's box speaks for a face
APART = 0.25  # IoU with a label or another detector's box, at most
MOST_WITHIN = 0.6  # of the box within a label: beyond, it is part of a face
MOST_A_PHOTO = 2
STORED_SMALL, SCALED = 0.45, 0.25  # shares of the photos; the others are shown as they are
FACES = (200.0, 500.0)  # largest face of a scaled photo, pixels
WHOLE = 0.7  # of a face within the crop; what shows less of it is doubtful
LEAST_PART = 0.05


class FalseAlarm(NamedTuple):
    """A crop of 512 pixels with its labels, and the box ``[4]`` in it that is no face."""

    crop: LabelledPhoto
    box: NDArray[np.floating]
    score: float


def search(
    photo: LabelledPhoto, detect: Detect, judges: Sequence[Detect], seed: int
) -> list[FalseAlarm]:
    """The worst two false alarms of ``detect`` on one view of ``photo``, of score 0.35 and more.

    ``judges`` are other detectors, asked where ``detect`` errs. The same ``seed`` gives a photo the
    same view.
    """
    rng = np.random.default_rng([seed, crc32(photo.key.encode())])
    image, boxes = shown(photo, rng)
    found = rows(detect, image, LEAST_SCORE)
    if len(boxes):
        found = found[
            (box_iou(found[:, :4], boxes.astype(np.float32)).max(1) < APART)
            & (share_within(found[:, :4], boxes).max(1) < MOST_WITHIN)
        ]
    for judge in judges:
        if not len(found):
            break
        seen = rows(judge, image, JUDGED)
        if len(seen):
            found = found[box_iou(found[:, :4], seen[:, :4]).max(1) < APART]
    worst = found[np.argsort(-found[:, 4])][:MOST_A_PHOTO]
    return [cut(photo, (image, boxes), row, f"{CROP_MARK}{n}", rng) for n, row in enumerate(worst)]


def rows(detect: Detect, image: NDArray[np.uint8], least: float) -> NDArray[np.float32]:
    """Boxes and scores [N, 5] of ``least`` and more."""
    found = detect_in_views(detect, image).rows().astype(np.float32)
    return found[found[:, 4] >= least]


def shown(photo: LabelledPhoto, rng: np.random.Generator) -> Enlarged:
    """The photo as it is, as one that was stored small, or scaled by its largest face."""
    share = rng.random()
    if share < STORED_SMALL:
        return stored_small(photo)
    if share < STORED_SMALL + SCALED and (photo.scores >= FACE_SCORE).any():
        return scaled(photo, rng.uniform(*FACES))
    return np.ascontiguousarray(photo.image), photo.boxes.astype(np.float64)


def share_within(boxes: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.floating]:
    """How much of each of ``boxes`` [N, 4] lies within each of ``others`` [M, 4]; [N, M]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.asarray((high - low).clip(0).prod(2) / area.clip(1e-9)[:, None])


def cut(
    photo: LabelledPhoto,
    view: Enlarged,
    row: NDArray[np.floating],
    mark: str,
    rng: np.random.Generator,
) -> FalseAlarm:
    """A crop of ``view`` with the box of ``row`` somewhere in it, black beyond the photo.

    Faces of which less than 0.7 are left are doubtful: neither faces nor background.
    """
    image, boxes = view
    size = np.array(image.shape[1::-1])
    slack = np.maximum(SIDE - (row[2:4] - row[:2]), 0)
    corner = np.round(row[:2] - rng.uniform(0, 1, 2) * slack)
    # Within the photo where it is larger than the crop, with all of it in the crop where not.
    low, high = np.minimum(0, size - SIDE), np.maximum(0, size - SIDE)
    left, top = (int(x) for x in corner.clip(low, high))
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    part = image[max(top, 0) : top + SIDE, max(left, 0) : left + SIDE]
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part

    moved = boxes - np.array([left, top] * 2)
    inside = moved.clip(0, SIDE)
    share = (inside[:, 2:] - inside[:, :2]).prod(1) / (moved[:, 2:] - moved[:, :2]).prod(1)
    kept = share > LEAST_PART
    doubtful = np.minimum(photo.scores, FACE_SCORE / 2)
    scale = size / np.array(photo.image.shape[1::-1])
    crop = LabelledPhoto(
        photo.key + mark,
        SOURCE,
        canvas,
        inside[kept].astype(np.float32),
        np.where(share < WHOLE, doubtful, photo.scores)[kept].astype(np.float32),
        (photo.landmarks * scale - [left, top])[kept].astype(np.float32),
    )
    return FalseAlarm(crop, row[:4] - np.array([left, top] * 2), float(row[4]))


def picture(alarms: Sequence[FalseAlarm]) -> NDArray[np.uint8]:
    """The crops at half their size with the labels, and the false alarms in red; uint8 RGB."""
    samples = []
    for crop, box, _ in alarms:
        image = crop.image.copy()
        x1, y1, x2, y2 = (round(float(x)) for x in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), (255, 0, 0), 5)
        samples.append(Sample(image, crop.boxes, crop.scores, crop.landmarks))
    sheet = contact_sheet(samples)
    height, width = sheet.shape[:2]
    half = cv2.resize(sheet, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(half, np.uint8)
