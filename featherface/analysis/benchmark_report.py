"""``benchmark.json`` as Markdown tables and two pictures."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from featherface.analysis.figures import SOFT, V1_COLOUR, V2_COLOUR, new_figure
from featherface.analysis.latency import setting_name
from featherface.evaluation.result_files import write_result_text

LABELS = {
    "featherface_v2": "FeatherFace V2",
    "featherface_v1": "FeatherFace V1",
    "yunet_n": "YuNet-n",
    "scrfd_500m": "SCRFD-500M",
    "scrfd_2.5g": "SCRFD-2.5G",
    "centerface": "CenterFace",
    "ultralight_rfb_640": "Ultra-Light RFB-640",
}
SCORES = (
    ("wider_easy", "WIDER subset, easy"),
    ("wider_medium", "medium"),
    ("wider_hard", "hard"),
    ("masks", "masks"),
)
PLOTTED = (("wider_hard", "WIDER FACE subset, hard"), ("masks", "Masks"))
LATENCY_AT = setting_name((640, 480), 1)
PEER_COLOUR = "#7b8794"
WHOLE_MACS = 1e9

Models = dict[str, dict[str, Any]]


def write_report(record: dict[str, Any], out: Path) -> str:
    """Write ``benchmark.md``, ``ap_vs_latency.png`` and ``ap_vs_parameters.png``; the Markdown.

    A picture needs accuracy and what it is drawn against; without them it is left out.
    """
    text = as_markdown(record)
    write_result_text(out / "benchmark.md", text)
    models: Models = record["models"]
    latency = {
        name: model["speed"]["latency"][LATENCY_AT]["whole_ms"]
        for name, model in models.items()
        if LATENCY_AT in model.get("speed", {}).get("latency", {})
    }
    parameters = {name: model["parameters"] / 1000 for name, model in models.items()}
    at = "milliseconds a picture, 640x480, one thread, whole call (log scale)"
    draw_accuracy_against(models, latency, at, out / "ap_vs_latency.png")
    named = "parameters, thousands (log scale)"
    draw_accuracy_against(models, parameters, named, out / "ap_vs_parameters.png")
    return text


def label(name: str) -> str:
    """A model's name for people."""
    return LABELS.get(name, name)


