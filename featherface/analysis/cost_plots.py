"""Where parameters, time and memory go."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from featherface.analysis.figures import COLOURS, SOFT, V1_COLOUR, V2_COLOUR, new_figure
from featherface.analysis.parts import parameters_by_stage
from featherface.export.quantization import Quantized
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2

MODEL_COLOURS = (V1_COLOUR, V2_COLOUR, *COLOURS[2:])


def parameter_plot(models: Mapping[str, FeatherFaceV1 | FeatherFaceV2]) -> Figure:
    """Parameters by part, one panel a model, to one scale."""
    figure, axes = new_figure(1, len(models), 5.4 * len(models), 3.6, sharex=True)
    for plot, (name, model), colour in zip(axes[0], models.items(), MODEL_COLOURS, strict=False):
        counts = parameters_by_stage(model)
        bars = plot.barh(list(counts), [count / 1e3 for count in counts.values()], color=colour)
        plot.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=3, fontsize=8.5)
        plot.invert_yaxis()
        plot.set(xlabel="thousand parameters", title=f"{name}: {sum(counts.values()):,}")
        plot.margins(x=0.2)
    return figure


def interleaved_times(
    jobs: Mapping[str, Callable[[], Any]], rounds: int = 11
) -> dict[str, list[float]]:
    """Milliseconds of each job, ``rounds`` of them after one to warm up.

    The jobs take turns, so that a busy machine slows all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            times[name].append(1e3 * (time.perf_counter() - started))
    return times


def latency_plot(times: Mapping[str, list[float]]) -> Figure:
    """Median milliseconds of each job, whiskers over the middle eight tenths of the rounds."""
    figure, axes = new_figure(width=8.5, height=0.9 + 0.45 * len(times))
    plot = axes[0, 0]
    medians = [statistics.median(values) for values in times.values()]
    low, high = (
        [abs(np.quantile(values, q) - m) for values, m in zip(times.values(), medians, strict=True)]
        for q in (0.1, 0.9)
    )
    colours = [V1_COLOUR if name.startswith("V1") else V2_COLOUR for name in times]
    bars = plot.barh(list(times), medians, xerr=[low, high], color=colours, ecolor=SOFT)
    plot.bar_label(bars, [f"{median:.1f} ms" for median in medians], padding=12, fontsize=9)
    plot.invert_yaxis()
    plot.set(xlabel="milliseconds, one thread", xlim=(0, 1.35 * max(medians)))
    return figure


@torch.no_grad()
def activation_megabytes(model: nn.Module, side: int = 640) -> float:
    """Megabytes of float32 that the leaf modules of ``model`` write for one square image.

    An upper bound on what inference holds: a runtime reuses most of it.
    """
    total = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, torch.Tensor) else 0

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        model.eval()(torch.zeros(1, 3, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    return 4 * total / 1e6


def file_megabytes(path: Path) -> float:
    """Size of a file in millions of bytes."""
    return path.stat().st_size / 1e6


@torch.no_grad()
def channel_importance(model: FeatherFaceV1) -> torch.Tensor:
    """Of V1's stage 3 channels: normalisation scale times the norm of what reads it, largest first.

    It is what decides which of the 256 V2 keeps (Liu et al., ICCV 2017).
    """
    norm: Any = [m for m in model.backbone.stage3.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    fusion: Any = model.fusions[0]
    reader = fusion.laterals[2][0].weight
    importance: torch.Tensor = norm.weight.abs() * reader.flatten(1).norm(dim=0)
    return importance.sort(descending=True).values


def importance_plot(importance: torch.Tensor, kept: int) -> Figure:
    """Sorted importance of channels, the ``kept`` ones filled, and what share they hold."""
    figure, axes = new_figure(width=8.5, height=3.4)
    plot = axes[0, 0]
    values = (importance / importance.max()).numpy()
    places = np.arange(len(values))
    share = values[:kept].sum() / values.sum()
    plot.fill_between(places[:kept], values[:kept], color=V2_COLOUR, alpha=0.5,
                      label=f"{kept} kept: {100 * share:.0f} % of the sum")  # fmt: skip
    plot.fill_between(places[kept - 1 :], values[kept - 1 :], color=SOFT, alpha=0.3,
                      label=f"{len(values) - kept} dropped")  # fmt: skip
    plot.set(xlabel="channels of V1's stage 3, by importance", ylabel="importance", ylim=(0, 1.02))
    plot.set_xlim(0, len(values) - 1)
    plot.legend(frameon=False)
    return figure


def quantization_plot(quantized: Quantized) -> Figure:
    """The error that each convolution causes when it alone is quantized, the worst first."""
    figure, axes = new_figure(width=9.0, height=3.4)
    plot = axes[0, 0]
    errors = [layer.error for layer in quantized.layers]
    places = np.arange(len(errors))
    kept = quantized.kept_float
    plot.bar(places[kept:], errors[kept:], color=V2_COLOUR,
             label=f"{len(errors) - kept} in INT8")  # fmt: skip
    plot.bar(places[:kept], errors[:kept], color=COLOURS[2], label=f"{kept} kept in float")
    plot.set(xlabel="convolutions, by their error", ylabel="mean change of scores")
    plot.set_title(
        f"all in INT8: {quantized.error_all:.3f}, as chosen: {quantized.error:.3f}", fontsize=10
    )
    plot.legend(frameon=False)
    return figure
