"""The detail stem's first weights: what another detector's map of stride 8 would add.

Everything else stands still, but the context and the predictor of stride 8. Labels alone say little
to a stem that begins by chance: few cells have a face. So, from crops that are answered once:

1. a reader learns, by labels, what to add to the neck at stride 8, a 1x1 convolution of the
   teachers' maps; the context and the predictor learn to read that;
2. the stem learns to add the same, and what the context then makes of it (FitNets, Romero et al.,
   ICLR 2015): something to say about every cell, and no more of the maps than finds faces;
3. the stem, the context and the predictor learn from the labels together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.dataset import Batch
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training.distillation import channel_spread
from featherface.training.kept_crops import as_input, chosen_crops, crops_to_keep
from featherface.training.learner import Learner, refuse_dynamic
from featherface.training.map_teacher import MapTeacher
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, share_values

LABELLED_CROPS, STEM_CROPS = 4, 2  # of a step: few, as the stem learns from every cell
READER_RATE, STEM_RATE, LABELS_RATE = 2e-3, 4e-3, 1.5e-3
READERS_SHARE = 0.5  # of the context and the predictor, which have learned before
CONTEXT_WEIGHT = 3.0  # of what the context makes, against what the stem adds
HINT_WEIGHT = 0.5  # of what the reader would add, while the labels teach
FIRST_SCALE = 0.1  # of what the reader adds, which is noise at first
TRAINING_UNTIL = 0.7  # progress from which on batch normalisations stand still


class Answered(NamedTuple):
    """Crops of one size, their neck at stride 8 before its ReLU and the teachers' maps, float16."""

    labels: Batch
    neck: Tensor
    shown: Tensor


class Reader(nn.Sequential):
    """What the teachers' maps ``[B, C, H, W]`` add to a neck of ``channels``."""

    def __init__(self, maps: int, channels: int) -> None:
        norm = nn.BatchNorm2d(channels)
        nn.init.constant_(norm.weight, FIRST_SCALE)
        super().__init__(nn.Conv2d(maps, channels, 1, bias=False), norm)


