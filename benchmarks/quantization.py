"""What FP16 and INT8 cost in accuracy, and what they bring in time and size.

    python -m benchmarks.quantization --calibrate TRAIN --wider WIDER_SUBSET --masks MASKS

Exports the weights to FP16 and INT8 (calibrated on photos or shards in TRAIN, which must not be
measuring photos), then measures float32, FP16 and INT8 on both sets: WIDER FACE's protocol at the
photos' original size, and PASCAL VOC's AP50 with a long side of 640 pixels. Times are medians over
interleaved calls of the whole detector on 640x480 pixels, one thread. Writes ``quantization.json``
and ``quantization.md``. Three minutes on one idle core.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import onnx
import onnxruntime
from rich.progress import track

from featherface.detector import FaceDetector
from featherface.evaluation.labelled_folder import evaluate_voc
from featherface.evaluation.result_files import write_result_json, write_result_text
from featherface.evaluation.wider_face import evaluate_wider_subset, read_wider_photo
from featherface.evaluation.wider_ground_truth import read_subset_ground_truth
from featherface.export.calibration import calibration_images
from featherface.export.float16 import to_float16
from featherface.export.quantization import TOLERANCE, quantize
from featherface.export.source_model import read_source, simplified

Item = TypeVar("Item")

SCORE_THRESHOLD = 0.02
COLUMNS = {"easy": "easy", "medium": "medium", "hard": "hard", "masks": "masks"}
TIMED_SIZE = (640, 480)


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--calibrate", type=Path, required=True, help="photos or shards")
    parser.add_argument("--wider", type=Path, required=True, help="subset folder of WIDER FACE")
    parser.add_argument("--masks", type=Path, required=True, help="folder of labelled photos")
    parser.add_argument("--weights", type=Path, help="default: the package's own")
    parser.add_argument("--images", type=int, default=24, help="photos to calibrate with")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each")
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args()

    source = simplified(read_source(arguments.weights))
    photos = calibration_images(arguments.calibrate, arguments.images)
    quantized = quantize(source, photos, arguments.tolerance, progress("Measuring layers"))
    models = {"FP32": source, "FP16": to_float16(source), "INT8": quantized.model}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, model in models.items():
            files[name] = Path(folder) / f"{name.lower()}.onnx"
            onnx.save(model, files[name])
        figures: dict[str, dict[str, float]] = {
            name: {"kilobytes": path.stat().st_size / 1000} for name, path in files.items()
        }
        for name, path in files.items():
            figures[name] |= accuracy(path, arguments.wider, arguments.masks, name)
        for name, timing in latency(files, arguments.wider, arguments.rounds).items():
            figures[name] |= timing
    result: dict[str, Any] = {
        "weights": arguments.weights.name if arguments.weights else "packaged",
        "figures": figures,
        "losses_in_ap_points": {
            name: {c: 100 * (figures["FP32"][c] - figures[name][c]) for c in COLUMNS}
            for name in ("FP16", "INT8")
        },
        "int8": {
            "calibration_photos": len(photos),
            "tolerance": arguments.tolerance,
            "convolutions": len(quantized.layers),
            "kept_in_float": quantized.kept_float,
            "score_error": quantized.error,
            "score_error_all_int8": quantized.error_all,
            "layers": [{"layer": one.layer, "error": one.error} for one in quantized.layers],
        },
        "rounds": arguments.rounds,
        "processor": processor(),
        "vnni": has_vnni(),
        "onnxruntime": onnxruntime.__version__,
    }
    write_result_json(arguments.out / "quantization.json", result)
    write_result_text(arguments.out / "quantization.md", markdown(result))
    print(markdown(result))


def accuracy(weights: Path, wider: Path, masks: Path, name: str) -> dict[str, float]:
    """Easy, medium, hard and masks, fractions 0..1."""
    detect = FaceDetector(weights, input_size=None, score_threshold=SCORE_THRESHOLD, threads=1)
    found = evaluate_wider_subset(detect, wider, progress=progress(f"{name}, WIDER FACE"))
    masked = evaluate_voc(detect, masks, progress=progress(f"{name}, masks"))
    return {**found.as_dict(), "masks": masked}


def latency(files: dict[str, Path], wider: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a whole call, and the median of its ratios to FP32's."""
    photo = read_wider_photo(wider / "images", read_subset_ground_truth(wider)[0])
    image = np.asarray(cv2.resize(photo, TIMED_SIZE), np.uint8)
    detectors = {name: FaceDetector(path, threads=1) for name, path in files.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for turn in progress("Timing")(range(rounds + 2)):
        for name, detect in detectors.items():
            start = time.perf_counter()
            detect(image)
            if turn >= 2:  # the first calls allocate
                times[name].append(1000 * (time.perf_counter() - start))
    base = np.array(times["FP32"])
    return {
        name: {
            "milliseconds": float(np.median(spent)),
            "ratio_to_fp32": float(np.median(np.array(spent) / base)),
        }
        for name, spent in times.items()
    }


def markdown(result: dict[str, Any]) -> str:
    """The table, and in words what it says of INT8."""
    lines = [
        "| precision | easy | medium | hard | masks | kB | ms at 640x480 | ratio to FP32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["figures"].items():
        cells = [f"{100 * row[column]:.1f}" for column in COLUMNS]
        cells += [f"{row['kilobytes']:.0f}", f"{row['milliseconds']:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['ratio_to_fp32']:.2f} |")
    worst = max(0.0, *result["losses_in_ap_points"]["INT8"].values())
    loses = f"loses at most {worst:.1f} points" if worst >= 0.05 else "loses nothing"
    ratio = result["figures"]["INT8"]["ratio_to_fp32"]
    int8 = result["int8"]
    lines += [
        "",
        "AP in percent: WIDER FACE subset at original size, masks with a long side of 640. "
        f"Weights: {result['weights']}. {result['processor']}, "
        f"{'with' if result['vnni'] else 'without'} VNNI, one thread, ONNX Runtime "
        f"{result['onnxruntime']}, medians of {result['rounds']} interleaved calls.",
        "",
        f"INT8 keeps {int8['kept_in_float']} of {int8['convolutions']} convolutions in float and "
        f"{loses}. It takes {ratio:.2f} times as long as FP32 here"
        + (
            ": this processor has no 8-bit dot product (VNNI), without which ONNX Runtime widens "
            "8-bit numbers to 16 before it multiplies."
            if not result["vnni"] and ratio >= 1
            else "."
        ),
    ]
    return "\n".join(lines) + "\n"


def processor() -> str:
    """Its name as the system tells it."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether the processor multiplies and adds 8-bit numbers in one step (x86 on Linux)."""
    return "vnni" in _cpu_field("flags")


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def progress(title: str) -> Callable[[Sequence[Item]], Iterable[Item]]:
    """Wraps a sequence in a progress bar."""
    return lambda items: track(items, title)


if __name__ == "__main__":
    main()
