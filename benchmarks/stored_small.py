"""Photos that were stored small and enlarged again, as copies of copies on the web are.

    python -m benchmarks.stored_small --data data/train model.onnx peers/yunet_n.onnx

Takes the held-out photos of all sources but crowds, squeezes each to 416x416, stores it as a JPEG,
and enlarges it until its long side has 1,024 pixels: sizes of faces as in whole photos, and no
more detail than a thumbnail has. Tells AP at IoU 0.5, in all and by face size, the share of faces
found by the time that 10, 30 and 100 false boxes came before them, and how many boxes of a score
of 0.5 and more are no face. An ONNX file that is named like a detector of ``benchmarks.peers`` is
run as that, any other as one of ours. Writes ``stored_small.json`` and ``stored_small.md``. Two
minutes or more a detector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
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
from benchmarks.scenes import FALSE_ALARMS, recall_at
from benchmarks.small_faces import CROWDS
from featherface.data.enlarged import LONG_SIDE, STORED, stored_small
from featherface.data.labelled_photo import FACE_SCORE
from featherface.data.shards import PhotoStore
from featherface.evaluation.average_precision import match_voc
from featherface.evaluation.validation import held_out_photos, score_validation
from featherface.evaluation.views import detect_in_views

SIZES = ("16-32", "32-96", "over 96")


def main(
    weights: Weights,
    data: Data,
    cache: Cache = Path("cache"),
    out: Out = Path("results"),
    every: Annotated[int, typer.Option(min=1, help="take one held-out photo of so many")] = 1,
) -> None:
    """Measure and write."""
    store = PhotoStore(data, cache)
    chosen = [i for i in held_out_photos(store) if store.sources[i] != CROWDS][::every]
    photos = [store[i] for i in chosen]
    doubtful = [photo.scores < FACE_SCORE for photo in photos]
    figures: dict[str, dict[str, float]] = {}
    faces = 0
    for path in weights:
        detect = open_detector(path)
        found, boxes = [], []
        for photo in photos:
            shown = stored_small(photo)
            found.append(detect_in_views(detect, shown.image).rows())
            boxes.append(shown.boxes.astype(np.float64))
        matches = match_voc(found, boxes, doubtful)
        by_size = score_validation(found, boxes, doubtful).by_size
        faces = matches.faces
        figures[detector_name(path)] = {
            "ap50": matches.average_precision,
            **{size: by_size[size].ap for size in SIZES},
            **{str(count): recall_at(matches, count) for count in FALSE_ALARMS},
            "false_boxes": false_boxes(matches),
        }
    written = {"photos": len(photos), "faces": faces, "found": figures}
    write_comparison(out, "stored_small", written, markdown(written))


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    columns = ["AP", *SIZES, *(f"found at {count} false" for count in FALSE_ALARMS), "false"]
    rows = {
        name: [
            str(value) if key == "false_boxes" else f"{100 * value:.1f}"
            for key, value in row.items()
        ]
        for name, row in result["found"].items()
    }
    note = (
        f"Percent of {result['faces']} faces on {result['photos']} held-out photos of all sources "
        f"but crowds, stored as JPEGs of {STORED}x{STORED} and enlarged to a long side of "
        f"{LONG_SIDE:,} pixels; AP in all and by the size of the face then. False: boxes of a "
        "score of 0.5 and more that are no face."
    )
    return detector_table(columns, rows, note)


if __name__ == "__main__":
    typer.run(main)
