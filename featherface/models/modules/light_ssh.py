"""Light SSH: the context of a level by separable 3x3 convolutions in a row.

SSH (Najibi et al., ICCV 2017) stacks 3x3 convolutions for a wider view of each cell, V1 makes each
of them deformable and sends the result through a bottleneck. A few separable blocks (depthwise 3x3,
pointwise 1x1) fit V1's context better than grouped convolutions of more parameters do, and compute
less.
"""

from __future__ import annotations

from torch import nn

from featherface.models.backbone import SeparableBlock
from featherface.models.modules.ssh import NEGATIVE_SLOPE


class LightSSH(nn.Sequential):
    """Map ``[B, C, H, W]`` to ``[B, C, H, W]``, none of it negative, as V1's context is."""

    def __init__(
        self,
        channels: int,
        blocks: int,
        rank: int = 0,
        negative_slope: float = NEGATIVE_SLOPE,
    ) -> None:
        layers: list[nn.Module] = []
        for _ in range(blocks):
            block = SeparableBlock(channels, channels, 1, negative_slope, rank)
            layers += [*list(block)[:-1], nn.ReLU(inplace=True)]
        super().__init__(*layers)
