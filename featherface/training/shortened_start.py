"""A V2 with a detail branch from one whose neck goes down to stride 8.

The branch has stride 8 to itself, so the neck's nodes, the attention and the context there are
dropped, and the convolutions of stage 2 are fitted to a lower rank. Neck and context of strides 16
and 32, which lose what came up from stride 8, then learn V1's maps again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.dataset import collate
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.light_bifpn import FusionNode
from featherface.models.pretrained_v2 import load_mean_v2
from featherface.training.batches import crops_of_side
from featherface.training.distillation import twin_distance, twin_maps
from featherface.training.factored_start import (
    AFTER_SAMPLES,
    FITTED_CROPS,
    SIDE,
    copy_same,
    fit_blocks,
)
from featherface.training.learner import Learner
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone

CROPS_A_STEP = 8
LEARNING_RATE = 1e-3
TRAINING_UNTIL = 0.5  # progress from which on batch normalisations stand still


def start_shortened(
    fabric: Fabric,
    learner: Learner,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Fill ``learner``'s student in place from ``start.weights``, but for its branch.

    ``start.shortened`` steps of crops of 320 pixels bring its maps near the teacher's.

    Raises:
        ConfigError: the student has no branch, ``start.weights`` name a V2 that cannot be
            shortened, or the teacher shows no maps.
        WeightsError: a file is missing or wrong.
    """
    config, model = learner.config, learner.student
    if not isinstance(model, FeatherFaceV2) or model.branch is None:
        raise ConfigError("start.shortened: needs model.detail_branch: true")
    longer = load_mean_v2(config.start.weight_files) if config.start.weight_files else None
    if longer is None or longer.branch is not None or longer.shared_stem:
        raise ConfigError("start.shortened: needs start.weights of a V2 with a neck at stride 8")
    device = fabric.device
    crops = crops_of_side(config, store, indices, SIDE)
    samples = [crops[AFTER_SAMPLES + i] for i in range(FITTED_CROPS // 4)]
    longer.to(device).eval()
    shorten(model, longer, collate(samples).images.to(device).float())
    levels = model.twin_levels
    first = AFTER_SAMPLES + FITTED_CROPS + fabric.global_rank
    learned = [model.backbone.stage2, model.backbone.stage3, model.laterals]
    learned += [model.second_laterals, model.fusions, model.attention, model.context]
    values = [p for part in learned for p in part.parameters()]
    steps = config.start.shortened

    def loss_at(step: int) -> Tensor:
        """How far new crops' maps are from V1's."""
        model.train(step < TRAINING_UNTIL * steps)
        model.backbone.stage1.eval()
        numbers = range(CROPS_A_STEP)
        batch = [crops[first + fabric.world_size * (step * CROPS_A_STEP + i)] for i in numbers]
        images = collate(batch).images.to(device).float()
        wanted = learner.shown_by_teacher("start.shortened", images)[1]
        made = model.forward_with_features(images)[1]
        return twin_distance(twin_maps(made, levels=levels), twin_maps(wanted, levels=levels))

    if steps:
        with learning_alone(model, values):
            optimiser = MatrixSteps([Part(1.0, values)])
            clip = config.optimiser.clip_norm
            before, after = learn(fabric, optimiser, steps, loss_at, LEARNING_RATE, clip)
        model.eval()
        report(f"Shortened: {steps:,} steps, distance from V1 {before:.2f} to {after:.2f}")


@torch.no_grad()
def shorten(model: FeatherFaceV2, longer: FeatherFaceV2, images: Tensor) -> None:
    """What both have, and of ``longer`` the way of strides 16 and 32, into ``model``, in place.

    Factors of stage 2 are fitted on RGB ``images`` ``[B, 3, H, W]``.
    """
    model.eval()
    copy_same(model.backbone, longer.backbone)
    stride_8 = model.backbone.stage1(images)
    fit_blocks(model.backbone.stage2, longer.backbone.stage2, stride_8, stride_8)
    levels = model.twin_levels
    pairs: list[tuple[nn.ModuleList, nn.ModuleList]] = [
        (model.laterals, longer.laterals),
        (model.attention, longer.attention),
        (model.context, longer.context),
        (model.second_laterals, longer.second_laterals),
    ]
    for ours, theirs in pairs:
        for one, other in zip(ours, list(theirs)[-levels:], strict=True):
            copy_same(one, other)
    for fusion, other in zip(model.fusions, longer.fusions, strict=True):
        copy_same(fusion, other)
        ours_16, theirs_16 = fusion.out_16, other.out_16
        assert isinstance(ours_16, FusionNode)
        assert isinstance(theirs_16, FusionNode)
        if ours_16.edges is not None and theirs_16.edges is not None:
            ours_16.edges.copy_(theirs_16.edges[: len(ours_16.edges)])  # not from stride 8
    ours_heads, theirs_heads = list(model.heads.predictors), list(longer.heads.predictors)
    for mine, their in zip(ours_heads[-levels:], theirs_heads[-levels:], strict=True):
        assert isinstance(mine, nn.Conv2d)
        assert isinstance(their, nn.Conv2d)
        mine.weight.zero_()
        mine.weight[:, : their.in_channels] = their.weight
        mine.bias.copy_(their.bias)  # type: ignore[union-attr, arg-type]
