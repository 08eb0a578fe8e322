"""How well large faces are found: a photo of one or two people, or a camera held at arm's length.

    python -m benchmarks.large_faces --data data/train model.onnx peers/yunet_n.onnx

Held-out photos of all sources but crowds and the 224 pixels of sports, each scaled until its
largest face has 60, 120, 250, 400 and 600 pixels, at most 1,400 pixels along its long side. Tells
AP at IoU 0.5 and how many boxes of a score of 0.5 and more are no face; most of these photos are
enlarged, so they are blurred, for all detectors alike. An ONNX file that is named like a detector
of ``benchmarks.peers`` is run as that, any other as one of ours. Writes ``large_faces.json`` and
``large_faces.md``. A minute or more a detector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.comparison import (
    Cache,
    Data,
    Out,
    Weights,
    detector_name,
    detector_table,
    false_boxes,
    open_detector,
    write_comparison,
)
from featherface.data.enlarged import scaled
from featherface.data.labelled_photo import FACE_SCORE
from featherface.data.shards import PhotoStore
from featherface.evaluation.average_precision import match_voc
from featherface.evaluation.validation import held_out_photos
from featherface.evaluation.views import detect_in_views

SIZES = (60, 120, 250, 400, 600)
LEFT_OUT = ("crowd", "sports")


def main(
    weights: Weights,
    data: Data,
    cache: Cache = Path("cache"),
    out: Out = Path("results"),
    every: Annotated[int, typer.Option(min=1, help="take one held-out photo of so many")] = 2,
) -> None:
    """Measure and write."""
    store = PhotoStore(data, cache)
    indices = [i for i in held_out_photos(store) if store.sources[i] not in LEFT_OUT][::every]
    photos = [
        photo for photo in map(store.__getitem__, indices) if (photo.scores >= FACE_SCORE).any()
    ]
    doubtful = [photo.scores < FACE_SCORE for photo in photos]
    figures: dict[str, dict[str, tuple[float, int]]] = {}
    faces = 0
    for path in weights:
        detect = open_detector(path)
        row = figures[detector_name(path)] = {}
        for size in SIZES:
            found, boxes = [], []
            for photo in photos:
                shown = scaled(photo, size)
                found.append(detect_in_views(detect, shown.image).rows())
                boxes.append(shown.boxes)
            matches = match_voc(found, boxes, doubtful)
            faces, row[str(size)] = matches.faces, (matches.average_precision, false_boxes(matches))
    written = {"photos": len(photos), "faces": faces, "ap50_and_false_boxes": figures}
    write_comparison(out, "large_faces", written, markdown(written))


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    rows = {
        name: [f"{100 * ap:.1f} ({false})" for ap, false in row.values()]
        for name, row in result["ap50_and_false_boxes"].items()
    }
    note = (
        f"AP at IoU 0.5 in percent of {result['faces']} faces on {result['photos']} held-out "
        "photos, scaled until the largest face of each has so many pixels; in brackets the boxes "
        "of a score of 0.5 and more that are no face."
    )
    return detector_table([f"{size} pixels" for size in SIZES], rows, note)


if __name__ == "__main__":
    typer.run(main)