def fit_detail(
    fabric: Fabric,
    learner: Learner,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Teach the detail stem of ``learner``'s student, in place, by ``start.detail_crops`` crops.

    They are seen ``start.detail_passes`` times by the reader, by the stem and by both with the
    labels. Several processes share the crops, none of which is the run's own. A crop of 320 pixels
    takes 0.7 MB of memory.

    Raises:
        ConfigError: the student has no detail stem, the matching is dynamic, there is no teacher,
            or its map is of another stride than 8.
        WeightsError: a teacher's file cannot be read.
    """
    config, student = learner.config, learner.student
    if not isinstance(student, FeatherFaceV2) or student.detail is None or student.shared_stem:
        raise ConfigError("start.detail_crops: needs model.detail_channels, shared with nothing")
    refuse_dynamic(config, "start.detail_crops", "stride 8")
    stem, device = student.detail, fabric.device
    seen = answered_batches(fabric, learner, student, store, indices)
    context, predictor = student.context[0], student.heads.predictors[0]
    reading = [*context.parameters(), *predictor.parameters()]
    reader = Reader(seen[0].shown.shape[1], seen[0].neck.shape[1]).to(device)
    share_values(fabric, reader.parameters())
    passes = config.start.detail_passes
    order = np.random.default_rng((config.seed, fabric.global_rank))

    def run(
        name: str,
        passed: int,
        count: int,
        rate: float,
        parts: list[Part],
        moving: nn.Module,
        loss_of: Callable[[Answered], Tensor],
    ) -> None:
        """Passes by ``count`` crops; ``parts`` learn, batch normalisations of ``moving`` move."""
        steps = passed * sum(-(-len(one.neck) // count) for one in seen)
        if not steps:
            return
        for _, values in parts:
            for value in values:
                value.requires_grad_(True)

        def loss_at(step: int) -> Tensor:
            training = step < TRAINING_UNTIL * steps
            if moving.training and not training:
                share_values(fabric, moving.buffers())
            moving.train(training)
            return loss_of(some_crops(seen[order.integers(len(seen))], count, order))

        optimiser = MatrixSteps(parts, list(predictor.parameters()))
        first, last = learn(fabric, optimiser, steps, loss_at, rate, config.optimiser.clip_norm)
        moving.eval().requires_grad_(False)
        student.requires_grad_(False)
        report(f"{name}: {steps:,} steps, loss {first:.2f} to {last:.2f}")

    def labels_loss(crops: Answered, added: Tensor) -> Tensor:
        """The labels' losses at the anchors of stride 8."""
        outputs = student.heads.at_stride_8(context((crops.neck.float() + added).relu()))
        return learner.finest_loss(crops.labels, outputs)

    with learning_alone(student, []):
        run(
            "Reader",
            passes[0],
            LABELLED_CROPS,
            READER_RATE,
            [Part(1.0, list(reader.parameters())), Part(READERS_SHARE, reading)],
            reader,
            lambda crops: labels_loss(crops, reader(crops.shown.float())),
        )
        reads = copy.deepcopy(context)
        added_spread, made_spread = spreads(reader, reads, seen)

        def stem_loss(crops: Answered) -> Tensor:
            """How far the stem is from the reader, and what the context makes of both."""
            added = stem(as_input(crops.labels.images))
            neck = crops.neck.float()
            with torch.no_grad():
                wanted = reader(crops.shown.float())
                made = reads((neck + wanted).relu())
            near = ((added - wanted).square() / added_spread).mean()
            distance = (reads((neck + added).relu()) - made).square() / made_spread
            return near + CONTEXT_WEIGHT * distance.mean()

        own = Part(1.0, list(stem.parameters()))
        run("Detail stem", passes[1], STEM_CROPS, STEM_RATE, [own], stem, stem_loss)

        def both_losses(crops: Answered) -> Tensor:
            """The labels, and the reader while they teach."""
            added = stem(as_input(crops.labels.images))
            with torch.no_grad():
                wanted = reader(crops.shown.float())
            hint = ((added - wanted).square() / added_spread).mean()
            return labels_loss(crops, added) + HINT_WEIGHT * hint

        run(
            "Detail stem by labels",
            passes[2],
            LABELLED_CROPS,
            LABELS_RATE,
            [Part(READERS_SHARE, own.values), Part(READERS_SHARE, reading)],
            stem,
            both_losses,
        )


@torch.no_grad()
def answered_batches(
    fabric: Fabric,
    learner: Learner,
    student: FeatherFaceV2,
    store: Photos,
    indices: np.ndarray,
) -> list[Answered]:
    """This process's share of the crops, each seen once by the student and the teachers.

    Raises:
        ConfigError: there is no teacher, or its map has another stride than 8.
    """
    config = learner.config
    teachers = [MapTeacher(one) for one in config.start.detail_teachers]
    if not teachers:
        raise ConfigError("start.detail_crops: needs start.detail_teachers, whose maps are learned")
    student.eval()
    seen = []
    for batch in crops_to_keep(fabric, config, store, indices, config.start.detail_crops, seed=2):
        images = as_input(batch.images)
        neck = student.gated(*student.both_laterals(student.backbone(images)))[0]
        shown = [x for teacher in teachers for x in teacher(images)]
        strides = {images.shape[2] // x.shape[2] for x in shown}
        if strides != {8}:
            raise ConfigError(
                f"start.detail_teachers: maps of strides {sorted(strides)}; the detail stem has 8"
            )
        seen.append(Answered(batch, neck.half(), torch.cat(shown, 1).half()))
    return seen


def some_crops(batch: Answered, count: int, order: np.random.Generator) -> Answered:
    """At most ``count`` crops of a batch."""
    chosen = np.sort(order.permutation(len(batch.neck))[:count])
    labels = chosen_crops(batch.labels, chosen)
    return Answered(labels, batch.neck[chosen], batch.shown[chosen])


@torch.no_grad()
def spreads(reader: Reader, reads: nn.Module, seen: list[Answered]) -> tuple[Tensor, Tensor]:
    """The variance of each channel that the reader adds, and of what the context makes of it."""
    alike = [one for one in seen if one.neck.shape == seen[0].neck.shape][:8]
    added = torch.cat([reader(one.shown.float()) for one in alike])
    made = reads((torch.cat([one.neck.float() for one in alike]) + added).relu())
    return channel_spread(added), channel_spread(made)
