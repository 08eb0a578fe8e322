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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from featherface.anchors import ANCHORS_PER_CELL, STRIDES
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2, read_by_heads
from featherface.models.modules.detail_branch import DetailBranch
from featherface.models.modules.grouped_heads import VALUES
from featherface.models.outputs import HeadOutputs
from featherface.models.pretrained_v2 import load_mean_v2
from featherface.training.distillation import channel_spreads, spread_distance
from featherface.training.kept_crops import as_input, crops_to_keep
from featherface.training.learner import Learner
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, values_of
from featherface.training.shortened_start import parts_of_way

LEARNING_RATE = 3e-4
LANDMARKS_SHARE, MAPS_SHARE = 0.3, 0.5
LEAST_FACES = 2.0  # of a batch of crops, so that one without a face has a mean


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


def as_maps(outputs: HeadOutputs, images: Tensor) -> list[Tensor]:
    """A teacher's answers about ``images`` as a predictor of V2 gives them, ``[B, 30, H, W]`` a
    stride; its logits ``[B, A, 2]`` are those of background and face.
    """
    height, width = images.shape[2:]
    sizes = [(height // stride, width // stride) for stride in STRIDES]
    margin = outputs.logits[..., 1] - outputs.logits[..., 0]
    values = (margin[..., None], outputs.box_deltas, outputs.landmark_deltas)
    by_task = [x.split([h * w * ANCHORS_PER_CELL for h, w in sizes], 1) for x in values]
    return [
        torch.cat([x.reshape(len(x), h, w, -1).permute(0, 3, 1, 2) for x in level], 1)
        for (h, w), *level in zip(sizes, *by_task, strict=True)
    ]


def share_of_channels(shares: Sequence[float], level: int, like: Tensor) -> Tensor:
    """The shares of a stride's anchors, as its predictor's channels lie, ``[1, 30, 1, 1]``."""
    first = ANCHORS_PER_CELL * level
    own = like.new_tensor(shares[first : first + ANCHORS_PER_CELL])
    return torch.cat([own.repeat_interleave(n) for n in VALUES])[None, :, None, None]


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
