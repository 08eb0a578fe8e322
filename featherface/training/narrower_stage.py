"""A V2 with fewer channels in stage 2 from one with more, the function kept as near as it can be.

What weighs least goes: by the scale of the normalisation before a pointwise convolution times the
norm of what reads it (after Liu et al., ICCV 2017). What a lost channel gave on average goes into
the normalisation of its readers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training.warm_start import STATISTICS, important, outgoing_norm


@torch.no_grad()
def copy_with_narrower_stage2(model: FeatherFaceV2, source: FeatherFaceV2) -> None:
    """Fill ``model``, which is as ``source`` but for fewer channels in stage 2, in place."""
    own = model.state_dict()
    same = {k: v for k, v in source.state_dict().items() if own[k].shape == v.shape}
    model.load_state_dict(same, strict=False)
    blocks, old = layers(model.backbone.stage2), layers(source.backbone.stage2)
    width = len(blocks[0][3].weight)
    readers = [
        (layers(model.laterals)[1], layers(source.laterals)[1]),
        *zip(layers(model.second_laterals)[:1], layers(source.second_laterals)[:1], strict=True),
    ]
    after, old_after = layers(model.backbone.stage3)[0], layers(source.backbone.stage3)[0]
    kept = torch.arange(old[0][0].in_channels)
    for index, (new, block) in enumerate(zip(blocks, old, strict=True)):
        copy_depthwise(new, block, kept)
        columns = kept
        if index + 1 < len(old):
            following = old[index + 1]
            weights = following[1].weight.abs() * outgoing_norm(following[3].weight)
        else:
            weights = old_after[1].weight.abs() * outgoing_norm(old_after[3].weight)
            weights = weights / weights.mean()
            for _, lateral in readers:
                read = block[4].weight.abs() * outgoing_norm(lateral[0].weight)
                weights = weights + read / read.mean()
        kept = important(weights, torch.ones_like(weights), width)
        copy_pointwise(new, block, columns, kept)
    for lateral, theirs in readers:
        lateral[0].weight.copy_(theirs[0].weight[:, kept])
        gone = mean_after(old[-1][4], 0.0)
        lateral[1].running_mean.sub_(lost(theirs[0].weight, gone, kept))
    copy_depthwise(after, old_after, kept)
    copy_pointwise(after, old_after, kept, torch.arange(len(old_after[3].weight)))


def layers(module: nn.Module) -> list[Any]:
    """The sequences in a stage or a list of laterals, whose layers are counted as they stand."""
    return list(module.children())


def copy_depthwise(new: Any, old: Any, kept: Tensor) -> None:
    """The first two layers of a block for the channels ``kept``."""
    new[0].weight.copy_(old[0].weight[kept])
    copy_statistics(new[1], old[1], kept)


def copy_pointwise(new: Any, old: Any, columns: Tensor, rows: Tensor) -> None:
    """The 1x1 convolution of a block and its normalisation."""
    new[3].weight.copy_(old[3].weight[rows][:, columns])
    copy_statistics(new[4], old[4], rows)
    gone = mean_after(old[1], old[2].negative_slope)
    new[4].running_mean.sub_(lost(old[3].weight, gone, columns)[rows])


def copy_statistics(new: nn.BatchNorm2d, old: nn.BatchNorm2d, kept: Tensor) -> None:
    """The channels ``kept`` of ``old`` become those of ``new``."""
    for part in STATISTICS:
        getattr(new, part).copy_(getattr(old, part)[kept])


def mean_after(norm: nn.BatchNorm2d, negative_slope: float) -> Tensor:
    """Mean ``[C]`` of leaky ReLU on a normal variable with the normalisation's scale and bias."""
    scale, bias = norm.weight.abs().clamp_min(1e-6), norm.bias
    share = bias / scale
    above = 0.5 * (1 + torch.erf(share / math.sqrt(2)))
    density = torch.exp(-0.5 * share.square()) / math.sqrt(2 * math.pi)
    positive = bias * above + scale * density
    return negative_slope * bias + (1 - negative_slope) * positive


def lost(weight: Tensor, means: Tensor, kept: Tensor) -> Tensor:
    """Mean ``[out]`` that a 1x1 convolution loses with all inputs but ``kept``."""
    gone = torch.ones_like(means, dtype=torch.bool)
    gone[kept] = False
    return weight.flatten(1)[:, gone] @ means[gone]
