"""The results block of the documents, from the files under ``results/``; nothing typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featherface.analysis.benchmark_report import LABELS, SCORES
from featherface.analysis.latency import setting_name
from featherface.evaluation.results_table import evaluation_table, percent, read_json

SETTING = setting_name((640, 480), 1)


def results_block(results: Path) -> str:
    """Markdown of what lies in ``results``: the benchmark, else single evaluations; or nothing."""
    record = read_json(results / "benchmark" / "benchmark.json")
    return benchmark_summary(record) if record else evaluation_table(results / "evaluation")


def benchmark_summary(record: dict[str, Any]) -> str:
    """One row a detector of ``benchmark.json``: size, accuracy, time; and how it was measured."""
    head = ["detector", "parameters", "file, MB", *(title for _, title in SCORES)]
    head.append("640x480, ms (times ours)")
    lines = [_row(head), "|---|" + "---:|" * (len(head) - 1)]
    for name, model in record["models"].items():
        scores = model.get("accuracy", {})
        time = model.get("speed", {}).get("latency", {}).get(SETTING)
        lines.append(
            _row(
                [
                    LABELS.get(name, name),
                    f"{model['parameters']:,}",
                    f"{model['bytes'] / 1e6:.2f}",
                    *(percent(scores.get(key)) for key, _ in SCORES),
                    f"{time['whole_ms']:.1f} ({time['whole_ratio']:.2f})" if time else "–",
                ]
            )
        )
    return "\n".join([*lines, "", *_notes(record)]) + "\n"


def _notes(record: dict[str, Any]) -> list[str]:
    notes = []
    if "accuracy" in record:
        sets = ", ".join(f"{n} photos of {name}" for name, n in record["accuracy"]["sets"].items())
        notes.append(
            f"Average precision in percent, {record['accuracy']['date']}, on {sets}, the WIDER "
            "FACE ones stored small, so absolute figures lie below published ones."
        )
    if "speed" in record:
        speed = record["speed"]
        notes.append(
            f"Time from pixels to faces, one thread, {speed['machine']['cpu']}, {speed['date']}, "
            f"median of {speed['rounds']} rounds in which all take turns."
        )
    return notes


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
