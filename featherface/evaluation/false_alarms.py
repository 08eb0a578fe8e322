"""What a detector takes for a face and is none, cut out to learn from.

A crop has hard negatives only where the detector errs, and a crop drawn at random seldom shows a
place where it does. So the detector looks at whole photos first (bootstrapping, Sung and Poggio,
PAMI 1998): as they are, and enlarged, where it errs the most. A box is a false alarm where no label
is, doubtful ones included, and no other detector sees anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.boxes import box_iou, box_overlap
from featherface.data.crop_geometry import Sample, confine, cut, place
from featherface.data.enlarged import scaled, stored_small
from featherface.data.labelled_photo import FACE_SCORE, LabelledPhoto
from featherface.data.shards import CROP_MARK
from featherface.data.sheet import contact_sheet
from featherface.evaluation.views import detect_in_views
from featherface.faces import Detect

SIDE = 512
SOURCE = "false-alarm"
LEAST_SCORE = 0.35
JUDGED = 0.15  # score from which on another detector's box speaks for a face
APART = 0.25  # IoU with a label or another detector's box, at most
MOST_WITHIN = 0.6  # of the box within a label: beyond, it is part of a face
MOST_A_PHOTO = 2
STORED_SMALL, SCALED = 0.45, 0.25  # shares of the photos; the others are shown as they are
FACES = (200.0, 700.0)  # largest face of a scaled photo, pixels
WHOLE = 0.7  # of a face within the crop; what shows less of it is doubtful


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
    view = shown(photo, rng)
    found = rows(detect, view.image, LEAST_SCORE)
    if len(view.boxes):
        boxes = found[:, :4]
        within = box_overlap(boxes, view.boxes) / (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
        apart = box_iou(boxes, view.boxes).max(1) < APART
        found = found[apart & (within.max(1) < MOST_WITHIN)]
    for judge in judges:
        if not len(found):
            break
        seen = rows(judge, view.image, JUDGED)
        if len(seen):
            found = found[box_iou(found[:, :4], seen[:, :4]).max(1) < APART]
    worst = found[np.argsort(-found[:, 4])][:MOST_A_PHOTO]
    return [crop_of(view, row, n, rng) for n, row in enumerate(worst)]


def rows(detect: Detect, image: NDArray[np.uint8], least: float) -> NDArray[np.float32]:
    """Boxes and scores [N, 5] of ``least`` and more."""
    found = detect_in_views(detect, image).rows().astype(np.float32)
    return found[found[:, 4] >= least]


def shown(photo: LabelledPhoto, rng: np.random.Generator) -> LabelledPhoto:
    """The photo as it is, as one that was stored small, or scaled by its largest face."""
    share = rng.random()
    if share < STORED_SMALL:
        return stored_small(photo)
    if share < STORED_SMALL + SCALED and (photo.scores >= FACE_SCORE).any():
        return scaled(photo, rng.uniform(*FACES))
    return replace(photo, image=np.ascontiguousarray(photo.image))


def crop_of(
    view: LabelledPhoto, row: NDArray[np.float32], number: int, rng: np.random.Generator
) -> FalseAlarm:
    """A crop of ``view`` with the box of ``row`` somewhere in it, black beyond the photo.

    Faces of which less than 0.7 are left are doubtful: neither faces nor background.
    """
    height, width = view.image.shape[:2]
    left, top = (
        round(place(SIDE, size, row, axis, rng)) for axis, size in enumerate((width, height))
    )
    image, labels = cut(view, left, top, 1.0, SIDE, SIDE, rng)
    labels = confine(labels, SIDE, SIDE, WHOLE, 0.0)
    key = f"{view.key}{CROP_MARK}{number}"
    crop = LabelledPhoto(key, SOURCE, image, labels.boxes, labels.scores, labels.landmarks)
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
