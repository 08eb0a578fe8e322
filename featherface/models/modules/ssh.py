"""V1's context: SSH (Najibi et al., ICCV 2017) of deformable convolutions, a shuffle block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherface.models.modules.channel_permutation import shuffle_order
from featherface.models.modules.deformable_conv import DeformableConv

NEGATIVE_SLOPE = 0.1


class DeformableBlock(nn.Sequential):
    """Deformable 3x3 convolution, batch normalisation and, where asked, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, activation: bool) -> None:
        super().__init__(
            DeformableConv(inputs, outputs),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(NEGATIVE_SLOPE) if activation else nn.Identity(),
        )


class DeformableSSH(nn.Module):
    """Map ``[B, C, H, W]`` to ``[B, C, H, W]``: half from 3x3, a quarter each from 5x5 and 7x7."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.context_3 = DeformableBlock(channels, half, activation=False)
        self.reduce = DeformableBlock(channels, quarter, activation=True)
        self.context_5 = DeformableBlock(quarter, quarter, activation=False)
        self.widen = DeformableBlock(quarter, quarter, activation=True)
        self.context_7 = DeformableBlock(quarter, quarter, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        parts = [self.context_3(x), self.context_5(reduced), self.context_7(self.widen(reduced))]
        return torch.relu(torch.cat(parts, dim=1))


class ShuffleBlock(nn.Module):
    """Channel shuffle, then a bottleneck: 1x1 to half, depthwise 3x3, 1x1 back, ReLU."""

    order: Tensor

    def __init__(self, channels: int, bottleneck: bool = True) -> None:
        super().__init__()
        half = channels // 2
        # The public code splits into C/2 groups of two, the inverse of the usual shuffle.
        self.register_buffer("order", shuffle_order(channels, channels // 2), persistent=False)
        self.bottleneck: nn.Module = nn.Identity()
        if bottleneck:
            self.bottleneck = nn.Sequential(
                nn.Conv2d(channels, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
                nn.BatchNorm2d(half),
                nn.Conv2d(half, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.bottleneck(x[:, self.order])
