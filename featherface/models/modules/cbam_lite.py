"""CBAM-lite ("CBAM++"): channel and spatial attention that cost next to nothing.

V1's CBAM (Woo et al., ECCV 2018) spends a two-layer perceptron on the channels, twice, and a 7x7
convolution on maximum and mean over all channels. Here the channel gate is a short convolution
along the channels (ECA, Wang et al., CVPR 2020) about a learned value a channel, because V1's gates
turn out to depend on the channel far more than on the photo. The spatial gate is one 1x1
convolution. Both are matrix products that every runtime has tuned, and no reduction over channels
is left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CBAMLite(nn.Module):
    """``x * (1 + channel_gate * spatial_gate)`` for a map ``[B, C, H, W]``.

    The leading one is V1's residual; the two gates are outer factors, as in CBAM.
    """

    def __init__(self, channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        self.channel = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.channel_bias = nn.Parameter(torch.zeros(channels))
        self.spatial = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.channel.weight)
        nn.init.normal_(self.spatial.weight, std=0.01)
        nn.init.zeros_(self.spatial.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3)).unsqueeze(1)
        gates = torch.sigmoid(self.channel(means) + self.channel_bias)
        channel_gate = gates.transpose(1, 2).unsqueeze(3)
        spatial_gate = torch.sigmoid(self.spatial(x))
        return x + x * channel_gate * spatial_gate
