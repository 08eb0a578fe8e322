"""The optimisers of a run: AdamW, and Muon for 1x1 kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from featherface.training.config import RunConfig
from featherface.training.learner import Learner
from featherface.training.matrix_steps import KernelMuon, Part, by_kind
from featherface.training.weight_decay import decay_groups

BACKBONE, BRANCH = "student.backbone.", "student.branch."  # may learn more slowly
OUTSIDE_BODY = "student.heads.", "adapters."  # kernels there predict, and are AdamW's


def make_optimisers(
    learner: Learner, config: RunConfig, graphed: bool = False
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for 1x1 kernels behind it if the configuration asks for it.

    Biases and normalisations do not decay, backbone and branch may learn more slowly. ``graphed``
    keeps everything that they need on the GPU, for a step that is replayed there.
    """
    shares = {BACKBONE: config.optimiser.backbone_rate, BRANCH: config.optimiser.branch_rate}
    values: dict[str, list[nn.Parameter]] = {"": [], **{place: [] for place in shares}}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            values[next((place for place in shares if name.startswith(place)), "")].append(
                parameter
            )
    parts = [Part(shares.get(place, 1.0), learned) for place, learned in values.items() if learned]
    matrices: list[Part] = []
    if config.optimiser.matrix_rate:
        plain = [p for name, p in learner.named_parameters() if name.startswith(OUTSIDE_BODY)]
        matrices, parts = by_kind(parts, plain)
    groups: list[dict[str, Any]] = []
    for share, learned in parts:
        groups += [group | {"share": share} for group in decay_groups(learned)]
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
