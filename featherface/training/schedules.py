"""What moves over a run: the learning rate and the weights of the distillation terms."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class TermWeights(NamedTuple):
    """Weights of the teacher's features, of its outputs, and of the labels."""

    features: float | Tensor
    outputs: float | Tensor
    labels: float | Tensor


def learning_rate(progress: float, peak: float, warmup: float, final_rate: float) -> float:
    """Linear from a tenth to ``peak`` over ``warmup``, then a cosine to ``final_rate * peak``."""
    if progress < warmup:
        return peak * (0.1 + 0.9 * progress / warmup)
    along = min((progress - warmup) / max(1 - warmup, 1e-9), 1.0)
    return peak * (final_rate + (1 - final_rate) * 0.5 * (1 + math.cos(math.pi * along)))


def term_weights(progress: float, schedule: list[tuple[float, float, float, float]]) -> TermWeights:
    """Weights at ``progress``, linear between the schedule's points."""
    points = sorted(schedule)
    if progress <= points[0][0]:
        return TermWeights(*points[0][1:])
    for (start, *before), (end, *after) in pairwise(points):
        if progress <= end:
            along = (progress - start) / max(end - start, 1e-9)
            features, outputs, labels = (
                a + along * (b - a) for a, b in zip(before, after, strict=True)
            )
            return TermWeights(features, outputs, labels)
    return TermWeights(*points[-1][1:])


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step; each group has its share of it.

    A replayed step reads its rate from the GPU, where it is a tensor that keeps its place.
    """
    for group in optimiser.param_groups:
        if not group["capturable"]:
            group["lr"] = group["share"] * rate
            continue
        if not isinstance(group["lr"], Tensor) or not group["lr"].is_cuda:
            group["lr"] = torch.zeros((), device=group["params"][0].device)
        group["lr"].fill_(group["share"] * rate)
