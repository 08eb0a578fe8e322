"""The end of a V2 in two ways learns to say what the whole V2 and the branch say together.

Either way was made smaller by itself, and what a map lost does not tell what is lost in scores. So
all that lies behind both ways' last large maps learns once more, from the mean of what the whole V2
and the branch as it was taught say at the strides where both speak: no label has a say. The
context's maps stay near those of the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from featherface.anchors import ANCHORS_PER_CELL
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.detail_branch import DetailBranch
from featherface.models.pretrained_v2 import load_mean_v2
from featherface.training.distillation import channel_spreads, spread_distance
from featherface.training.kept_crops import as_input, crops_to_keep
from featherface.training.learner import Learner
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone

LEARNING_RATE = 3e-4
LANDMARKS_SHARE, MAPS_SHARE = 0.3, 0.5
LEAST_FACES = 2.0  # of a batch of crops, so that one without a face has a mean


class Both(NamedTuple):
    """Of crops, float16, at the strides where both ways speak: the neck of V1's way before its
    ReLU, what the branch's stage of stride 8 reads, the whole's context, and what both say.
    """

    neck: list[Tensor]
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
        ConfigError: the student has no branch, or no ``start.shortened`` way.
        WeightsError: a file of ``start.weights`` is missing or wrong.
    """
    config, model = learner.config, learner.student
    if not isinstance(model, FeatherFaceV2) or model.branch is None or not config.start.shortened:
        raise ConfigError("start.joined_crops: needs model.detail_branch and start.shortened")
    branch = model.branch
    whole = load_mean_v2(config.start.weight_files).to(fabric.device)
    batches = crops_to_keep(fabric, config, store, indices, config.start.joined_crops, seed=21)
    taught = copy.deepcopy(model).eval().requires_grad_(False)
    seen = [said_by_both(whole, taught, as_input(x.images)) for x in batches]
    spreads = channel_spreads([x.context for x in seen])
    spoken = range(len(spreads))
    learned = [*(model.context[i] for i in spoken), *(model.heads.predictors[i] for i in spoken)]
    learned += parts_behind(branch)
    values = [p for part in learned for p in part.parameters()]
    steps = config.start.joined_passes * len(seen)
    order = np.random.default_rng((config.seed, fabric.global_rank))

    def loss_at(_: int) -> Tensor:
        """How far what the student says of some crops is from what both say."""
        one = seen[order.integers(len(seen))]
        finest = branch.stages[0](as_input(one.read))
        necks = [as_input(x) for x in one.neck]
        necks[0] = necks[0] + branch.detail(finest)
        context = [model.context[i](x.relu()) for i, x in zip(spoken, necks, strict=True)]
        towers = branch.towers(finest)
        losses = [
            answers_distance(predictor(torch.cat(maps, 1)), wanted.float())
            for predictor, wanted, *maps in zip(
                model.heads.predictors, one.said, context, towers, strict=False
            )
        ]
        wanted = [x.float() for x in one.context]
        return torch.stack(losses).sum() + MAPS_SHARE * spread_distance(context, wanted, spreads)

    with learning_alone(model, values):
        optimiser = MatrixSteps([Part(1.0, values)])
        clip = config.optimiser.clip_norm
        before, after = learn(fabric, optimiser, steps, loss_at, LEARNING_RATE, clip)
    report(f"Joined: {steps:,} steps, loss {before:.3f} to {after:.3f}")


def parts_behind(branch: DetailBranch) -> list[nn.Module]:
    """All of the branch behind stride 4."""
    parts = [branch.stages, branch.around, branch.neck, branch.tower, branch.coarse_tower]
    return [branch.detail, *(x for x in parts if x is not None)]


@torch.no_grad()
def said_by_both(whole: FeatherFaceV2, joined: FeatherFaceV2, images: Tensor) -> Both:
    """What both say of RGB ``images`` ``[B, 3, S, S]``: the predictors of ``joined`` on the maps of
    ``whole`` and on those of its own branch.
    """
    branch = joined.branch
    assert branch is not None
    read = branch.before_finest(images)
    towers = branch.towers(branch.stages[0](read))
    maps = whole.forward_with_features(images)[1]
    context = maps.context[: len(towers)]
    both = [torch.cat(pair, 1) for pair in zip(context, towers, strict=True)]
    said = [x(y) for x, y in zip(joined.heads.predictors, both, strict=False)]
    # Both have the same first stage.
    backbone = joined.backbone.behind_first_stage(maps.backbone[0])
    neck = joined.gated(*joined.both_laterals(backbone))[: len(towers)]
    halves = [[x.half() for x in levels] for levels in (neck, context, said)]
    return Both(halves[0], read.half(), *halves[1:])


def answers_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """How far a predictor's map ``[B, 30, H, W]`` is from another's.

    The class by its divergence, boxes and landmarks as far as ``wanted`` is sure of a face; the
    mean over faces, to which a batch without one adds little.
    """
    classes, boxes = ANCHORS_PER_CELL, 5 * ANCHORS_PER_CELL
    logits, target = made[:, :classes], wanted[:, :classes]
    sure = target.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits
    divergence = entropy(logits, sure, reduction="none") - entropy(target, sure, reduction="none")
    shape = (len(made), ANCHORS_PER_CELL, -1, *made.shape[2:])

    def of_faces(part: slice) -> Tensor:
        ours, theirs = (x[:, part].reshape(shape) for x in (made, wanted))
        apart = functional.smooth_l1_loss(ours, theirs, reduction="none").mean(2)
        return (apart * sure).sum()

    total = divergence.sum() + of_faces(slice(classes, boxes))
    total = total + LANDMARKS_SHARE * of_faces(slice(boxes, None))
    return total / (sure.sum() + LEAST_FACES)
