"""Attention, context and heads of one V2 put into another, whose groups may be fewer and wider.

A convolution in groups is a dense one with zeros in it, so the function stays: the larger model
begins where the smaller one ended, and its new weights begin at zero.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from featherface.errors import WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.channel_permutation import ShuffledPointwise
from featherface.models.pretrained_v2 import load_v2

PARTS = ("attention", "context", "heads")


@torch.no_grad()
def copy_context(model: FeatherFaceV2, path: Path) -> None:
    """Fill ``model`` behind its fusions from the V2 in ``path``, in place.

    Raises:
        WeightsError: the file cannot be read, or its V2 has other channels or wider groups.
    """
    source = load_v2(path)
    for part in PARTS:
        try:
            copy_layers(getattr(model, part), getattr(source, part))
        except (RuntimeError, ValueError, KeyError):
            raise WeightsError(
                f"{path}: its {part} do not fit into the new model's; the same channels "
                "and as many groups or fewer would"
            ) from None


def copy_layers(ours: nn.Module, theirs: nn.Module) -> None:
    """Values of a module and of all in it."""
    if isinstance(ours, ShuffledPointwise) and isinstance(theirs, ShuffledPointwise):
        if ours.conv.groups == 1:
            dense = theirs.folded()[0].get_parameter("weight")
            ours.conv.weight.copy_(dense)
        else:
            ours.conv.weight.copy_(theirs.conv.weight)
        ours.norm.load_state_dict(theirs.norm.state_dict())
        return
    if isinstance(ours, nn.Conv2d) and isinstance(theirs, nn.Conv2d):
        ours.weight.copy_(in_groups(theirs.weight, theirs.groups, ours.groups))
        if ours.bias is not None and theirs.bias is not None:
            ours.bias.copy_(theirs.bias)
        return
    for values in ("named_parameters", "named_buffers"):
        named = dict(getattr(theirs, values)(recurse=False))
        for name, value in getattr(ours, values)(recurse=False):
            value.copy_(named[name])
    inner = dict(theirs.named_children())
    for name, child in ours.named_children():
        copy_layers(child, inner[name])


def in_groups(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """``weight`` ``[out, in / groups, H, W]`` as one of ``fewer`` groups, zero where it was none.

    Raises:
        ValueError: ``groups`` is no multiple of ``fewer``.
    """
    if groups % fewer:
        raise ValueError(f"{groups} groups cannot become {fewer}")
    merged = groups // fewer
    outputs, per_group = len(weight) // groups, weight.shape[1]
    wide = weight.new_zeros(len(weight), per_group * merged, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        first = group % merged * per_group
        wide[rows, first : first + per_group] = weight[rows]
    return wide
