"""False alarms outside of crowds, where a background is most of the photo.

    python -m benchmarks.scenes --data data/train model.onnx peers/yunet_n.onnx

Detects on the held-out photos of all sources but crowds, enlarged twice, and tells AP at IoU 0.5
and the share of faces found by the time that 10, 30 and 100 false boxes came before them, which
does not depend on what a detector's scores mean. An ONNX file that is named like a detector of
``benchmarks.peers`` is run as that, any other as one of ours. Writes ``scenes.json`` and
``scenes.md``. Half a minute a detector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import typer

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
from benchmarks.small_faces import CROWDS
from featherface.data.labelled_photo import FACE_SCORE
from featherface.data.shards import PhotoStore
from featherface.evaluation.average_precision import VocMatches, match_voc
from featherface.evaluation.validation import held_out_photos
from featherface.evaluation.views import detect_in_views

ENLARGED = 2
FALSE_ALARMS = (10, 30, 100)


def recall_at(matches: VocMatches, false_alarms: int) -> float:
    """The share of faces found before false box number ``false_alarms`` + 1, best score first."""
    seen = np.cumsum(~matches.hit) <= false_alarms
    return float(matches.hit[seen].sum() / max(matches.faces, 1))


def main(
    weights: Weights,
    data: Data,
    cache: Cache = Path("cache"),
    out: Out = Path("results"),
) -> None:
    """Measure and write."""
    store = PhotoStore(data, cache)
    photos = [store[i] for i in held_out_photos(store) if store.sources[i] != CROWDS]
    boxes = [ENLARGED * photo.boxes.astype(np.float64) for photo in photos]
    doubtful = [photo.scores < FACE_SCORE for photo in photos]
    figures: dict[str, dict[str, float]] = {}
    faces = 0
    for path in weights:
        detect = open_detector(path)
        found = []
        for photo in photos:
            image = cv2.resize(np.ascontiguousarray(photo.image), None, fx=ENLARGED, fy=ENLARGED)
            found.append(detect_in_views(detect, np.asarray(image, np.uint8)).rows())
        matches = match_voc(found, boxes, doubtful)
        faces = matches.faces
        figures[detector_name(path)] = {"ap50": matches.average_precision} | {
            str(count): recall_at(matches, count) for count in FALSE_ALARMS
        }
    written = {"photos": len(photos), "faces": faces, "found": figures}
    write_comparison(out, "scenes", written, markdown(written))


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    columns = ["AP", *(f"found at {count} false" for count in FALSE_ALARMS)]
    rows = {
        name: [f"{100 * value:.1f}" for value in row.values()]
        for name, row in result["found"].items()
    }
    note = (
        f"Percent of {result['faces']} faces on {result['photos']} held-out photos of all sources "
        "but crowds, enlarged twice."
    )
    return detector_table(columns, rows, note)


if __name__ == "__main__":
    typer.run(main)
