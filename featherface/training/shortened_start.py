"""A V2 with a detail branch from one with a whole neck.

Its neck gives stride 8 one node instead of three and nothing from there to the strides above, the
detail stem is gone, and the convolutions of stage 2 are fitted to a lower rank. What is left learns
to make the maps that the whole makes, those that the heads of stride 8 read included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.light_bifpn import FusionNode
from featherface.models.pretrained_v2 import load_mean_v2
from featherface.training.distillation import channel_spread, spread_distance
from featherface.training.factored_start import FITTED_CROPS, copy_same, fit_blocks
from featherface.training.half_precision import forward_pass
from featherface.training.kept_crops import as_input, crops_to_keep
from featherface.training.learner import Learner
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, share_values

STEPS_A_BATCH = 2  # of the run: few crops a step
FIRST_BATCHES = 8
LEARNING_RATE = 1e-3
TRAINING_UNTIL = 0.4  # progress from which on batch normalisations stand still


class Shown(NamedTuple):
    """What the first stage, which both share, makes of crops, and the whole V2's maps, float16."""

    stride_8: Tensor
    maps: list[Tensor]


def start_shortened(
    fabric: Fabric,
    learner: Learner,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Fill ``learner``'s student in place from ``start.weights``, but for its branch.

    It learns by ``start.shortened`` crops, none of which is the run's own, and sees each
    ``start.shortened_passes`` times. Large ones matter: a face has to be large to be the business
    of stride 32. A crop of 320 pixels takes 0.6 MB of memory.

    Raises:
        ConfigError: the student has no branch, or ``start.weights`` name a V2 that cannot be
            shortened.
        WeightsError: a file is missing or wrong.
    """
    config, model = learner.config, learner.student
    if not isinstance(model, FeatherFaceV2) or model.branch is None:
        raise ConfigError("start.shortened: needs model.detail_branch: true")
    longer = load_mean_v2(config.start.weight_files) if config.start.weight_files else None
    if longer is None or longer.branch is not None or longer.shared_stem:
        raise ConfigError("start.shortened: needs start.weights of a V2 with a whole neck")
    longer.to(fabric.device).eval()
    batches = crops_to_keep(fabric, config, store, indices, config.start.shortened, seed=4)
    alike = [x.images for x in batches if x.images.shape[2:] == batches[0].images.shape[2:]]
    fitted = fabric.broadcast(torch.cat(alike)[: FITTED_CROPS // 4])  # the same factors for all
    shorten(model, longer, as_input(fitted))
    seen = [shown_by(longer, x.images) for x in batches]
    first = [x.maps for x in seen if x.stride_8.shape == seen[0].stride_8.shape][:FIRST_BATCHES]
    spreads = [channel_spread(torch.cat(maps).float()) for maps in zip(*first, strict=True)]
    learned = [model.backbone.stage2, model.backbone.stage3, model.laterals]
    learned += [model.second_laterals, model.fusions, model.attention, model.context]
    values = [p for part in learned for p in part.parameters()]
    steps = config.start.shortened_passes * len(seen) * STEPS_A_BATCH
    order = np.random.default_rng((config.seed, fabric.global_rank))

    def loss_at(step: int) -> Tensor:
        """How far the maps of some crops are from those of the whole, in units of variance."""
        training = step < TRAINING_UNTIL * steps
        if model.training and not training:
            share_values(fabric, model.buffers())
        model.train(training)
        model.backbone.stage1.eval()
        one = seen[order.integers(len(seen))]
        count = -(-len(one.stride_8) // STEPS_A_BATCH)
        chosen = np.sort(order.permutation(len(one.stride_8))[:count])
        with forward_pass(config, fabric.device.type):
            made = way(model, as_input(one.stride_8[chosen]))
        wanted = [x[chosen].float() for x in one.maps]
        return spread_distance([x.float() for x in made], wanted, spreads) / len(made)

    with learning_alone(model, values):
        optimiser = MatrixSteps([Part(1.0, values)])
        clip = config.optimiser.clip_norm
        before, after = learn(fabric, optimiser, steps, loss_at, LEARNING_RATE, clip)
    model.eval()
    report(f"Shortened: {steps:,} steps, distance from the whole {before:.3f} to {after:.3f}")


@torch.no_grad()
def shown_by(longer: FeatherFaceV2, images: Tensor) -> Shown:
    """What ``longer`` makes of uint8 ``images`` ``[B, 3, S, S]``."""
    images = as_input(images)
    stride_8 = longer.backbone.stage1(images)
    detail = longer.detail(images) if longer.detail is not None else None
    return Shown(stride_8.half(), [x.half() for x in way(longer, stride_8, detail)])


def way(model: FeatherFaceV2, stride_8: Tensor, detail: Tensor | None = None) -> list[Tensor]:
    """The neck's and the context's maps, from the first stage's and what a detail stem adds."""
    neck, read = model.necks(model.backbone.behind_first_stage(stride_8), detail)
    return [*neck, *model.contexts(read)]


@torch.no_grad()
def shorten(model: FeatherFaceV2, longer: FeatherFaceV2, images: Tensor) -> None:
    """What both have from ``longer`` into ``model``, in place.

    Factors of stage 2 are fitted on RGB ``images`` ``[B, 3, H, W]``.
    """
    model.eval()
    copy_same(model.backbone, longer.backbone)
    stride_8 = model.backbone.stage1(images)
    fit_blocks(model.backbone.stage2, longer.backbone.stage2, stride_8, stride_8)
    for part in ("laterals", "second_laterals", "fusions", "attention", "context"):
        copy_same(model.get_submodule(part), longer.get_submodule(part))
    for fusion, other in zip(model.fusions, longer.fusions, strict=True):
        ours_16, theirs_16 = fusion.out_16, other.out_16
        assert isinstance(ours_16, FusionNode)
        assert isinstance(theirs_16, FusionNode)
        if ours_16.edges is not None and theirs_16.edges is not None:
            ours_16.edges.copy_(theirs_16.edges[: len(ours_16.edges)])  # not from stride 8
    for mine, their in zip(model.heads.predictors, longer.heads.predictors, strict=True):
        assert isinstance(mine, nn.Conv2d)
        assert isinstance(their, nn.Conv2d)
        mine.weight.zero_()  # the branch is silent at first
        mine.weight[:, : their.in_channels] = their.weight
        mine.bias.copy_(their.bias)  # type: ignore[union-attr, arg-type]
