"""The pictures of an architecture study: costs, receptive fields, channels, pruning."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from featherface.analysis.architecture_study import ArchitectureStudy
from featherface.analysis.channel_scores import STAGES
from featherface.analysis.figures import COLOURS, SOFT, V1_COLOUR, V2_COLOUR, new_figure
from featherface.anchors import ANCHOR_SIZES, STRIDES

NETWORK_COLOURS = {"V1": V1_COLOUR, "V2": V2_COLOUR}
PART_COLOURS, REST_COLOUR = COLOURS[:6], "#c9d1d9"
COSTS = (
    ("parameters", 1e3, "thousand parameters"),
    ("multiply_adds", 1e6, "million multiply-adds"),
    ("written_bytes", 1e6, "megabytes written"),
    ("torch_ms", 1.0, "ms in PyTorch"),
    ("onnx_ms", 1.0, "ms in ONNX Runtime"),
)


def study_figures(study: ArchitectureStudy) -> dict[str, Figure]:
    """File name, without its ending, to figure; those that can be drawn."""
    figures = {"costs": costs_figure(study), "receptive_field": field_figure(study)}
    if any(network.channels for network in study.networks.values()):
        figures["channels"] = channels_figure(study)
    if any(network.pruning for network in study.networks.values()):
        figures["pruning"] = pruning_figure(study)
    return figures


def costs_figure(study: ArchitectureStudy) -> Figure:
    """Each cost as two stacked bars, V1 and V2, by the part that causes it."""
    figure, axes = new_figure(1, len(COSTS), 13.0, 4.4)
    for plot, (quantity, unit, label) in zip(axes[0], COSTS, strict=True):
        floor = np.zeros(2)
        colours = [*PART_COLOURS[: len(study.savings) - 1], REST_COLOUR]  # the rest is last
        for part, colour in zip(study.savings, colours, strict=True):
            pair = (getattr(part.first, quantity), getattr(part.second, quantity))
            heights = np.array(pair) / unit
            plot.bar(("V1", "V2"), heights, bottom=floor, color=colour, label=part.name, width=0.62)
            floor += heights
        for place, height in enumerate(floor):
            plot.text(place, height, f"{height:,.0f}", ha="center", va="bottom", fontsize=9)
        plot.set_title(label, fontsize=10, color=SOFT)
        plot.set_ylim(0, 1.08 * max(floor))  # a bar of no height would keep margins() from it
        plot.grid(axis="x", visible=False)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def field_figure(study: ArchitectureStudy) -> Figure:
    """By stride: what a cell can see, where 90 % and half of its gradient lie, and its anchors."""
    figure, axes = new_figure(1, len(STRIDES), 12.0, 3.6, sharex=True, sharey=True)
    rows = list(study.networks)
    for plot, stride, anchors in zip(axes[0], STRIDES, ANCHOR_SIZES, strict=True):
        for place, (name, network) in enumerate(study.networks.items()):
            colour = NETWORK_COLOURS[name]
            plot.barh(place, network.theoretical["context"][stride], 0.6, color=colour, alpha=0.2)
            if network.effective is not None:
                field = network.effective[stride]
                plot.barh(place, field.ninety, 0.6, color=colour, alpha=0.35)
                plot.barh(place, field.half, 0.6, color=colour, alpha=0.9)
        for size in anchors:
            plot.axvline(size, color=COLOURS[2], lw=1.6, ls="--")
        names = " and ".join(map(str, anchors))
        plot.set_title(f"stride {stride}: anchors of {names} (dashed)", fontsize=10, color=SOFT)
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        plot.set(yticks=range(len(rows)), yticklabels=rows, xlabel="width, pixels", xlim=(12, None))
    axes[0, 0].invert_yaxis()
    figure.suptitle(
        "pale: all that a cell can see; darker: 90 % of its gradient; darkest: half of it",
        fontsize=10,
        color=SOFT,
    )
    return figure


def channels_figure(study: ArchitectureStudy) -> Figure:
    """By stage: channels from the weakest to the strongest, scale over the layer's mean."""
    figure, axes = new_figure(2, 3, 12.0, 6.0, sharex=True, sharey=True)
    for plot, stage in zip(axes.flat, STAGES, strict=True):
        for name, network in study.networks.items():
            scores = (network.channels or {}).get(stage)
            if scores is None:
                continue
            places = 100 * (np.arange(scores.channels) + 0.5) / scores.channels
            label = f"{name}, {scores.channels} channels"
            plot.plot(places, scores.scales, color=NETWORK_COLOURS[name], label=label)
            plot.plot(places, scores.filter_norms, color=NETWORK_COLOURS[name], lw=1, ls=":")
        if not plot.lines:  # no normalisation in either
            plot.set_axis_off()
            continue
        plot.axhline(1, color=SOFT, lw=0.8, alpha=0.5)
        plot.set_title(stage, fontsize=10, color=SOFT)
        plot.set(xlim=(0, 100), ylim=(0, 3))
        plot.legend(frameon=False, fontsize=8.5, loc="upper left")
    for plot in axes[1]:
        plot.set_xlabel("channels, weakest first, %")
    for plot in axes[:, 0]:
        plot.set_ylabel("over the layer's mean")
    figure.suptitle(
        "full line: scale of the batch normalisation, where it is folded the filter's L2 norm; "
        "dotted: L1 norm of the folded filter",
        fontsize=10,
        color=SOFT,
    )
    return figure


def pruning_figure(study: ArchitectureStudy) -> Figure:
    """AP lost by stage as its weakest channels go, V1 and V2 to one scale."""
    drawn = {name: one.pruning for name, one in study.networks.items() if one.pruning}
    figure, axes = new_figure(1, len(drawn), 5.8 * len(drawn), 4.2, sharey=True)
    for plot, (name, curves) in zip(axes[0], drawn.items(), strict=True):
        shares = [0.0, *(100 * share for share in curves.shares)]
        for stage, colour in zip(STAGES, COLOURS, strict=False):
            if stage in curves.by_stage:
                lost = [0.0, *(100 * (curves.whole - value) for value in curves.by_stage[stage])]
                plot.plot(shares, lost, color=colour, marker="o", ms=4, label=stage)
        title = f"{name}: AP {100 * curves.whole:.1f} on {curves.photos} held-out photos"
        plot.set_title(title, fontsize=10, color=SOFT)
        plot.set(xlabel="channels set to zero, % of each layer", xlim=(0, None))
        plot.legend(frameon=False, fontsize=9)
    axes[0, 0].set_ylabel("AP lost, points")
    return figure
