"""How much of what the teacher finds its students find, beside what the labels say.

    python -m benchmarks.agreement --data data/train --teacher v1.onnx student.onnx

What V1 knows of photos unlike ours, it learned on WIDER FACE, which the held-out photos cannot
show. So its sure detections on them (a score of 0.6 and more) are taken for faces, its others are
ignored, and AP at IoU 0.5 is measured against these, beside AP against the labels. A student that
drifts away from its teacher shows it here first. Photos are enlarged up to twice. Writes
``agreement.json`` and ``agreement.md``. A minute a detector.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.comparison import (
    Cache,
    Data,
    Out,
    detector_name,
    detector_table,
    open_detector,
    write_comparison,
)
from featherface.data.labelled_photo import FACE_SCORE
from featherface.data.shards import PhotoStore
from featherface.evaluation.validation import held_out_photos, score_validation
from featherface.evaluation.views import detect_in_views

SURE = 0.6
ENLARGE = 2.0
LONG_SIDE = 900


def main(
    weights: Annotated[list[Path], typer.Argument(help="ONNX files of the students")],
    data: Data,
    teacher: Annotated[Path, typer.Option(help="ONNX file of the teacher")],
    cache: Cache = Path("cache"),
    out: Out = Path("results"),
    photos: Annotated[int, typer.Option(min=1, help="held-out photos to look at")] = 120,
) -> None:
    """Measure and write."""
    store = PhotoStore(data, cache)
    indices = held_out_photos(store, limit=photos)
    shown = list(enlarged(store, indices))

    def found(path: Path) -> list[NDArray[np.float64]]:
        detect = open_detector(path)
        return [detect_in_views(detect, image).rows() for image, _ in shown]

    taught = found(teacher)
    truths = {
        "teacher": ([rows[:, :4] for rows in taught], [rows[:, 4] < SURE for rows in taught]),
        "labels": (
            [store[i].boxes * factor for i, (_, factor) in zip(indices, shown, strict=True)],
            [store[i].scores < FACE_SCORE for i in indices],
        ),
    }
    figures: dict[str, dict[str, float]] = {}
    faces: dict[str, int] = {}
    for path in [teacher, *weights]:
        rows = taught if path == teacher else found(path)
        results = {name: score_validation(rows, *truth) for name, truth in truths.items()}
        figures[detector_name(path)] = {n: r.ap for n, r in results.items()}
        faces = {name: result.faces for name, result in results.items()}
    written = {"photos": len(indices), "faces": faces, "ap50": figures}
    write_comparison(out, "agreement", written, markdown(written))


def enlarged(
    store: PhotoStore, indices: list[int]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    """Photos at up to twice their size, and the factors for boxes, float64 ``[4]``."""
    for index in indices:
        image = np.ascontiguousarray(store[index].image)
        height, width = image.shape[:2]
        factor = max(1.0, min(ENLARGE, LONG_SIDE / max(height, width)))
        size = (round(width * factor), round(height * factor))
        larger = np.asarray(cv2.resize(image, size), np.uint8)
        yield larger, np.array([size[0] / width, size[1] / height] * 2)


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    faces = result["faces"]
    columns = [f"against the {truth} ({faces[truth]} faces)" for truth in ("teacher", "labels")]
    rows = {
        name: [f"{100 * row['teacher']:.1f}", f"{100 * row['labels']:.1f}"]
        for name, row in result["ap50"].items()
    }
    note = f"AP at IoU 0.5 in percent on {result['photos']} held-out photos."
    return detector_table(columns, rows, note)


if __name__ == "__main__":
    typer.run(main)
