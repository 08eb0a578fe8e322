"""A run to look at: its losses while it goes and after, its schedules, the shapes of the losses."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
from matplotlib.figure import Figure

from featherface.analysis.figures import COLOURS, SOFT, V2_COLOUR, new_figure
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training.config import RunConfig
from featherface.training.loop import TERMS, train
from featherface.training.losses import focal_loss
from featherface.training.schedules import learning_rate, term_weights

Row = dict[str, float]


def read_log(folder: Path) -> list[Row]:
    """The rows of a run's ``log.csv``; none while it is not there."""
    path = folder / "log.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def loss_plot(rows: list[Row], total: int) -> Figure:
    """The loss and its terms over the crops seen, of ``total``."""
    figure, axes = new_figure(1, 2, 10.5, 3.6)
    seen = [row["images"] for row in rows]
    axes[0, 0].plot(seen, [row["loss"] for row in rows], color=V2_COLOUR, marker=".")
    axes[0, 0].set(ylabel="loss", title="sum")
    terms = [term for term in TERMS if any(row.get(term, 0) for row in rows)]
    for term, colour in zip(terms, COLOURS, strict=False):
        axes[0, 1].plot(seen, [row[term] for row in rows], color=colour, label=term, marker=".")
    axes[0, 1].set(title="its terms")
    if terms:
        axes[0, 1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for plot in axes.flat:
        plot.set(xlabel="crops seen", xlim=(0, total), ylim=(0, None))
    return figure


def train_and_watch(
    config: RunConfig,
    show: Callable[[Figure], Any],
    student: FeatherFaceV2 | BaselineV1 | None = None,
    seconds: float = 5.0,
) -> Path:
    """``train`` in the background while ``show`` gets the curves anew; the weight file.

    ``show`` takes a figure, for instance ``display(..., display_id=True).update``. What the run
    raises is raised here.
    """
    rich.reconfigure(quiet=True)  # the curves stand for the progress bar
    outcome: list[Path | BaseException] = []

    def run() -> None:
        try:
            outcome.append(train(config, accelerator="cpu", report=lambda _: None, student=student))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    drawn = 0
    while thread.is_alive():
        thread.join(seconds)
        rows = read_log(config.folder)
        if len(rows) > drawn:
            drawn = len(rows)
            show(loss_plot(rows, config.images))
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def schedule_plot(config: RunConfig) -> Figure:
    """Weights of features, answers and labels over a run, and its learning rate."""
    figure, axes = new_figure(1, 2, 10.5, 3.4)
    progress = np.linspace(0, 1, 201)
    weights = np.array([term_weights(p, config.distillation.schedule) for p in progress])
    names = ("the teacher's features", "the teacher's answers", "the labels")
    for name, values, colour in zip(names, weights.T, COLOURS, strict=False):
        axes[0, 0].plot(100 * progress, values, label=name, color=colour)
    axes[0, 0].set(ylabel="weight", title="what counts", ylim=(0, None))
    axes[0, 0].legend(frameon=False)
    optimiser = config.optimiser
    rates = [
        learning_rate(p, optimiser.learning_rate, optimiser.warmup, optimiser.final_rate)
        for p in progress
    ]
    axes[0, 1].plot(100 * progress, rates, color=V2_COLOUR)
    axes[0, 1].set(ylabel="learning rate", title="how far a step goes", ylim=(0, None))
    for plot in axes.flat:
        plot.set(xlabel="progress of the run, %", xlim=(0, 100))
    return figure


def loss_shape_plot() -> Figure:
    """Cross entropy, focal and quality focal loss of a face over the predicted score."""
    figure, axes = new_figure(1, 2, 10.5, 3.6)
    scores = torch.linspace(0.005, 0.995, 200)
    logits = torch.logit(scores)
    for plot, target, title in zip(
        axes[0], (1.0, 0.0), ("an anchor on a face", "an anchor on background"), strict=True
    ):
        targets = torch.full_like(logits, target)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="none"
        )
        plot.plot(scores, entropy, color=SOFT, label="cross entropy")
        plot.plot(scores, focal_loss(logits, targets), color=V2_COLOUR, label="focal")
        if target:
            soft = torch.full_like(logits, 0.75)
            plot.plot(
                scores, focal_loss(logits, soft), color=COLOURS[2],
                label="quality focal, box overlap 0.75",
            )  # fmt: skip
        plot.set(xlabel="predicted score", ylabel="loss", title=title, ylim=(0, 2.5), xlim=(0, 1))
        plot.legend(frameon=False)
    return figure
