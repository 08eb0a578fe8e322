"""Each named part of V2 beside the part of V1 whose work it does: parameters, work, output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from featherface.analysis.figures import SOFT, V1_COLOUR, V2_COLOUR, new_figure
from featherface.analysis.map_plots import HEAT, Image, energy, maps_of
from featherface.anchors import STRIDES
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.ssh import DeformableSSH, ShuffleBlock


@dataclass(frozen=True, eq=False)
class Twin:
    """A part of both models.

    ``parameters`` and ``multiply_adds`` are (V1, V2) over all three strides at 640x640;
    ``outputs`` are maps ``[1, C, H, W]`` at stride 8 of one photo, or None.
    """

    name: str
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    outputs: tuple[Tensor, Tensor] | None

    def row(self) -> dict[str, Any]:
        """The figures as a table's row."""
        (first, second), (work_first, work_second) = self.parameters, self.multiply_adds
        return {
            "part": self.name,
            "V1 parameters": f"{first:,}",
            "V2 parameters": f"{second:,}",
            "change": f"{100 * (second / first - 1):+.0f} %",
            "V1 MMACs": f"{work_first / 1e6:,.1f}",
            "V2 MMACs": f"{work_second / 1e6:,.1f}",
        }


class SSHAndShuffle(nn.Module):
    """V1's context at one stride: deformable SSH, then the shuffle block."""

    def __init__(self, context: DeformableSSH, shuffle: ShuffleBlock) -> None:
        super().__init__()
        self.context, self.shuffle = context, shuffle

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.shuffle(self.context(x))
        return mixed


@torch.no_grad()
def multiply_adds(module: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of convolutions and matrix products, by PyTorch's counter.

    What it has no formula for, sampling, sums and gates, counts nothing.
    """
    with FlopCounterMode(display=False) as counter:
        module.eval()(*inputs)
    return counter.get_total_flops() // 2


@torch.no_grad()
def compare_twins(v1: BaselineV1, v2: FeatherFaceV2, image: Image, side: int = 640) -> list[Twin]:
    """Attention, fusion, context and heads of both models; pictures from ``image``."""
    channels = v1.heads.classes[0].in_channels
    maps = [torch.zeros(1, int(str(channels)), side // s, side // s) for s in STRIDES]
    first, second = maps_of(v1, image), maps_of(v2, image)
    parts = (
        (
            "neck's attention",
            list(v1.neck_attention),
            list(v2.attention),
            (first.neck[0], second.neck[0]),
        ),
        (
            "context",
            [SSHAndShuffle(c, s) for c, s in zip(v1.context, v1.shuffle, strict=True)],  # type: ignore[arg-type]
            list(v2.context),
            (first.context[0], second.context[0]),
        ),
    )
    twins = [
        Twin(
            name,
            (_parameters(ours), _parameters(theirs)),
            (_work(ours, maps), _work(theirs, maps)),
            outputs,
        )
        for name, ours, theirs, outputs in parts
    ]
    fused_first, fused_second = _fusions(v1, side), _fusions(v2, side)
    twins.insert(0, _twin("laterals and fusion", fused_first, fused_second))
    towers = [torch.zeros(1, n, *x.shape[2:]) for n, x in zip(v2.heads.read, maps, strict=True)]
    heads = [(v1.heads, maps), (v2.heads, towers)]
    twins.append(_twin("heads", *((_parameters([h]), multiply_adds(h, x)) for h, x in heads)))
    return twins


def twin_cost_plot(twins: list[Twin]) -> Figure:
    """Bars of parameters and of work, V1 above V2."""
    figure, axes = new_figure(1, 2, 10.5, 3.2, sharey=True)
    names = [twin.name for twin in twins]
    for plot, values, label in (
        (axes[0, 0], [[n / 1e3 for n in t.parameters] for t in twins], "thousand parameters"),
        (
            axes[0, 1],
            [[n / 1e6 for n in t.multiply_adds] for t in twins],
            "million multiply-adds at 640x640",
        ),
    ):
        for version, (colour, name) in enumerate(((V1_COLOUR, "V1"), (V2_COLOUR, "V2"))):
            places = [place + 0.38 * (version - 0.5) for place in range(len(twins))]
            plot.barh(places, [v[version] for v in values], 0.36, color=colour, label=name)
        plot.set_xlabel(label)
    axes[0, 0].set_yticks(range(len(twins)), names)
    axes[0, 0].invert_yaxis()
    axes[0, 1].legend(frameon=False, loc="upper right")
    return figure


def twin_output_plot(twins: list[Twin], image: Image) -> Figure:
    """The outputs at stride 8 of those twins that can be compared, beside the photo."""
    shown = [twin for twin in twins if twin.outputs is not None]
    figure, axes = new_figure(len(shown), 3, 8.6, 3.0 * len(shown))
    for row, twin in zip(axes, shown, strict=True):
        for plot in row:
            plot.axis("off")
        row[0].imshow(image)
        row[0].set_title(twin.name, fontsize=10, color=SOFT)
        for plot, output, name in zip(row[1:], twin.outputs or (), ("V1", "V2"), strict=True):
            height, width = -(-image.shape[0] // 8), -(-image.shape[1] // 8)
            plot.imshow(energy(output)[:height, :width], cmap=HEAT)
            plot.set_title(f"{name}, stride 8", fontsize=10, color=SOFT)
    return figure


def _twin(name: str, first: tuple[int, int], second: tuple[int, int]) -> Twin:
    """From (parameters, multiply-adds) of V1 and of V2."""
    return Twin(name, (first[0], second[0]), (first[1], second[1]), None)


def _parameters(modules: list[Any]) -> int:
    unique = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(unique.values())


def _work(modules: list[Any], maps: list[Tensor]) -> int:
    return sum(multiply_adds(module, x) for module, x in zip(modules, maps, strict=True))


def _fusions(model: BaselineV1 | FeatherFaceV2, side: int) -> tuple[int, int]:
    """Parameters and multiply-adds of laterals and BiFPN layers."""
    modules: list[Any] = list(model.fusions)
    work = 0
    levels = [
        torch.zeros(1, channels, side // stride, side // stride)
        for channels, stride in zip(_backbone_channels(model), STRIDES, strict=True)
    ]
    if isinstance(model, FeatherFaceV2):
        modules = [*model.laterals, *model.second_laterals, *modules]
        work += _work(list(model.laterals), levels)
        levels = [lateral(x) for lateral, x in zip(model.laterals, levels, strict=True)]
        for lateral, x in zip(model.second_laterals, levels[1:], strict=False):
            work += multiply_adds(lateral, x)
    for fusion in model.fusions:
        work += multiply_adds(fusion, levels)
        levels = fusion(levels)
    return _parameters(modules), work


def _backbone_channels(model: BaselineV1 | FeatherFaceV2) -> list[int]:
    with torch.no_grad():
        image = torch.zeros(1, 3, 64, 64)
        maps = model.seen(image)[0] if isinstance(model, FeatherFaceV2) else model.backbone(image)
        return [x.shape[1] for x in maps]
