"""Grouped SSH: context of three receptive fields by grouped convolutions, then a channel shuffle.

SSH (Najibi et al., ICCV 2017) widens the view of each cell by stacked 3x3 convolutions: one, two
and three in a row stand for 3x3, 5x5 and 7x7. V1 makes each of them deformable. Here they are plain
and grouped (ShuffleNet, Zhang et al., CVPR 2018), and a depthwise 3x3 moves what they saw to where
it is needed, which is what the learned offsets did. The shuffle that mixes the groups is a fixed
permutation, folded into the weights of the next 1x1 convolution at export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from featherface.models.modules.channel_permutation import ShuffledPointwise


class ConvNorm(nn.Sequential):
    """3x3 convolution in groups and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )


class GroupedSSH(nn.Module):
    """Map ``[B, C, H, W]`` to ``[B, C, H, W]``: half from 3x3, a quarter each from 5x5 and 7x7."""

    def __init__(self, channels: int, groups: int = 4) -> None:
        super().__init__()
        half, quarter, fewer = channels // 2, channels // 4, max(1, groups // 2)
        self.context_3 = ConvNorm(channels, half, groups)
        self.reduce = ConvNorm(channels, quarter, groups)
        self.context_5 = ConvNorm(quarter, quarter, fewer)
        self.context_7 = nn.Sequential(
            ConvNorm(quarter, quarter, fewer),
            nn.ReLU(inplace=True),
            ConvNorm(quarter, quarter, fewer),
        )
        self.move = ConvNorm(channels, channels, channels)
        self.mix = ShuffledPointwise(channels, channels, fewer)

    def forward(self, x: Tensor) -> Tensor:
        reduced = functional.relu(self.reduce(x))
        context = torch.cat(
            [self.context_3(x), self.context_5(reduced), self.context_7(reduced)], dim=1
        )
        return self.mix(self.move(functional.relu(context)))
