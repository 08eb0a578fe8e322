"""Muon for 1x1 convolutions, AdamW for everything else.

Muon (Jordan et al., 2024) steps along the nearest orthogonal matrix of a kernel's momentum, so that
the weak directions of the gradient move as far as the strong ones. On the maps of another network
it got in two minutes where AdamW was after fifty (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherface.training.schedules import set_learning_rate

MATRIX_RATE = 5.0  # Muon's learning rate, of AdamW's
MOMENTUM = 0.95


class Part(NamedTuple):
    """Parameters that learn at ``share`` of the rate."""

    share: float
    values: list[nn.Parameter]


class KernelMuon(torch.optim.Optimizer):
    """Muon for kernels ``[out, in, 1, 1]``; each group has a ``share``.

    PyTorch's own works in bfloat16, which a processor without it emulates: a tenth of a whole step
    more. And its rate is a number, where a recorded step has to read the rate of its time from a
    tensor (``capturable``).
    """

    def __init__(
        self, parts: Sequence[Part], factor: float = 1.0, capturable: bool = False
    ) -> None:
        groups = [{"params": values, "share": share} for share, values in parts]
        super().__init__(groups, {"lr": 0.0, "capturable": capturable})
        self._factor = factor

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each kernel that has a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                gradient = kernel.grad.flatten(1)
                state = self.state[kernel]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
                move = nearly_orthogonal(gradient.lerp(momentum, MOMENTUM))  # as Nesterov looks on
                tall = max(1.0, move.shape[0] / move.shape[1]) ** 0.5
                kernel.sub_(move.view_as(kernel) * (self._factor * tall * group["lr"]))


def nearly_orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the nearest orthogonal matrix: ``matrix`` with singular values of 0.7 to 1.2, but for
    the weakest.

    Newton-Schulz iterations with the coefficients of Jordan et al. (2024), which lift weak
    directions fast and do not converge.
    """
    first, third, fifth = 3.4445, -4.775, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        square = x @ x.T
        lift = torch.addmm(square, square, square, beta=third, alpha=fifth)
        x = torch.addmm(x, lift, x, beta=first)
    return x.T if tall else x


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