def as_markdown(record: dict[str, Any]) -> str:
    """The whole report: accuracy, size, latency, memory, and how they were measured."""
    models: Models = record["models"]
    blocks = ["# Benchmark", record.get("training_labels", "")]
    if "accuracy" in record:
        blocks += ["## Accuracy and size", *_accuracy(record["accuracy"], models)]
    if "speed" in record:
        blocks += ["## Speed", *_speed(record["speed"], models)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _accuracy(settings: dict[str, Any], models: Models) -> list[str]:
    rows = []
    for name, model in models.items():
        scores = model.get("accuracy", {})
        rows.append([
            label(name),
            f"{model['parameters']:,}",
            f"{model['bytes'] / 1e6:.2f}",
            f"{model['macs'] / WHOLE_MACS:.2f}",
            *(f"{100 * scores[key]:.1f}" if key in scores else "" for key, _ in SCORES),
        ])  # fmt: skip
    sets = ", ".join(f"{name} ({count} photos)" for name, count in settings["sets"].items())
    how = "; ".join(f"{name} at {settings[name]}" for name in settings["sets"])
    notes = [
        f"{settings['date']}. Average precision in percent on {sets}: {how}. Every detector down "
        f"to a score of {settings['score_threshold']:g}. WIDER figures on this subset of shrunken "
        "copies lie below published ones.",
        "Parameters: what is learned; for the peers, what the file stores. GMACs: "
        "multiply-accumulates of convolutions and matrix products at 640x480.",
        *_outdated("Accuracy", "accuracy", models),
    ]
    head = ["detector", "parameters", "file, MB", "GMACs", *(title for _, title in SCORES)]
    return [_table(head, rows), *notes]


def _speed(settings: dict[str, Any], models: Models) -> list[str]:
    measured = {name: model["speed"] for name, model in models.items() if "speed" in model}
    machine = settings["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    reference = label(settings["reference"])
    blocks = [
        f"{settings['date']}. {machine['cpu']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, {libraries}.",
        f"Medians of {settings['rounds']} rounds in which all detectors take turns, milliseconds; "
        f"in brackets the median of the rounds' ratios to {reference}. Whole call: decoded pixels "
        "in, faces out, with resizing, padding and post-processing, score threshold "
        f"{settings['score_threshold']:g}. Ultra-Light always computes at 640x480; CenterFace "
        "stretches to multiples of 32.",
    ]
    latencies = {name: speed["latency"] for name, speed in measured.items()}
    columns = list(dict.fromkeys(key for one in latencies.values() for key in one))
    for part, title in (("whole", "Whole call"), ("network", "Network alone")):
        rows = [
            [
                label(name),
                *(
                    f"{one[key][f'{part}_ms']:.1f} ({one[key][f'{part}_ratio']:.2f})"
                    for key in columns
                ),
            ]
            for name, one in latencies.items()
        ]
        blocks += [f"### {title}", _table(["detector", *columns], rows)]
    memory = [
        [label(name), *(f"{speed['peak_memory'][key]:.0f}" for key in MEMORY)]
        for name, speed in measured.items()
        if speed.get("peak_memory")
    ]
    if memory:
        blocks += [
            "### Peak memory",
            _table(["detector", "whole process, MiB", "above the libraries, MiB"], memory),
            "One process each, 640x480, one thread.",
        ]
    return [*blocks, *_outdated("Speed", "speed", models)]


MEMORY = ("total_mib", "above_libraries_mib")


def _outdated(title: str, part: str, models: Models) -> list[str]:
    """A line for each model whose file has changed since ``part`` was measured."""
    return [
        f"{title} of {label(name)} was measured with an earlier file of this name."
        for name, model in models.items()
        if part in model and model[part]["sha256"] != model["sha256"]
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def draw_accuracy_against(models: Models, values: dict[str, float], axis: str, path: Path) -> bool:
    """Scatter AP against ``values``, one panel a score of ``PLOTTED``; False without any point."""
    panels = []
    for key, title in PLOTTED:
        points = [
            (name, values[name], 100 * model["accuracy"][key])
            for name, model in models.items()
            if name in values and key in model.get("accuracy", {})
        ]
        if points:
            panels.append((title, points))
    if not panels:
        return False
    figure, axes = new_figure(1, len(panels), 6.4 * len(panels), 4.8)
    for one, (title, points) in zip(axes.flat, panels, strict=True):
        one.set_xscale("log")
        across = np.array([value for _, value, _ in points])
        heights = np.array([height for _, _, height in points])
        # Room for half a label on either side, whatever the range.
        room = max(1.5, (across.max() / across.min()) ** 0.14)
        left, right = across.min() / room, across.max() * room
        one.set_xlim(left, right)
        spread = max(heights.max() - heights.min(), 4.0)
        one.set_ylim(heights.min() - 0.12 * spread, heights.max() + 0.16 * spread)
        for name, value, height in points:
            colour = _colour(name, models[name])
            one.scatter(value, height, s=90 if models[name]["ours"] else 55, color=colour, zorder=3)
        for (name, value, height), side in zip(points, _sides(one, points), strict=True):
            one.annotate(
                f"{label(name)}  {height:.1f}",
                (value, height),
                xytext=side.offset,
                textcoords="offset points",
                ha=side.across,
                va=side.up,
                fontsize=9,
                fontweight="bold" if models[name]["ours"] else "normal",
                color=_colour(name, models[name]),
            )
        ticks = _ticks(left, right)
        one.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        one.minorticks_off()
        one.set_title(title, fontsize=11)
        one.set_xlabel(axis, color=SOFT)
        one.set_ylabel("average precision, %", color=SOFT)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(unfinished)
    os.replace(unfinished, path)
    return True


def _colour(name: str, model: dict[str, Any]) -> str:
    if name == "featherface_v1":
        return V1_COLOUR
    return V2_COLOUR if model["ours"] else PEER_COLOUR


def _ticks(low: float, high: float) -> list[float]:
    leads = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5)
    steps = [lead * 10.0**power for power in range(-1, 6) for lead in leads]
    return [step for step in steps if low <= step <= high]


class Side(NamedTuple):
    """Where a label stands by its point: points of offset, and what of the label is held there."""

    offset: tuple[float, float]
    across: Literal["center", "left"]
    up: Literal["bottom", "top", "center"]


ABOVE = Side((0, 9), "center", "bottom")
BELOW = Side((0, -9), "center", "top")
RIGHT = Side((9, 0), "left", "center")


def _sides(axes: Any, points: Sequence[tuple[str, float, float]]) -> list[Side]:
    """Where each label stands, so that fewest labels and points are covered."""
    low, high = np.log(axes.get_xlim())
    bottom, top = axes.get_ylim()
    # Label boxes as fractions of the panel, about 5.6 x 3.9 inches; a letter is 0.07 inches wide.
    places = [
        ((np.log(value) - low) / (high - low), (height - bottom) / (top - bottom))
        for _, value, height in points
    ]
    dots = [(x - 0.015, y - 0.02, x + 0.015, y + 0.02) for x, y in places]
    halves = [0.007 * (len(label(name)) + 6) for name, _, _ in points]
    boxes = [
        {
            ABOVE: (x - half, y + 0.025, x + half, y + 0.07),
            BELOW: (x - half, y - 0.07, x + half, y - 0.025),
            RIGHT: (x + 0.02, y - 0.0225, x + 0.02 + 2 * half, y + 0.0225),
        }
        for half, (x, y) in zip(halves, places, strict=True)
    ]

    def covered(sides: Iterable[Side]) -> float:
        chosen = [box[side] for box, side in zip(boxes, sides, strict=True)]
        over_dots = sum(_overlap(box, dot) for box in chosen for dot in dots)
        over_edge = sum(max(box[2] - 1, 0.0) for box in chosen)
        between = sum(_overlap(a, b) for a, b in itertools.combinations(chosen, 2))
        return over_dots + over_edge + between

    return list(min(itertools.product((ABOVE, BELOW, RIGHT), repeat=len(points)), key=covered))


def _overlap(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)
