"""Which of a net's values weight decay pulls to zero."""

from __future__ import annotations

from typing import Any

from torch import nn


def decay_groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Groups of an optimiser: kernels decay by its own rate, biases and normalisations do not."""
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
