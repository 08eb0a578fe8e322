"""CBAM: channel attention, then spatial attention (Woo et al., ECCV 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CBAM(nn.Module):
    """Gated map of the same shape ``[B, C, H, W]``."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(
            nn.Linear(channels, channels // reduction),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1, momentum=0.01)
        )

    def channel_gate(self, x: Tensor) -> Tensor:
        """``[B, C, 1, 1]`` from mean and maximum over the map."""
        pooled = self.perceptron(x.mean((2, 3))) + self.perceptron(x.amax((2, 3)))
        return torch.sigmoid(pooled)[:, :, None, None]

    def spatial_gate(self, x: Tensor) -> Tensor:
        """``[B, 1, H, W]`` from maximum and mean over the channels."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return torch.sigmoid(self.spatial(pooled))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel_gate(x)
        return x * self.spatial_gate(x)
