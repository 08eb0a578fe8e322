"""Muon for 1x1 convolutions, AdamW for everything else.

Muon (Jordan et al., 2024) steps along the nearest orthogonal matrix of a kernel's momentum, so that
the weak directions of the gradient move as far as the strong ones. On the maps of another network
it got in two minutes where AdamW was after fifty (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

MATRIX_RATE = 5.0  # Muon's learning rate, of AdamW's


class Part(NamedTuple):
    """Parameters that learn at ``share`` of the rate."""

    share: float
    values: list[nn.Parameter]


class MatrixSteps:
    """An optimiser of ``parts``; no value decays.

    Kernels in ``plain`` (a predictor's, whose outputs are unlike each other) are AdamW's as well.
    """

    def __init__(self, parts: Sequence[Part], plain: Sequence[nn.Parameter] = ()) -> None:
        kept = {id(p) for p in plain}
        matrices: list[dict[str, object]] = []
        others: list[dict[str, object]] = []
        # PyTorch's Muon takes matrices alone: it gets views of the kernels.
        self._views: list[tuple[nn.Parameter, nn.Parameter]] = []
        for share, values in parts:
            mine = [p for p in values if is_matrix(p) and id(p) not in kept]
            views = [nn.Parameter(p.detach().view(p.shape[:2])) for p in mine]
            self._views += list(zip(mine, views, strict=True))
            matrices.append({"params": views, "share": share})
            own = {id(p) for p in mine}
            others.append({"params": [p for p in values if id(p) not in own], "share": share})
        self.values = [p for _, values in parts for p in values]
        matrices_of = {id(p) for p, _ in self._views}
        self.clipped = [p for p in self.values if id(p) not in matrices_of]  # Muon knows no length
        self._adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
        self._muon = torch.optim.Muon(matrices, weight_decay=0.0) if self._views else None

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for value in self.values:
            value.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at the learning rate ``rate`` of AdamW, ``MATRIX_RATE`` times that of Muon."""
        for kernel, view in self._views:
            view.grad = None if kernel.grad is None else kernel.grad.view_as(view)
        for optimiser, factor in ((self._adamw, 1.0), (self._muon, MATRIX_RATE)):
            if optimiser is not None:
                for group in optimiser.param_groups:
                    group["lr"] = factor * rate * group["share"]
                optimiser.step()


def is_matrix(value: nn.Parameter) -> bool:
    """Whether ``value`` is the kernel of a 1x1 convolution that mixes channels."""
    return value.ndim == 4 and value.shape[2:] == (1, 1) and min(value.shape[:2]) > 1
