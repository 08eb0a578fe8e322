"""First weights of all behind the first stage: learned from crops that a teacher answered once.

The first stage stands still, so its maps of some thousand crops are made once, beside the teacher's
maps and answers. All the rest then learns from these and the labels, pass after pass, at twice the
pace of a run that draws new crops and asks about every one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.dataset import Batch
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.outputs import FeatureMaps, HeadOutputs
from featherface.training.batches import make_loader
from featherface.training.config import RunConfig
from featherface.training.joined_teacher import JoinedTeacher
from featherface.training.learner import Learner
from featherface.training.schedules import learning_rate
from featherface.training.short_run import share_gradients
from featherface.training.weight_decay import decay_groups

PASSES = 7
LEARNING_RATE = 1.5e-3
WARMUP = 0.03
FINAL_RATE = 0.005


class Answered(NamedTuple):
    """Crops of one size: their faces, and in float16 what the first stage and the teacher made."""

    labels: Batch
    stage_8: Tensor
    outputs: HeadOutputs
    maps: FeatureMaps


def fit_twin(
    fabric: Fabric,
    learner: Learner,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
    joined: JoinedTeacher | None = None,
) -> None:
    """Teach the student of ``learner`` all but its first stage, in place.

    The crops are ``start.twin_crops`` of the run's kind, none of them the run's own; several
    processes share them. Terms weigh what they do at the run's first step. ``joined`` answers in
    place of the run's teacher. The batch normalisations keep their statistics.

    Raises:
        ConfigError: there is no teacher with maps to show, or it would show them to adapters, or
            the student looks at the image a second time.
    """
    config, student = learner.config, learner.student
    if not isinstance(student, FeatherFaceV2):
        raise ConfigError("start.twin_crops: teaches V2 alone")
    if student.detail is not None:
        raise ConfigError("start.twin_crops: needs model.detail_channels: 0, as it keeps no image")
    if learner.adapters is not None:
        raise ConfigError("start.twin_crops: needs distillation.adapters: false")
    ask = joined or partial(learner.shown_by_teacher, "start.twin_crops")
    batches = answered_batches(fabric, student, ask, config, store, indices)
    first = set(student.backbone.stage1.parameters())
    values = [p for p in student.parameters() if p not in first]
    optimiser = torch.optim.AdamW(decay_groups(values), weight_decay=config.optimiser.weight_decay)
    weights = learner.term_weights(0.0)
    order = np.random.default_rng((config.seed, fabric.global_rank))
    steps = PASSES * len(batches)
    losses: list[float] = []
    student.eval()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step / steps, LEARNING_RATE, WARMUP, FINAL_RATE)
        batch = batches[order.integers(len(batches))]
        prediction, maps = student.behind_first_stage(batch.stage_8.float())
        taught = (
            HeadOutputs(*(x.float() for x in batch.outputs)),
            FeatureMaps(*([x.float() for x in level] for level in batch.maps)),
        )
        anchors = learner.anchors_of(batch.labels.images)
        terms = learner.compare(prediction, maps, anchors, batch.labels, taught, weights)
        optimiser.zero_grad()
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        share_gradients(fabric, values)
        nn.utils.clip_grad_norm_(values, config.optimiser.clip_norm)
        optimiser.step()
        losses.append(float(loss.detach()))
    tenth = max(1, steps // 10)
    report(
        f"Twin: {len(batches):,} batches answered once, {steps:,} steps, loss "
        f"{sum(losses[:tenth]) / tenth:.2f} to {sum(losses[-tenth:]) / tenth:.2f}"
    )


@torch.no_grad()
def answered_batches(
    fabric: Fabric,
    student: FeatherFaceV2,
    ask: Callable[[Tensor], tuple[HeadOutputs, FeatureMaps]],
    config: RunConfig,
    store: Photos,
    indices: np.ndarray,
) -> list[Answered]:
    """This process's share of the crops, each seen once by the first stage and the teacher."""
    kind = config.model_copy(update={"images": config.start.twin_crops, "seed": config.seed + 1})
    loader = make_loader(
        kind, store, indices, 0, fabric.global_rank, fabric.world_size, fabric.device.type == "cuda"
    )
    student.eval()
    batches = []
    for batch in loader:
        batch = batch.to(fabric.device)
        images = batch.images.float().contiguous(memory_format=torch.channels_last)
        outputs, maps = ask(images)
        batches.append(
            Answered(
                replace(batch, images=batch.images[:, :0]),  # only their size is asked for
                student.backbone.stage1(images).half(),
                HeadOutputs(*(x.half() for x in outputs)),
                FeatureMaps(*([x.half() for x in level] for level in maps)),
            )
        )
    return batches
