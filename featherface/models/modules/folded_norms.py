"""Batch normalisations as a part of the convolutions before them.

By its running statistics a batch normalisation is a factor and a shift of each channel: the factor
belongs to the kernel, the shift is a bias. The same network with one value a channel where there
were two, and none that inference would have to fold.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from featherface.models.modules.channel_permutation import ShuffledPointwise
from featherface.models.modules.factored_pointwise import FactoredPointwise
from featherface.models.modules.interpolative_pointwise import InterpolativePointwise


def fold_norms(model: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it, in place; what is left of it
    is an identity. Those of shuffled convolutions stay.
    """
    for module in list(model.modules()):
        if isinstance(module, ShuffledPointwise):
            continue
        for (name, child), (behind, norm) in pairwise(list(module.named_children())):
            if isinstance(norm, nn.BatchNorm2d):
                folded = convolution_with(child, norm)
                if folded is not None:
                    setattr(module, name, folded)
                    setattr(module, behind, nn.Identity())


@torch.no_grad()
def convolution_with(layer: nn.Module, norm: nn.BatchNorm2d) -> nn.Module | None:
    """``layer`` and ``norm`` behind it, by its running statistics; None for no convolution."""
    factor, shift = of_channels(norm)
    if isinstance(layer, InterpolativePointwise):
        return layer.scaled(factor, shift)
    last = layer.wide if isinstance(layer, FactoredPointwise) else layer
    if not isinstance(last, nn.Conv2d):
        return None
    last.weight.mul_(factor[:, None, None, None])
    if last.bias is not None:
        shift = shift + last.bias * factor
    last.bias = nn.Parameter(shift.detach().clone())
    return layer


def of_channels(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and shift ``[C]`` of each channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return factor, norm.bias - norm.running_mean * factor
