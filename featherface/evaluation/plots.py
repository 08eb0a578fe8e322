"""Precision against recall, and recall by face size."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from featherface.errors import MissingExtraError
from featherface.evaluation.calibration import BINS, Reliability
from featherface.evaluation.labelled_folder import FolderResult
from featherface.evaluation.wider_face import WiderResult
from featherface.evaluation.wider_ground_truth import DIFFICULTIES

COLOUR, LIGHT = "#1f5f8b", "#a9c9df"


def precision_recall_plot(result: FolderResult) -> bytes:
    """PNG of precision against recall at IoU 0.5, the operating score marked."""
    figure, axes = _figure()
    matches = result.matches
    axes.plot(matches.recall, matches.precision, color=COLOUR)
    if not np.isnan(result.precision):
        axes.plot(result.recall, result.precision, "o", color=COLOUR)
        axes.annotate(
            f"score {result.operating_score:g}",
            (result.recall, result.precision),
            textcoords="offset points",
            xytext=(-8, -14),
            ha="right",
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"AP50 {100 * result.voc_ap50:.1f} %, {matches.faces} faces")
    return _png(figure)


def recall_by_size_plot(result: FolderResult) -> bytes:
    """PNG of recall by face size: at the operating score, and at any score."""
    figure, axes = _figure()
    parts = [part for part in result.recall_by_size if part.faces]
    places = np.arange(len(parts))
    axes.bar(places, [p.recall_any_score for p in parts], color=LIGHT, label="any score")
    axes.bar(
        places, [p.recall for p in parts], color=COLOUR, label=f"score {result.operating_score:g}"
    )
    axes.set_xticks(places, [f"{p.name}\n{p.faces} faces" for p in parts])
    axes.set(xlabel="face size in the photo, pixels", ylabel="recall", ylim=(0, 1.02))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _png(figure)


def wider_curves_figure(results: Mapping[str, WiderResult]) -> Any:
    """A figure of precision against recall for easy, medium and hard, one line a detector."""
    figure, _ = _figure(columns=len(DIFFICULTIES), width=11.5, height=3.9)
    for axes, difficulty in zip(figure.axes, DIFFICULTIES, strict=True):
        for name, result in results.items():
            curve = result.curves[difficulty]
            label = f"{name}: {100 * result.as_dict()[difficulty]:.1f}"
            axes.plot(curve.recall, curve.precision, label=label)
        faces = next(iter(results.values())).curves[difficulty].faces
        axes.set(xlabel="recall", xlim=(0, 1), ylim=(0, 1.02), title=f"{difficulty}, {faces} faces")
        axes.legend(frameon=False, loc="lower left", title="AP, %", alignment="left")
    figure.axes[0].set_ylabel("precision")
    return figure


def reliability_figure(before: Reliability, after: Reliability) -> Any:
    """A figure of the share of faces by score, before and after calibration, and how many."""
    figure, _ = _figure(columns=2, width=10.0, height=4.4)
    middles = (np.arange(BINS) + 0.5) / BINS
    rows = (("before", before, LIGHT), ("after", after, COLOUR))
    for axes, (title, bins, colour) in zip(figure.axes, rows, strict=True):
        axes.bar(middles, bins.precision, 0.92 / BINS, color=colour)
        axes.plot([0, 1], [0, 1], "--", color="0.4")
        for middle, precision, count in zip(middles, bins.precision, bins.count, strict=True):
            if count:
                axes.annotate(
                    f"{count:,}", (middle, precision), ha="center", va="bottom", fontsize=7
                )
        axes.set(xlabel="score", xlim=(0, 1), ylim=(0, 1.05))
        axes.set_title(f"{title}: calibration error {100 * bins.error:.1f} %")
    figure.axes[0].set_ylabel("share of faces (numbers: detections)")
    return figure


def _figure(columns: int = 1, width: float = 7.0, height: float = 4.4) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "Plots need Matplotlib: pip install 'featherface[evaluate]'"
        ) from None
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    for column in range(columns):
        axes = figure.add_subplot(1, columns, column + 1)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure, figure.axes[0]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
