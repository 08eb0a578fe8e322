"""What moves over a run: the learning rate and the weights of the distillation terms."""

from __future__ import annotations

import math
from itertools import pairwise


def learning_rate(progress: float, peak: float, warmup: float, final_rate: float) -> float:
    """Linear from a tenth to ``peak`` over ``warmup``, then a cosine to ``final_rate * peak``."""
    if progress < warmup:
        return peak * (0.1 + 0.9 * progress / warmup)
    along = min((progress - warmup) / max(1 - warmup, 1e-9), 1.0)
    return peak * (final_rate + (1 - final_rate) * 0.5 * (1 + math.cos(math.pi * along)))


def term_weights(
    progress: float, schedule: list[tuple[float, float, float, float]]
) -> tuple[float, float, float]:
    """Weights (features, outputs, labels) at ``progress``, linear between the schedule's points."""
    points = sorted(schedule)
    if progress <= points[0][0]:
        return points[0][1:]
    for (start, *before), (end, *after) in pairwise(points):
        if progress <= end:
            along = (progress - start) / max(end - start, 1e-9)
            features, outputs, labels = (
                a + along * (b - a) for a, b in zip(before, after, strict=True)
            )
            return features, outputs, labels
    return points[-1][1:]
