"""The speed of the WIDER FACE protocol: the package against the plain loop.

    python -m benchmarks.wider_protocol --predictions wider_predictions.npz \\
        --ground-truth wider_face_split --expected wider_expected_ap.json

``--predictions`` is a folder of ``EVENT/PHOTO.txt`` files, or an ``.npz`` with ``names``,
``events``, ``offsets`` and ``boxes`` (x1, y1, x2, y2, score). Writes
``results/benchmark/wider_protocol.json``. Both sides get predictions and ground truth in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.wider_reference_loop import plain_wider_ap
from featherface.evaluation.wider_face import score_predictions
from featherface.evaluation.wider_ground_truth import WiderPhoto, read_official_ground_truth
from featherface.evaluation.wider_predictions import read_predictions


def read_predictions_npz(path: Path) -> dict[str, NDArray[np.float64]]:
    """``event/name`` to ``[N, 5]`` x1, y1, x2, y2, score, from the archive described above."""
    with np.load(path, allow_pickle=False) as archive:
        boxes = archive["boxes"].astype(np.float64)
        offsets = archive["offsets"]
        keys = [
            f"{event}/{name}"
            for event, name in zip(archive["events"], archive["names"], strict=True)
        ]
    return {key: boxes[offsets[i] : offsets[i + 1]] for i, key in enumerate(keys)}


def measure(
    predictions: dict[str, NDArray[np.float64]], photos: Sequence[WiderPhoto], repeats: int = 5
) -> dict[str, object]:
    """Time both sides (package: median of ``repeats``; loop: once) and compare their results."""
    ours_seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        ours = score_predictions(predictions, photos).as_dict()
        ours_seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    loop = plain_wider_ap(predictions, photos)
    loop_seconds = time.perf_counter() - start
    median = statistics.median(ours_seconds)
    return {
        "predictions": int(sum(len(faces) for faces in predictions.values())),
        "photos": len(photos),
        "package_seconds": median,
        "package_seconds_all": ours_seconds,
        "loop_seconds": loop_seconds,
        "ratio": loop_seconds / median,
        "package": ours,
        "loop": loop,
        "largest_difference_to_loop": max(abs(ours[d] - loop[d]) for d in ours),
    }


def main() -> None:
    """Measure, print one line, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--ground-truth", type=Path, required=True)
    parser.add_argument("--expected", type=Path, help="JSON with the expected easy, medium, hard")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark/wider_protocol.json"))
    options = parser.parse_args()
    start = time.perf_counter()
    photos = read_official_ground_truth(options.ground_truth)
    ground_truth_seconds = time.perf_counter() - start
    start = time.perf_counter()
    if options.predictions.suffix == ".npz":
        predictions = read_predictions_npz(options.predictions)
    else:
        predictions = read_predictions(options.predictions, photos)
    predictions_seconds = time.perf_counter() - start
    record = measure(predictions, photos)
    record |= {
        "read_ground_truth_seconds": ground_truth_seconds,
        "read_predictions_seconds": predictions_seconds,
    }
    if options.expected:
        expected = json.loads(options.expected.read_text(encoding="utf-8"))
        ours = record["package"]
        assert isinstance(ours, dict)
        record["largest_difference_to_expected"] = max(abs(ours[d] - expected[d]) for d in ours)
    record |= {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.out.with_suffix(".part")
    unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, options.out)
    print(
        f"package {record['package_seconds']:.3f} s, plain loop {record['loop_seconds']:.1f} s, "
        f"ratio {record['ratio']:.0f}; written to {options.out}"
    )


if __name__ == "__main__":
    main()
