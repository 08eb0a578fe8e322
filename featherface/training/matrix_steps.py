"""Muon for 1x1 convolutions, AdamW for everything else.

Muon (Jordan et al., 2024) steps along the nearest orthogonal matrix of a kernel's momentum, so that
the weak directions of the gradient move as far as the strong ones. On the maps of another network
it got in two minutes where AdamW was after fifty (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from featherface.training.schedules import set_learning_rate

MATRIX_RATE = 5.0  # Muon's learning rate, of AdamW's


class Part(NamedTuple):
    """Parameters that learn at ``share`` of the rate."""

    share: float
    values: list[nn.Parameter]


class KernelMuon(torch.optim.Optimizer):
    """PyTorch's Muon for kernels ``[out, in, 1, 1]``; each group has a ``share``.

    Muon steps plain matrices by a rate that is a number. Here it moves matrices of zeros by
    ``factor``, and the kernels follow by that times their rate, which is AdamW's: with
    ``capturable`` it may be a tensor, so that a recorded step reads the rate of its time.
    """

    def __init__(
        self, parts: Sequence[Part], factor: float = 1.0, capturable: bool = False
    ) -> None:
        groups = [{"params": values, "share": share} for share, values in parts]
        super().__init__(groups, {"lr": 0.0, "capturable": capturable})
        self._moves = [
            [nn.Parameter(torch.zeros_like(p).view(p.shape[:2])) for p in group["params"]]
            for group in self.param_groups
        ]
        moves = [move for group in self._moves for move in group]
        self._muon = torch.optim.Muon(moves, lr=factor, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each kernel that has a gradient."""
        pairs = [
            (kernel, move, group["lr"])
            for group, moves in zip(self.param_groups, self._moves, strict=True)
            for kernel, move in zip(group["params"], moves, strict=True)
        ]
        for kernel, move, _ in pairs:
            move.zero_()
            move.grad = None if kernel.grad is None else kernel.grad.reshape(move.shape)
        self._muon.step()
        for kernel, move, rate in pairs:
            kernel.add_(move.view_as(kernel) * rate)

    def state_dict(self) -> dict[str, Any]:
        """Muon's momenta."""
        return self._muon.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with these momenta."""
        self._muon.load_state_dict(state_dict)


class MatrixSteps:
    """An optimiser of ``parts``; no value decays.

    Kernels in ``plain`` (a predictor's, whose outputs are unlike each other) are AdamW's as well.
    """

    def __init__(self, parts: Sequence[Part], plain: Sequence[nn.Parameter] = ()) -> None:
        matrices, others = by_kind(parts, plain)
        self.values = [p for _, values in parts for p in values]
        self.clipped = [p for _, values in others for p in values]  # Muon knows no length
        groups: list[dict[str, Any]] = [
            {"params": values, "share": share} for share, values in others
        ]
        adamw = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        self._optimisers: list[torch.optim.Optimizer] = [adamw]
        if matrices:
            self._optimisers.append(KernelMuon(matrices, MATRIX_RATE))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for value in self.values:
            value.grad = None

    def step(self, rate: float) -> None:
        """One step at the learning rate ``rate`` of AdamW, ``MATRIX_RATE`` times that of Muon."""
        for optimiser in self._optimisers:
            set_learning_rate(optimiser, rate)
            optimiser.step()


def by_kind(
    parts: Sequence[Part], plain: Sequence[nn.Parameter] = ()
) -> tuple[list[Part], list[Part]]:
    """The parts' kernels that Muon steps, but for those in ``plain``, and their other values.

    A part without such kernels is not among the former.
    """
    kept = {id(p) for p in plain}

    def of_muon(value: nn.Parameter) -> bool:
        return is_matrix(value) and id(value) not in kept

    matrices = [Part(share, [p for p in values if of_muon(p)]) for share, values in parts]
    others = [Part(share, [p for p in values if not of_muon(p)]) for share, values in parts]
    return [part for part in matrices if part.values], others


def is_matrix(value: nn.Parameter) -> bool:
    """Whether ``value`` is the kernel of a 1x1 convolution that mixes channels."""
    return value.ndim == 4 and value.shape[2:] == (1, 1) and min(value.shape[:2]) > 1
