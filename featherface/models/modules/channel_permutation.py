"""A channel shuffle and the grouped 1x1 convolution after it (ShuffleNet, Zhang et al., CVPR 2018).

A shuffle moves memory and computes nothing. Both together are one dense 1x1 convolution with zeros
in it, so the export replaces them: ``folded`` gives that convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def shuffle_order(channels: int, groups: int) -> Tensor:
    """Indices ``[C]`` that interleave the groups: 0, C/G, 2C/G, ..., 1, C/G + 1, ..."""
    return torch.arange(channels).reshape(groups, channels // groups).t().reshape(-1)


class ShuffledPointwise(nn.Module):
    """Channel shuffle, grouped 1x1 convolution, batch normalisation, ReLU on ``[B, C, H, W]``."""

    order: Tensor

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.register_buffer("order", shuffle_order(inputs, groups), persistent=False)
        self.conv: nn.Conv2d = nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x[:, self.order])))

    @torch.no_grad()
    def folded(self) -> nn.Sequential:
        """The same function (evaluation mode) without shuffle or groups."""
        outputs, per_group = self.conv.weight.shape[:2]
        inputs, groups = self.conv.in_channels, self.conv.groups
        dense = nn.Conv2d(inputs, outputs, 1, bias=False)
        dense.weight.zero_()
        for group in range(groups):
            rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
            columns = self.order[group * per_group : (group + 1) * per_group]
            dense.weight[rows, columns] = self.conv.weight[rows]
        return nn.Sequential(dense, self.norm, nn.ReLU())
