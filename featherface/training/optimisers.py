"""The optimisers of a run: AdamW, and Muon for 1x1 kernels."""

from __future__ import annotations

from typing import Any

import torch

from featherface.training.config import RunConfig
from featherface.training.learner import Learner
from featherface.training.matrix_steps import KernelMuon, Part, by_kind
from featherface.training.weight_decay import decay_groups

OUTSIDE_BODY = "student.heads.", "adapters."  # kernels there predict, and are AdamW's


def make_optimisers(
    learner: Learner, config: RunConfig, graphed: bool = False
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for 1x1 kernels behind it if the configuration asks for it.

    Biases and normalisations do not decay, and the backbone may learn more slowly. ``graphed``
    keeps everything that they need on the GPU, for a step that is replayed there.
    """
    parts = [
        Part(
            share,
            [
                parameter
                for name, parameter in learner.named_parameters()
                if parameter.requires_grad and name.startswith("student.backbone.") == of_backbone
            ],
        )
        for of_backbone, share in ((False, 1.0), (True, config.optimiser.backbone_rate))
    ]
    matrices: list[Part] = []
    if config.optimiser.matrix_rate:
        plain = [p for name, p in learner.named_parameters() if name.startswith(OUTSIDE_BODY)]
        matrices, parts = by_kind(parts, plain)
    groups: list[dict[str, Any]] = []
    for share, values in parts:
        groups += [group | {"share": share} for group in decay_groups(values)]
    adamw = torch.optim.AdamW(
        groups,
        lr=config.optimiser.learning_rate,
        weight_decay=config.optimiser.weight_decay,
        fused=graphed or None,
        capturable=graphed,
    )
    if not matrices:
        return [adamw]
    return [adamw, KernelMuon(matrices, config.optimiser.matrix_rate, capturable=graphed)]
