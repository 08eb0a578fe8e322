"""Light BiFPN: top-down and bottom-up fusion of three levels.

V1's BiFPN (EfficientDet, Tan et al., CVPR 2020) with its edges as numbers, so that V1's weights
make V1's maps. The grouped V2 did with plain sums and ReLU (``weighted=False``), which saves passes
over the maps and the second laterals; no training brought its maps near V1's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from featherface.models.modules.bifpn import downsample as downsample_over_zeros


class FusionNode(nn.Module):
    """Weighted sum of ``edges`` maps ``[B, C, H, W]``, swish, depthwise 3x3, pointwise 1x1, batch
    normalisation; without ``weighted`` a plain sum and ReLU.
    """

    def __init__(self, channels: int, edges: int, weighted: bool = False) -> None:
        super().__init__()
        self.edges = nn.Parameter(torch.full((edges,), 1 / edges)) if weighted else None
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, *maps: Tensor) -> Tensor:
        if self.edges is None:
            x = functional.relu(sum(maps[1:], maps[0]))
        else:
            weighed = [weight * x for weight, x in zip(self.edges, maps, strict=True)]
            x = functional.silu(sum(weighed[1:], weighed[0]))
        return self.norm(self.pointwise(self.depthwise(x)))


class LightBiFPN(nn.Module):
    """One top-down and bottom-up pass over strides 8, 16 and 32, all of ``C`` channels."""

    def __init__(self, channels: int, weighted: bool = False) -> None:
        super().__init__()
        self.downsample = downsample_over_zeros if weighted else downsample
        self.down_16 = FusionNode(channels, 2, weighted)
        self.out_8 = FusionNode(channels, 2, weighted)
        self.out_16 = FusionNode(channels, 3, weighted)
        self.out_32 = FusionNode(channels, 2, weighted)

    def forward(self, levels: list[Tensor], again: list[Tensor] | None = None) -> list[Tensor]:
        """``again``: other maps of strides 16 and 32 for the way up."""
        stride_8, stride_16, stride_32 = levels
        again_16, again_32 = again or levels[1:]
        middle = self.down_16(stride_16, upsample(stride_32))
        out_8 = self.out_8(stride_8, upsample(middle))
        out_16 = self.out_16(again_16, middle, self.downsample(out_8))
        out_32 = self.out_32(again_32, self.downsample(out_16))
        return [out_8, out_16, out_32]


def upsample(x: Tensor) -> Tensor:
    """Nearest neighbour, twice the height and width."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Maximum over 3x3 cells, half the height and width, which are even.

    The windows begin at even cells, as in V1; the last reaches over the edge by one.
    """
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)
