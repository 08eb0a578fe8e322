"""Light BiFPN for inference: the weights of its edges lie in the convolutions around its sums.

A map that comes in times the weight of its edge needs none, and what makes a map can scale it: a
batch normalisation behind a convolution. Two of three edges agree on a scale that way; the map that
the pooling reads has a depthwise convolution of its own, which also lays the zeros around it. What
is left of a node's weights is one factor of its swish and of the kernel behind, and none at stride
8, where maps are largest. The same maps in a third fewer passes, in the layout that convolutions
like best: ONNX Runtime takes 6 % less for all of V2 (docs/experiments.md).
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from featherface.models.modules.factored_pointwise import FactoredPointwise
from featherface.models.modules.light_bifpn import FusionNode, LightBiFPN, upsample

LEAST_EDGE = 1e-2  # below, a map's scale would leave what float16 holds well


class Scales(NamedTuple):
    """What each map that a BiFPN layer reads, and the one between both ways, is stored times."""

    level_8: float
    level_16: float
    level_32: float
    again_16: float
    again_32: float
    middle: float


class FoldedNode(nn.Module):
    """Sum of maps ``[B, C, H, W]``, swish of ``factor`` times it, and the node's convolutions."""

    def __init__(self, node: FusionNode, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.depthwise = copy.deepcopy(node.depthwise)
        self.depthwise.weight.data *= factor
        self.pointwise = node.pointwise
        self.norm = node.norm

    def forward(self, *maps: Tensor) -> Tensor:
        total = sum(maps[1:], maps[0])
        gate = total if self.factor == 1 else self.factor * total
        return self.norm(self.pointwise(self.depthwise(total * gate.sigmoid())))


class FoldedDownsample(nn.Module):
    """``scale`` times V1's maximum over 3x3 cells, for an even height and width.

    The kernel passes on each cell; where it reaches over the last row and column it adds zeros,
    over which V1's last windows lie.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scaled = nn.Conv2d(channels, channels, 2, padding=1, groups=channels, bias=False)
        self.scaled.weight.data.zero_()
        self.scaled.weight.data[:, :, 1, 1] = scale

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(self.scaled(x), 3, 2)


class FoldedBiFPN(nn.Module):
    """``LightBiFPN`` on maps that come in at ``scales`` and go out at ``following``'s."""

    def __init__(self, layer: LightBiFPN, scales: Scales, following: Scales | None) -> None:
        super().__init__()
        to_16, to_32 = edges_of(layer.out_16), edges_of(layer.out_32)
        factor_16, factor_32 = to_16[0] / scales.again_16, to_32[0] / scales.again_32
        out_8, out_16, out_32 = (1.0, 1.0, 1.0) if following is None else following[:3]
        channels = layer.out_8.pointwise.out_channels
        self.down_16 = FoldedNode(layer.down_16, edges_of(layer.down_16)[0] / scales.level_16)
        self.out_8 = FoldedNode(layer.out_8, 1.0)
        self.out_16 = FoldedNode(layer.out_16, factor_16)
        self.out_32 = FoldedNode(layer.out_32, factor_32)
        self.pool_16 = FoldedDownsample(channels, to_16[2] / factor_16 / out_8)
        self.pool_32 = FoldedDownsample(channels, to_32[1] / factor_32 / out_16)
        for node, scale in (
            (self.down_16, scales.middle),
            (self.out_8, out_8),
            (self.out_16, out_16),
            (self.out_32, out_32),
        ):
            rescale(node.pointwise, node.norm, scale)

    def forward(self, levels: list[Tensor], again: list[Tensor] | None = None) -> list[Tensor]:
        """As ``LightBiFPN.forward``."""
        stride_8, stride_16, stride_32 = levels
        again_16, again_32 = again or levels[1:]
        middle = self.down_16(stride_16, upsample(stride_32))
        out_8 = self.out_8(stride_8, upsample(middle))
        out_16 = self.out_16(again_16, middle, self.pool_16(out_8))
        out_32 = self.out_32(again_32, self.pool_32(out_16))
        return [out_8, out_16, out_32]


@torch.no_grad()
def fold_edges(
    laterals: nn.ModuleList, second_laterals: nn.ModuleList, fusions: nn.ModuleList
) -> nn.ModuleList:
    """``fusions`` folded, in place where a layer or lateral has to scale what it makes.

    Plain sums, a single set of laterals, edges that are hardly there and layers of another kind
    stay as they are.
    """
    layers = [layer for layer in fusions if isinstance(layer, LightBiFPN)]
    if len(layers) < len(fusions):
        return fusions
    nodes = [x for layer in layers for x in layer.children() if isinstance(x, FusionNode)]
    plain = any(node.edges is None for node in nodes)
    if plain or not len(second_laterals) or min(min(edges_of(x)) for x in nodes) < LEAST_EDGE:
        return fusions
    scales = [scales_of(layer, first=not place) for place, layer in enumerate(layers)]
    first = scales[0]
    for lateral, scale in zip(laterals, first[:3], strict=True):
        convolution, norm = lateral.children()
        rescale(convolution, norm, scale)
    for lateral, scale, read in zip(second_laterals, first[3:5], first[1:3], strict=True):
        convolution, norm = lateral.children()
        assert isinstance(convolution, nn.Conv2d)
        convolution.weight.div_(read)
        rescale(convolution, norm, scale)
    following = [*scales[1:], None]
    return nn.ModuleList(
        FoldedBiFPN(layer, one, other)
        for layer, one, other in zip(layers, scales, following, strict=True)
    )


def scales_of(layer: LightBiFPN, first: bool) -> Scales:
    """Scales at which the sums of ``layer`` need no weights; of stride 8 no factor either.

    Only the ``first`` layer has other maps for the way up than for the way down.
    """
    down, to_8 = edges_of(layer.down_16), edges_of(layer.out_8)
    to_16, to_32 = edges_of(layer.out_16), edges_of(layer.out_32)
    level_8, middle = to_8
    again_16 = middle * to_16[0] / to_16[1]
    level_16 = down[0] if first else again_16
    level_32 = level_16 * down[1] / down[0]
    again_32 = to_32[0] if first else level_32
    return Scales(level_8, level_16, level_32, again_16, again_32, middle)


def edges_of(node: FusionNode) -> list[float]:
    """The weights of the node's edges."""
    assert node.edges is not None
    weights: list[float] = node.edges.tolist()
    return weights


def rescale(convolution: nn.Module, norm: nn.Module, scale: float) -> None:
    """Let a convolution and what normalises it make ``scale`` times what they made, in place."""
    last = convolution.wide if isinstance(convolution, FactoredPointwise) else convolution
    if isinstance(norm, nn.BatchNorm2d):
        last = norm
    assert isinstance(last, nn.BatchNorm2d | nn.Conv2d)
    for value in last.parameters():
        value.data *= scale
