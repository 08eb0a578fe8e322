"""How well small faces are found that do not stand in crowds.

    python -m benchmarks.small_faces --data data/train model.onnx peers/yunet_n.onnx

The small faces of the held-out photos are those of crowds, nearly all. So this takes the held-out
photos of every other source, shrinks each until its middle face has 10, 14, 20 and 40 pixels, lays
them side by side on sheets of 640x480, and measures AP at IoU 0.5. An ONNX file that is named like
a detector of ``benchmarks.peers`` is run as that, any other as one of ours. Writes
``small_faces.json`` and ``small_faces.md``. Ten seconds a detector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.comparison import (
    Cache,
    Data,
    Out,
    Weights,
    detector_name,
    detector_table,
    open_detector,
    write_comparison,
)
from featherface.data.labelled_photo import FACE_SCORE
from featherface.data.shards import PhotoStore
from featherface.evaluation.validation import held_out_photos, score_validation
from featherface.evaluation.views import detect_in_views

SIZES = (10, 14, 20, 40)
WIDTH, HEIGHT = 640, 480
CROWDS = "crowd"

Boxes = NDArray[np.float32]
Scores = NDArray[np.float32]


class Sheets:
    """Small photos side by side, row under row, on as many sheets as it takes."""

    def __init__(self) -> None:
        self.images: list[NDArray[np.uint8]] = []
        self.boxes: list[list[Boxes]] = []
        self.scores: list[list[Scores]] = []
        self._x = self._y = WIDTH  # no sheet yet
        self._row = 0

    def add(self, image: NDArray[np.uint8], boxes: Boxes, scores: Scores) -> None:
        """Lay ``image``, which is no larger than a sheet, with its labels in its pixels."""
        height, width = image.shape[:2]
        if self._x + width > WIDTH:
            self._x, self._y, self._row = 0, self._y + self._row, 0
        if not self.images or self._y + height > HEIGHT:
            self.images.append(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            self.boxes.append([])
            self.scores.append([])
            self._x = self._y = self._row = 0
        self.images[-1][self._y : self._y + height, self._x : self._x + width] = image
        self.boxes[-1].append(boxes + np.array([self._x, self._y] * 2, np.float32))
        self.scores[-1].append(scores)
        self._x, self._row = self._x + width, max(self._row, height)


def shrink_photos(store: PhotoStore, size: float) -> Sheets:
    """The held-out photos outside of crowds, each with a middle face of ``size`` pixels.

    Photos without a sure face, with smaller ones, or still too large for a sheet are left out.
    """
    small = []
    for index in held_out_photos(store):
        if store.sources[index] == CROWDS:
            continue
        photo = store[index]
        sides = np.sqrt((photo.boxes[:, 2:] - photo.boxes[:, :2]).prod(1))
        sides = sides[photo.scores >= FACE_SCORE]
        factor = size / float(np.median(sides)) if len(sides) else 2.0
        height, width = photo.image.shape[:2]
        new = (max(1, round(width * factor)), max(1, round(height * factor)))
        if factor <= 1 and new[0] <= WIDTH and new[1] <= HEIGHT:
            image = cv2.resize(photo.image, new, interpolation=cv2.INTER_AREA)
            scale = np.array([new[0] / width, new[1] / height] * 2, np.float32)
            small.append((np.asarray(image, np.uint8), photo.boxes * scale, photo.scores))
    sheets = Sheets()
    for image, boxes, scores in sorted(small, key=lambda item: item[0].shape[0]):
        sheets.add(image, boxes, scores)
    return sheets


def main(
    weights: Weights,
    data: Data,
    cache: Cache = Path("cache"),
    out: Out = Path("results"),
) -> None:
    """Measure and write."""
    store = PhotoStore(data, cache)
    figures: dict[str, dict[str, float]] = {detector_name(path): {} for path in weights}
    faces: dict[str, int] = {}
    for size in SIZES:
        sheets = shrink_photos(store, size)
        boxes = [np.concatenate(one).astype(np.float64) for one in sheets.boxes]
        doubtful = [np.concatenate(one) < FACE_SCORE for one in sheets.scores]
        for path in weights:
            detect = open_detector(path)
            found = [detect_in_views(detect, image).rows() for image in sheets.images]
            result = score_validation(found, boxes, doubtful)
            figures[detector_name(path)][str(size)] = result.ap
            faces[str(size)] = result.faces
    written = {"faces": faces, "ap50": figures}
    write_comparison(out, "small_faces", written, markdown(written))


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    sizes = [str(size) for size in SIZES]
    head = [f"{size} pixels ({result['faces'][size]} faces)" for size in sizes]
    rows = {
        name: [f"{100 * row[size]:.1f}" for size in sizes] for name, row in result["ap50"].items()
    }
    note = "AP at IoU 0.5 in percent on shrunk held-out photos of all sources but crowds."
    return detector_table(head, rows, note)


if __name__ == "__main__":
    typer.run(main)
