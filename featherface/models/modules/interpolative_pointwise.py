"""Interpolative pointwise convolution: of low rank, with a basis of its own outputs.

Two factors of rank r say the same in many ways: a change of basis between them leaves the product
as it is, so r * r of their values are spent for nothing. If the r channels between them are r of
the outputs themselves, only the others are computed from them (the interpolative decomposition of
Cheng, Gimbutas, Martinsson and Rokhlin, SIAM Journal on Scientific Computing 26, 2005). Rank 48
from 128 to 128 channels takes 9,984 values so, 12,288 in factors and 16,384 whole; at half of the
rank, where factors save nothing, a quarter is saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featherface.models.modules.factored_pointwise import FactoredPointwise

LEAST_NORM = 1e-200  # of a direction that is left


class InterpolativePointwise(nn.Module):
    """Map ``[B, inputs, H, W]`` to ``[B, outputs, H, W]``, the last from the first ``rank``."""

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool = False) -> None:
        super().__init__()
        self.basis = nn.Conv2d(inputs, rank, 1, bias=bias)
        self.others = nn.Conv2d(rank, outputs - rank, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        basis = self.basis(x)
        return torch.cat([basis, self.others(basis)], 1)

    @classmethod
    def like(cls, factors: FactoredPointwise) -> InterpolativePointwise:
        """One of the same size, with values of its own."""
        has_bias = factors.wide.bias is not None
        return cls(factors.inputs, factors.outputs, factors.rank, has_bias)

    @torch.no_grad()
    def fill(self, factors: FactoredPointwise) -> None:
        """Make what ``factors`` make, the first ``rank`` outputs of which are a basis of all."""
        first, second = (x.double() for x in factors.factors())
        rank = factors.rank
        basis, others = second[:rank], second[rank:]
        weights = torch.linalg.solve(basis, others, left=False)
        self.basis.weight.copy_((basis @ first)[..., None, None])
        self.others.weight.copy_(weights[..., None, None])
        bias = factors.wide.bias
        if bias is not None:
            assert self.basis.bias is not None
            assert self.others.bias is not None
            self.basis.bias.copy_(bias[:rank])
            self.others.bias.copy_(bias[rank:] - weights.to(bias) @ bias[:rank])

    @torch.no_grad()
    def scaled(self, factor: Tensor, shift: Tensor) -> InterpolativePointwise:
        """One that makes ``factor`` times what it makes, plus ``shift``, both ``[outputs]``."""
        rank, inputs = self.basis.weight.shape[:2]
        made = InterpolativePointwise(inputs, len(factor), rank, bias=True).to(factor.device)
        assert made.basis.bias is not None
        assert made.others.bias is not None
        scale, offset = factor.double(), shift.double()
        if self.basis.bias is not None and self.others.bias is not None:
            plain = torch.cat([self.basis.bias, self.others.bias]).double()
            plain[rank:] += self.others.weight.flatten(1).double() @ plain[:rank]
            offset = offset + scale * plain
        weights = scale[rank:, None] * self.others.weight.flatten(1) / scale[:rank]
        made.basis.weight.copy_(scale[:rank, None, None, None] * self.basis.weight)
        made.basis.bias.copy_(offset[:rank])
        made.others.weight.copy_(weights[..., None, None])
        made.others.bias.copy_(offset[rank:] - weights @ offset[:rank])
        return made


@torch.no_grad()
def basis_first(parts: Sequence[tuple[FactoredPointwise, Tensor]]) -> Tensor:
    """An order of the outputs, ``[outputs]``, whose first ``rank`` make the others well.

    In all ``parts``, each with a ``scale`` ``[outputs]``. Each is the one that those before it say
    least of (a QR decomposition with column pivoting; of several parts the product counts), in
    units of ``1 / scale``, so that no weight of another is large.
    """
    left = []
    for factors, scale in parts:
        first, second = (x.double() for x in factors.factors())
        left.append(scale.double()[:, None] * (second @ first))
    ranks = [factors.rank for factors, _ in parts]
    chosen: list[int] = []
    for count in range(max(ranks)):
        open_parts = [i for i, rank in enumerate(ranks) if rank > count]
        gain = torch.stack([left[i].norm(dim=1).clamp_min(LEAST_NORM).log() for i in open_parts])
        gain = gain.sum(0)
        gain[chosen] = -torch.inf
        place = int(gain.argmax())
        for i in open_parts:
            direction = left[i][place] / left[i][place].norm().clamp_min(LEAST_NORM)
            left[i] = left[i] - (left[i] @ direction)[:, None] * direction
        chosen.append(place)
    rest = [i for i in range(len(left[0])) if i not in set(chosen)]
    return torch.tensor(chosen + rest, device=left[0].device)


def replace_factors(*parts: nn.Module | None) -> None:
    """Put an interpolative convolution in place of each in factors, with values of its own."""
    for part in parts:
        for module in [] if part is None else list(part.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, FactoredPointwise):
                    setattr(module, name, InterpolativePointwise.like(child))
