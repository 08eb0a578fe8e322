"""Where the time of ``FaceDetector`` goes: decode, resize, input blob, network,
post-processing, drawing.

    python -m benchmarks.profile_detect

Two settings: the package's example photo as a JPEG of 1280x960 that is brought to 640x480, and the
same with the network's answer replaced by that of 400 faces (the network runs all the same), six
boxes each. Writes ``results/benchmark/profile.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.analysis.benchmark import fill
from featherface.analysis.contenders import PACKAGE
from featherface.analysis.machine import describe_machine
from featherface.anchors import encode_boxes, make_anchors
from featherface.boxes import box_iou
from featherface.detector import FaceDetector, _to_blob
from featherface.evaluation.result_files import write_result_json
from featherface.evaluation.views import read_rgb
from featherface.faces import Faces
from featherface.images import read_image

WIDTH, HEIGHT = 640, 480
BOXES_A_FACE = 6
PARTS = ("decode", "resize", "input blob", "network", "post-processing", "drawing")

Outputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def crowd_outputs(columns: int = 20, rows: int = 20) -> Outputs:
    """The network's answer to ``rows * columns`` faces at 640x480, six anchors a face over 0.5."""
    random = np.random.default_rng(0)
    anchors = make_anchors(HEIGHT, WIDTH)
    y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1) + 0.5
    centres = np.stack([x * WIDTH / columns, y * HEIGHT / rows], axis=1)
    halves = np.array([9, 10])
    faces = np.concatenate([centres - halves, centres + halves], axis=1).astype(np.float32)
    corners = np.concatenate(
        [anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], axis=1
    )
    scores = random.uniform(0, 0.05, len(anchors)).astype(np.float32)
    boxes = random.normal(0, 0.1, (len(anchors), 4)).astype(np.float32)
    for face in faces:
        nearest = np.argsort(-box_iou(face[None], corners)[0])[:BOXES_A_FACE]
        scores[nearest] = random.uniform(0.55, 0.95, BOXES_A_FACE)
        wanted = face + random.normal(0, 0.8, (BOXES_A_FACE, 4)).astype(np.float32)
        boxes[nearest] = encode_boxes(wanted, anchors[nearest])
    landmarks = random.normal(0, 0.5, (len(anchors), 10)).astype(np.float32)
    return scores[None], boxes[None], landmarks[None]


class Stopwatch:
    """CPU milliseconds of named parts: what else runs on the machine does not count."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {part: [] for part in PARTS}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.samples[part].append(1000 * (time.process_time() - start))


def profile(
    detector: FaceDetector, file: bytes, crowd: Outputs | None, repeats: int
) -> dict[str, Any]:
    """Median milliseconds and share of each part over ``repeats`` pictures."""
    watch = Stopwatch()
    faces = Faces.none()
    for _ in range(repeats):
        with watch("decode"):
            image = read_image(file)
        with watch("resize"):
            placed = detector._place(image, bgr=False)
        with watch("input blob"):
            blob = _to_blob([placed], *placed.padded)
        with watch("network"):
            outputs = detector.run_network(blob)
        with watch("post-processing"):
            faces = detector._find(crowd or outputs, [placed], *placed.padded)[0]
        with watch("drawing"):
            faces.draw(image)
    medians = {part: statistics.median(times) for part, times in watch.samples.items()}
    whole_call = sum(medians[part] for part in PARTS if part not in ("decode", "drawing"))
    return {
        "faces": len(faces),
        "milliseconds": {part: round(value, 3) for part, value in medians.items()},
        "share": {part: round(value / sum(medians.values()), 4) for part, value in medians.items()},
        "post_processing_share_of_call": round(medians["post-processing"] / whole_call, 4),
    }


def main() -> None:
    """Measure both settings, print them, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("results/benchmark/profile.json"))
    options = parser.parse_args()
    photo = fill(read_rgb(PACKAGE / "examples" / "astronaut.jpg"), (2 * WIDTH, 2 * HEIGHT))
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(photo[:, :, ::-1]))
    detector = FaceDetector(threads=1)
    file = encoded.tobytes()
    profile(detector, file, None, 3)  # warm
    record: dict[str, Any] = {
        "photo": f"JPEG of {2 * WIDTH}x{2 * HEIGHT}, looked at in {WIDTH}x{HEIGHT}",
        "threads": 1,
        "clock": "CPU time of the process",
        "repeats": options.repeats,
        "one face": profile(detector, file, None, options.repeats),
        "400 faces": profile(detector, file, crowd_outputs(), options.repeats),
        "date": date.today().isoformat(),
        "machine": describe_machine(),
    }
    write_result_json(options.out, record)
    for setting in ("one face", "400 faces"):
        shares = record[setting]["milliseconds"].items()
        print(f"{setting}: " + ", ".join(f"{part} {value:.2f} ms" for part, value in shares))
    print(f"Written to {options.out}")


if __name__ == "__main__":
    main()
