"""The moving average of a net's weights and statistics, which is what a run ships."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """An exponential moving average of ``model``, quick at first, then ``decay``.

    ``torch.optim.swa_utils.AveragedModel`` asks its counter at every step, for which a GPU has to
    finish its work first; this one counts on the processor and moves all tensors at once.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights that ``model`` has now."""
        self.updates += 1
        share = min(self.decay, self.updates / (9 + self.updates))
        averaged, current = floats(self.module), floats(model)
        torch._foreach_lerp_(averaged, current, 1 - share)
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            if not ours.is_floating_point():
                ours.copy_(theirs)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state)


def floats(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers of ``model`` that can be averaged."""
    tensors = [*model.parameters(), *model.buffers()]
    return [x.detach() for x in tensors if x.is_floating_point()]
