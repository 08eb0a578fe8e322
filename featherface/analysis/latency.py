"""Time per image of several detectors, interleaved: what slows the machine slows all of them.

A round runs every detector once at one size and number of threads, each round in another order.
Each timed call follows an untimed one of the same detector, as in a stream of pictures. A ratio is
the median of the rounds' ratios, which a drifting clock hardly touches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.analysis.contenders import Contender, Entry

Image = NDArray[np.uint8]
Progress = Callable[[Sequence[int]], Iterable[int]]

PARTS = ("whole_ms", "network_ms")


def measure_latency(
    entries: Sequence[Entry],
    images: Mapping[tuple[int, int], Sequence[Image]],
    threads: Sequence[int],
    rounds: int,
    score_threshold: float,
    progress: Progress | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure ``entries``; the first is what the others are compared with.

    Args:
        images: decoded images of each (width, height); round ``r`` shows the ``r``-th, in a circle.
        threads: each number is measured.
        score_threshold: of every detector, for the whole call.

    Returns:
        For each name, ``"640x480, 1 thread"`` and so on, the medians ``whole_ms`` (pixels in, faces
        out) and ``network_ms``, and ``whole_ratio`` and ``network_ratio`` to the first entry.
    """
    opened = {
        (entry.name, count): entry.open(count, score_threshold)
        for entry in entries
        for count in threads
    }
    blobs = {
        (name, size): contender.prepare(photos[0])
        for (name, _), contender in opened.items()
        for size, photos in images.items()
    }
    names = [entry.name for entry in entries]
    times: dict[tuple[str, str], dict[str, list[float]]] = {}
    for round_ in progress(range(rounds)) if progress else range(rounds):
        shift = round_ % len(names)
        for size, photos in images.items():
            image = photos[round_ % len(photos)]
            for count in threads:
                setting = setting_name(size, count)
                for name in names[shift:] + names[:shift]:
                    contender = opened[name, count]
                    record = times.setdefault((name, setting), {part: [] for part in PARTS})
                    blob = blobs[name, size]
                    for part, milliseconds in zip(
                        PARTS, _time(contender, image, blob), strict=True
                    ):
                        record[part].append(milliseconds)
    return {name: _summary(name, names[0], times) for name in names}


def setting_name(size: tuple[int, int], threads: int) -> str:
    """Such as ``640x480, 2 threads``."""
    return f"{size[0]}x{size[1]}, {threads} thread{'s' * (threads > 1)}"


def _time(contender: Contender, image: Image, blob: NDArray[np.float32]) -> tuple[float, float]:
    contender(image)  # its buffers and threads are warm again
    start = time.perf_counter()
    contender(image)
    middle = time.perf_counter()
    contender.run(blob)
    return 1000 * (middle - start), 1000 * (time.perf_counter() - middle)


def _summary(
    name: str, reference: str, times: Mapping[tuple[str, str], dict[str, list[float]]]
) -> dict[str, dict[str, Any]]:
    summary = {}
    for (owner, setting), record in times.items():
        if owner != name:
            continue
        base = times[reference, setting]
        figures = {part: round(statistics.median(record[part]), 3) for part in PARTS}
        for part in PARTS:
            ratios = [own / ours for own, ours in zip(record[part], base[part], strict=True)]
            figures[part.replace("_ms", "_ratio")] = round(statistics.median(ratios), 3)
        summary[setting] = figures
    return summary
