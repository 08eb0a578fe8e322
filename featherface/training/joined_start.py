"""The end of a V2 in two ways learns to say what the whole V2 and the branch say together.

Either way was made smaller by itself, and what a map lost does not tell what is lost in scores. So
all that lies behind both ways' last large maps learns once more, from the mean of what the whole V2
and the branch as it was taught say at the strides where both speak: no label has a say. The
context's maps stay near those of the whole.

V1 may have a share of what is said, at every stride: it and the whole V2 take unlike things for
faces, and few that are none together (docs/experiments.md, A third opinion).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.anchors import STRIDES
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2, read_by_heads
from featherface.models.modules.detail_branch import DetailBranch
from featherface.models.pretrained_v2 import load_mean_v2
from featherface.training.answers import answers_distance, as_maps, share_of_channels
from featherface.training.distillation import channel_spreads, spread_distance
from featherface.training.kept_crops import as_input, crops_to_keep
from featherface.training.learner import Learner
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, values_of
from featherface.training.shortened_start import parts_of_way

LEARNING_RATE = 3e-4
MAPS_SHARE = 0.5


class Both(NamedTuple):
    """Of crops, float16: the first stage of V1's way, what the branch's stage of stride 8 reads,
    and at the strides that learn the whole's context and what is to be said.
    """

    first: Tensor
    read: Tensor
    context: list[Tensor]
    said: list[Tensor]


def join_ways(
    fabric: Fabric,
    learner: Learner,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Teach ``learner``'s student, in place, by ``start.joined_crops`` crops, each seen
    ``start.joined_passes`` times. A crop of 320 pixels takes 1 MB of memory.

    Raises:
        ConfigError: the student has no branch, or no ``start.shortened`` way; V1 is to have a
            share (``start.joined_v1``) and is not the teacher.
        WeightsError: a file of ``start.weights`` is missing or wrong.
    """
    config, model = learner.config, learner.student
    start = config.start
    if not isinstance(model, FeatherFaceV2) or model.branch is None or not start.shortened:
        raise ConfigError("start.joined_crops: needs model.detail_branch and start.shortened")
    branch = model.branch
    whole = load_mean_v2(start.weight_files).to(fabric.device)
    batches = crops_to_keep(fabric, config, store, indices, start.joined_crops, seed=21)
    taught = copy.deepcopy(model).eval().requires_grad_(False)
    seen = []
    for batch in batches:
        images = as_input(batch.images)
        one = said_by_both(whole, taught, images, len(STRIDES) if start.joined_v1 else 0)
        if start.joined_v1:
            v1s = as_maps(learner.shown_by_teacher("start.joined_v1", images)[0], images)
            mixed = [
                torch.lerp(both.float(), v1, share_of_channels(start.joined_v1, level, v1)).half()
                for level, (both, v1) in enumerate(zip(one.said, v1s, strict=True))
            ]
            one = one._replace(said=mixed)
        seen.append(one)
    spreads = channel_spreads([x.context for x in seen])
    spoken = range(len(spreads))
    ends = [*(model.context[i] for i in spoken), *(model.heads.predictors[i] for i in spoken)]
    ends += parts_behind(branch)
    parts = [Part(1.0, values_of(ends))]
    if start.joined_way_rate:
        parts.append(Part(start.joined_way_rate, values_of(parts_of_way(model))))
    steps = start.joined_passes * len(seen)
    order = np.random.default_rng((config.seed, fabric.global_rank))

    def loss_at(_: int) -> Tensor:
        """How far what the student says of some crops is from what it is to say."""
        one = seen[order.integers(len(seen))]
        finest = branch.stages[0](as_input(one.read))
        backbone = model.backbone.behind_first_stage(as_input(one.first))
        necks = model.necks(backbone, branch.detail(finest))[1]
        context = [model.context[i](necks[i]) for i in spoken]
        read = read_by_heads(context, branch.towers(finest))
        losses = [
            answers_distance(predictor(maps), wanted.float())
            for predictor, maps, wanted in zip(model.heads.predictors, read, one.said, strict=False)
        ]
        wanted = [x.float() for x in one.context]
        return torch.stack(losses).sum() + MAPS_SHARE * spread_distance(context, wanted, spreads)

    optimiser = MatrixSteps(parts)
    with learning_alone(model, optimiser.values):
        clip = config.optimiser.clip_norm
        before, after = learn(fabric, optimiser, steps, loss_at, LEARNING_RATE, clip)
    report(f"Joined: {steps:,} steps, loss {before:.3f} to {after:.3f}")


def parts_behind(branch: DetailBranch) -> list[nn.Module]:
    """All of the branch behind stride 4."""
    parts = [branch.stages, branch.around, branch.neck, branch.tower, branch.coarse_tower]
    return [branch.detail, *(x for x in parts if x is not None)]


@torch.no_grad()
def said_by_both(
    whole: FeatherFaceV2, joined: FeatherFaceV2, images: Tensor, levels: int = 0
) -> Both:
    """What both say of RGB ``images`` ``[B, 3, S, S]``: the predictors of ``joined`` on the maps of
    ``whole`` and on those of its own branch.

    At the first ``levels`` strides; 0 for those where the branch speaks. The others hear ``whole``
    alone.
    """
    branch = joined.branch
    assert branch is not None
    read = branch.before_finest(images)
    towers = branch.towers(branch.stages[0](read))
    maps = whole.forward_with_features(images)[1]
    context = maps.context[: levels or len(towers)]
    read_by_all = read_by_heads(context, towers)
    said = [x(y) for x, y in zip(joined.heads.predictors, read_by_all, strict=False)]
    # Both have the same first stage.
    return Both(
        maps.backbone[0].half(), read.half(), [x.half() for x in context], [x.half() for x in said]
    )
