"""What part of the photo an output cell can see, by stride, against the anchors it answers for.

Theory: all weights one, all offsets zero, every map reduced to "has seen it" or not; then one
column of the photo is lit and the cells that notice it are counted. Attention sees the whole photo
through its averages and is left out. In effect: how the gradient of a cell's logits spreads over
real photos (Luo et al., Understanding the Effective Receptive Field, NIPS 2016); most of it lies in
a small middle.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featherface.analysis.module_costs import Model
from featherface.anchors import ANCHORS_PER_CELL, STRIDES
from featherface.models.modules.cbam import CBAM
from featherface.models.modules.cbam_lite import CBAMLite
from featherface.models.modules.deformable_conv import DeformableConv

SHARES = (0.5, 0.9)
BRIGHT = 1e6  # drowns the channel means that V1 subtracts
SEEN = 0.05  # over what rounding leaves beside a sampling point


@dataclass(frozen=True)
class EffectiveField:
    """Sides in pixels of the square around a cell that holds half and 90 % of its gradient."""

    half: float
    ninety: float


@torch.no_grad()
def theoretical_fields(model: Model, span: int = 4096) -> dict[str, dict[int, int]]:
    """Width in pixels that a cell sees, ``{"backbone" | "neck" | "context": {stride: width}}``.

    Cells of one stride lie differently to those of the coarser ones; the widest field counts. One
    that reaches ``span``, a multiple of 64, reads as ``span``.
    """
    probe = _yes_or_no(model)
    middle, coarsest = span // 2, max(STRIDES)
    reach: dict[tuple[str, int, int], list[int]] = {}
    for phase in range(coarsest):
        image = torch.zeros(1, 3, 2 * coarsest, span)
        image[..., middle + phase] = BRIGHT
        maps = probe.forward_with_features(image)[1]
        for place, levels in maps._asdict().items():
            for stride, level in zip(STRIDES, levels, strict=True):
                lit = np.flatnonzero(level[0].amax((0, 1)).numpy() > SEEN)
                offsets = middle + phase - lit * stride
                for alignment in range(coarsest // stride):
                    chosen = offsets[lit % (coarsest // stride) == alignment]
                    if len(chosen):
                        ends = reach.setdefault((place, stride, alignment), [0, 0])
                        ends[:] = min(ends[0], int(chosen.min())), max(ends[1], int(chosen.max()))
    fields: dict[str, dict[int, int]] = {}
    for (place, stride, _), (first, last) in reach.items():
        widths = fields.setdefault(place, {})
        widths[stride] = min(span, max(widths.get(stride, 0), last - first + 1))
    return fields


def effective_fields(
    model: Model, images: Sequence[NDArray[np.uint8]], side: int = 640
) -> dict[int, EffectiveField]:
    """By stride, the mean over ``images`` (uint8 RGB, padded or cut to ``side`` pixels)."""
    model.eval()
    sums = {stride: np.zeros(side) for stride in STRIDES}
    for picture in images:
        image = _square(picture, side).requires_grad_()
        logits = model(image).logits[0]
        first = 0
        for stride in STRIDES:
            cells = side // stride
            cell = first + (cells // 2 * cells + cells // 2) * ANCHORS_PER_CELL
            chosen = logits[cell : cell + ANCHORS_PER_CELL].sum()
            (gradient,) = torch.autograd.grad(chosen, image, retain_graph=True)
            sums[stride] += _by_distance(gradient, (cells // 2 + 0.5) * stride)
            first += cells * cells * ANCHORS_PER_CELL
    return {stride: EffectiveField(*_sides(total)) for stride, total in sums.items()}


def _by_distance(gradient: Tensor, centre: float) -> NDArray[np.float64]:
    """Share of the gradient by its distance to ``centre``, the larger of x and y, whole pixels."""
    weight = gradient[0].abs().sum(0).double().numpy()
    offsets = np.abs(np.arange(weight.shape[0]) + 0.5 - centre)
    distance = np.maximum(offsets[:, None], offsets[None]).astype(int)
    binned = np.bincount(distance.ravel(), weight.ravel(), minlength=weight.shape[0])
    return np.asarray(binned[: weight.shape[0]] / max(weight.sum(), 1e-30))


def _sides(by_distance: NDArray[np.float64]) -> tuple[float, float]:
    share = np.cumsum(by_distance) / max(by_distance.sum(), 1e-30)
    first, second = (2.0 * (int(np.searchsorted(share, one)) + 1) for one in SHARES)
    return first, second


def _square(picture: NDArray[np.uint8], side: int) -> Tensor:
    image = torch.zeros(1, 3, side, side)
    top, left = (max(0, (length - side) // 2) for length in picture.shape[:2])
    piece = np.ascontiguousarray(picture[top : top + side, left : left + side])
    down, right = ((side - length) // 2 for length in piece.shape[:2])
    height, width = piece.shape[:2]
    image[0, :, down : down + height, right : right + width] = torch.tensor(piece).permute(2, 0, 1)
    return image


def _yes_or_no(model: Model) -> Model:
    """A copy whose maps are 1 where anything lit is seen and 0 elsewhere."""
    probe = copy.deepcopy(model).eval()
    for module in list(probe.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d | CBAM | CBAMLite):
                setattr(module, name, nn.Identity())
    for name, parameter in probe.named_parameters():
        parameter.fill_(0 if name.endswith("bias") else 1)
    for module in probe.modules():
        if isinstance(module, DeformableConv):
            module.offset.weight.zero_()
            module.mask.weight.zero_()
        if isinstance(module, nn.Conv2d | DeformableConv):
            module.register_forward_hook(_light)
    return probe


def _light(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return (output > SEEN).to(output.dtype)
