"""The benchmark: our models, V1 and the peers on the same photos in one run.

``benchmark.json`` has two parts that are measured apart, accuracy and speed. A run replaces the
accuracy of the models it measures, and the speed of all: times of different runs do not compare.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from featherface.analysis.contenders import OURS, PACKAGE, Entry
from featherface.analysis.latency import measure_latency
from featherface.analysis.machine import describe_machine, usable_cores
from featherface.analysis.measured_accuracy import (
    MASKS,
    MASKS_LONG_SIDE,
    SCORE_THRESHOLD,
    WIDER,
    measure_accuracy,
    measuring_sets,
)
from featherface.analysis.onnx_cost import onnx_cost
from featherface.analysis.peak_memory import measure_peak_memory
from featherface.errors import ConfigError, DataError
from featherface.evaluation.result_files import write_result_json
from featherface.evaluation.views import Image, read_rgb
from featherface.images import resize_image

SIZES = ((320, 240), (640, 480), (1280, 960))
MIDDLE = (640, 480)
OPERATING_SCORE = 0.5
LATENCY_PHOTOS = 8
TRAINING_LABELS = (
    "FeatherFace V2 learned from labels that SCRFD-2.5G made on public photos, not from hand-drawn "
    "boxes; V1 and the peers learned from WIDER FACE's own."
)

Progress = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Plan:
    """What to measure. ``data``: folder of ``wider_mini`` and ``masks``, None without accuracy."""

    data: Path | None
    cache: Path
    accuracy: bool = True
    speed: bool = True
    rounds: int = 20
    sizes: tuple[tuple[int, int], ...] = SIZES
    threads: tuple[int, ...] = (1, 2)


def run_benchmark(
    entries: Sequence[Entry], plan: Plan, record: dict[str, Any], progress: Progress | None = None
) -> dict[str, Any]:
    """Measure ``entries`` (ours first); ``record``, an earlier run's or empty, with them in it."""
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two models of one name among {', '.join(names)}: rename a file")
    models: dict[str, dict[str, Any]] = dict(record.get("models", {}))
    for entry in entries:
        models[entry.name] = {**models.get(entry.name, {}), **describe_model(entry)}
    record = {"training_labels": TRAINING_LABELS, **record, "models": models}
    if plan.accuracy:
        _measure_accuracy(entries, plan, record, progress)
    if plan.speed:
        _measure_speed(entries, plan, record, progress)
    return record


def _measure_accuracy(
    entries: Sequence[Entry], plan: Plan, record: dict[str, Any], progress: Progress | None
) -> None:
    if plan.data is None:
        raise DataError(f"Accuracy needs --data, the folder of {WIDER} and {MASKS}")
    record["accuracy"] = {
        "sets": {name: _photos(plan.data / name) for name in measuring_sets(plan.data)},
        "score_threshold": SCORE_THRESHOLD,
        WIDER: "original size, WIDER FACE protocol over these photos",
        MASKS: f"long side {MASKS_LONG_SIDE}, PASCAL VOC AP at IoU 0.5",
        "date": date.today().isoformat(),
    }
    for entry in entries:
        scores = measure_accuracy(entry, plan.data, plan.cache, usable_cores(), progress)
        record["models"][entry.name]["accuracy"] = {**scores, "sha256": entry.sha256}


def _measure_speed(
    entries: Sequence[Entry], plan: Plan, record: dict[str, Any], progress: Progress | None
) -> None:
    record["speed"] = {
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "reference": entries[0].name,
        "rounds": plan.rounds,
        "score_threshold": OPERATING_SCORE,
        "photos": "measuring set" if plan.data else "the package's example",
    }
    for model in record["models"].values():
        model.pop("speed", None)
    images = {size: latency_images(plan.data, size) for size in plan.sizes}
    latency = measure_latency(
        entries,
        images,
        plan.threads,
        plan.rounds,
        OPERATING_SCORE,
        (lambda rounds: progress(rounds, "Rounds")) if progress else None,
    )
    for entry in progress(entries, "Memory") if progress else entries:
        record["models"][entry.name]["speed"] = {
            "latency": latency[entry.name],
            "peak_memory": measure_peak_memory(entry, *MIDDLE),
            "sha256": entry.sha256,
        }


def describe_model(entry: Entry) -> dict[str, Any]:
    """File, size, parameters and MACs. ``parameters``: as the file says, else what it stores."""
    cost = onnx_cost(entry.model, *MIDDLE)
    metadata = {one.key: one.value for one in onnx.load(entry.model).metadata_props}
    return {
        "adapter": entry.adapter,
        "file": entry.model.name,
        "sha256": entry.sha256,
        "bytes": entry.model.stat().st_size,
        "parameters": int(metadata.get("parameters", cost.stored_values)),
        "stored_values": cost.stored_values,
        "macs": cost.macs,
        "macs_at": f"{cost.width}x{cost.height}",
        "ours": entry.adapter == OURS,
    }


def latency_images(data: Path | None, size: tuple[int, int]) -> list[Image]:
    """Photos of ``masks`` (without data: the package's example) that fill ``size`` (w, h)."""
    files: list[Path] = []
    if data is not None:
        for name in (MASKS, WIDER):
            if not files and (data / name / "images").is_dir():
                files = sorted((data / name / "images").iterdir())
    files = files[:: max(1, len(files) // LATENCY_PHOTOS)][:LATENCY_PHOTOS]
    return [fill(read_rgb(one), size) for one in files or [PACKAGE / "examples" / "astronaut.jpg"]]


def fill(image: Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of ``image``, scaled so that it covers ``size`` = (width, height)."""
    width, height = size
    factor = max(width / image.shape[1], height / image.shape[0])
    covered = (
        max(width, round(image.shape[1] * factor)),
        max(height, round(image.shape[0] * factor)),
    )
    scaled = resize_image(image, *covered)
    left, top = (covered[0] - width) // 2, (covered[1] - height) // 2
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def read_record(path: Path) -> dict[str, Any]:
    """An earlier ``benchmark.json``; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; delete it") from error
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write ``benchmark.json`` under a temporary name, then rename it."""
    write_result_json(path, record)


def _photos(folder: Path) -> int:
    return sum(1 for _ in (folder / "images").iterdir())
