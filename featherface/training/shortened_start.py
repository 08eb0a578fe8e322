"""A V2 in two ways from one with one: what is left of it learns the whole's maps again.

To make room for a detail branch, 1x1 convolutions of the whole become factors of a lower rank, and
what its detail stem adds at stride 8 is made from the branch's map there. Both are fitted by least
squares first. What is left then learns to make the maps that the whole makes, and what the whole's
heads say of them.
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
from featherface.models.modules.detail_branch import DetailBranch
from featherface.models.pretrained_v2 import load_mean_v2
from featherface.training.distillation import channel_spreads, spread_distance
from featherface.training.factored_start import (
    FITTED_CROPS,
    copy_same,
    fit_blocks,
    fit_lateral,
    fit_layers,
)
from featherface.training.half_precision import forward_pass
from featherface.training.kept_crops import as_input, crops_to_keep, images_alike
from featherface.training.learner import Learner
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, values_of

LEARNING_RATE = 1.5e-4  # five times that undoes what the least squares found


class Shown(NamedTuple):
    """Of crops, float16: what the first stage makes, which both share, the branch's stage of stride
    8, and what the whole V2 makes of them.
    """

    stride_8: Tensor
    finest: Tensor
    maps: list[Tensor]


def start_shortened(
    fabric: Fabric,
    learner: Learner,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Fill ``learner``'s student in place from ``start.weights``, but for its branch.

    The branch has learned before, as the other way reads it. It learns by ``start.shortened``
    crops, none of which is the run's own, and sees each ``start.shortened_passes`` times. Large
    ones matter: a face has to be large to be the business of stride 32. A crop of 320 pixels takes
    1 MB of memory.

    Raises:
        ConfigError: the student has no branch, or ``start.weights`` name a V2 that cannot be
            shortened.
        WeightsError: a file is missing or wrong.
    """
    config, model = learner.config, learner.student
    if not isinstance(model, FeatherFaceV2) or model.branch is None:
        raise ConfigError("start.shortened: needs model.detail_branch: true")
    branch = model.branch
    longer = load_mean_v2(config.start.weight_files) if config.start.weight_files else None
    if longer is None or longer.branch is not None or longer.shared_stem:
        raise ConfigError("start.shortened: needs start.weights of a V2 with one way")
    longer.to(fabric.device).eval()
    batches = crops_to_keep(fabric, config, store, indices, config.start.shortened, seed=4)
    fitted = fabric.broadcast(
        torch.cat(images_alike(batches))[: FITTED_CROPS // 4]
    )  # the same factors for all
    shorten(model, longer, as_input(fitted))
    seen = [shown_by(longer, branch, x.images) for x in batches]
    spreads = channel_spreads([x.maps for x in seen])
    values = values_of([*parts_of_way(model), model.context, branch.detail])
    steps = config.start.shortened_passes * len(seen)
    order = np.random.default_rng((config.seed, fabric.global_rank))

    def loss_at(_: int) -> Tensor:
        """How far the maps of some crops are from those of the whole, in units of variance."""
        one = seen[order.integers(len(seen))]
        with forward_pass(config, fabric.device.type):
            detail = branch.detail(as_input(one.finest))
            made = said(longer, way(model, as_input(one.stride_8), detail))
        wanted = [x.float() for x in one.maps]
        return spread_distance([x.float() for x in made], wanted, spreads) / len(made)

    with learning_alone(model, values):  # batch normalisations stand still, as they were fitted
        optimiser = MatrixSteps([Part(1.0, values)])
        clip = config.optimiser.clip_norm
        before, after = learn(fabric, optimiser, steps, loss_at, LEARNING_RATE, clip)
    report(f"Shortened: {steps:,} steps, distance from the whole {before:.3f} to {after:.3f}")


@torch.no_grad()
def shown_by(longer: FeatherFaceV2, branch: DetailBranch, images: Tensor) -> Shown:
    """What ``longer`` and ``branch`` make of uint8 ``images`` ``[B, 3, S, S]``."""
    images = as_input(images)
    stride_8 = longer.backbone.stage1(images)
    detail = longer.detail(images) if longer.detail is not None else None
    maps = said(longer, way(longer, stride_8, detail))
    return Shown(stride_8.half(), branch.finest(images).half(), [x.half() for x in maps])


def parts_of_way(model: FeatherFaceV2) -> list[nn.Module]:
    """V1's way between its first stage and the context."""
    parts = [model.backbone.stage2, model.backbone.stage3, model.laterals]
    return [*parts, model.second_laterals, model.fusions, model.attention]


def way(model: FeatherFaceV2, stride_8: Tensor, detail: Tensor | None = None) -> list[Tensor]:
    """The neck's and the context's maps, from the first stage's and what is added at stride 8."""
    neck, read = model.necks(model.backbone.behind_first_stage(stride_8), detail)
    return [*neck, *model.contexts(read)]


def said(longer: FeatherFaceV2, maps: list[Tensor]) -> list[Tensor]:
    """``maps``, and what the heads of ``longer`` say of the last ones."""
    predictors = longer.heads.predictors
    last = maps[-len(predictors) :]
    return [*maps, *(predictor(x) for predictor, x in zip(predictors, last, strict=True))]


@torch.no_grad()
def shorten(model: FeatherFaceV2, longer: FeatherFaceV2, images: Tensor) -> None:
    """What both have from ``longer`` into ``model``, in place.

    Factors, and what the branch tells the other way, are fitted on RGB ``images``
    ``[B, 3, H, W]``.
    """
    assert model.branch is not None
    model.eval()
    copy_same(model.backbone, longer.backbone)
    stride_8 = longer.backbone.stage1(images)
    stage2, stage3 = longer.backbone.stage2, longer.backbone.stage3
    stride_16 = fit_blocks(model.backbone.stage2, stage2, stride_8, stride_8)
    fit_blocks(model.backbone.stage3, stage3, stride_16, stage2(stride_8))
    for part in ("laterals", "second_laterals", "fusions", "attention", "context"):
        copy_same(model.get_submodule(part), longer.get_submodule(part))
    finest = model.branch.finest(images)
    if longer.detail is not None:
        fit_lateral(model.branch.detail, finest, longer.detail(images))
    else:  # nothing is told
        for value in model.branch.detail[1].parameters():
            value.zero_()
    told = model.branch.detail(finest)
    _, read = model.necks(model.backbone.behind_first_stage(stride_8), told)
    for ours, theirs, x in zip(model.context, longer.context, read, strict=True):
        fit_layers(list(ours.children()), list(theirs.children()), x, x)
    for mine, their in zip(model.heads.predictors, longer.heads.predictors, strict=True):
        assert isinstance(mine, nn.Conv2d)
        assert isinstance(their, nn.Conv2d)
        join_predictors(mine, their)


@torch.no_grad()
def join_predictors(both: nn.Conv2d, one: nn.Conv2d) -> None:
    """Give ``one`` an equal say beside the branch, which ``both`` hear alone, if there is one.

    A 1x1 convolution of two maps side by side is the mean of what two convolutions say.
    """
    width = one.in_channels
    has_branch = both.in_channels > width
    share = 0.5 if has_branch else 1.0
    both.weight[:, width:] *= 1 - share
    both.weight[:, :width] = one.weight * share
    assert both.bias is not None
    assert one.bias is not None
    both.bias.copy_(both.bias * (1 - share) + one.bias * share)
