"""Deformable convolution v2 in plain PyTorch (Zhu et al., CVPR 2019), for V1's context.

Each of the nine taps reads the map at its place plus a learned offset, bilinearly, zero outside,
times a learned mask; the taps then meet in one matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def deformable_convolution(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """3x3 deformable convolution, stride 1, padding 1, no bias.

    Args:
        x: ``[B, C, H, W]``.
        offset: ``[B, 18, H, W]``, (y, x) in pixels for each tap in row-major order.
        mask: ``[B, 9, H, W]``.
        weight: ``[O, C, 3, 3]``.

    Returns:
        ``[B, O, H, W]``.
    """
    batch, channels, height, width = x.shape
    taps = weight.shape[2] * weight.shape[3]
    rows = torch.arange(height, dtype=x.dtype, device=x.device)[:, None]
    columns = torch.arange(width, dtype=x.dtype, device=x.device)[None]
    tap = torch.arange(taps, device=x.device)
    tap_y = (tap // 3 - 1).to(x.dtype)[:, None, None]
    tap_x = (tap % 3 - 1).to(x.dtype)[:, None, None]
    offset = offset.reshape(batch, taps, 2, height, width)
    y = rows + tap_y + offset[:, :, 0]
    x_place = columns + tap_x + offset[:, :, 1]
    # grid_sample counts from -1 to 1 over the outer edges of the pixels.
    grid = torch.stack([(2 * x_place + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = functional.grid_sample(
        x, grid.reshape(batch, taps * height, width, 2), align_corners=False
    ).reshape(batch, channels, taps, height * width)
    columns_matrix = (sampled * mask.reshape(batch, 1, taps, height * width)).flatten(1, 2)
    # A batched product of the expanded weight copies nothing; `@` would transpose the columns.
    weights = weight.flatten(1).expand(batch, -1, -1)
    return torch.bmm(weights, columns_matrix).reshape(batch, -1, height, width)


class DeformableConv(nn.Module):
    """3x3 deformable convolution to ``[B, O, H, W]`` that predicts its own offsets."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(inputs, 18, 3, padding=1)
        self.mask = nn.Conv2d(inputs, 9, 3, padding=1)
        self.kernel = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        for predictor in (self.offset, self.mask):
            nn.init.zeros_(predictor.weight)
            nn.init.zeros_(predictor.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        mask = 2 * torch.sigmoid(self.mask(x))
        return deformable_convolution(x, self.offset(x), mask, self.kernel.weight)
