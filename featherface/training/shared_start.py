"""One stem's first weights, where a V2 had two: learned from what the two made.

The backbone's first blocks and the detail stem both go from the image to stride 4. A V2 with
``shared_stem`` has the latter alone, and a block that makes the backbone's map of its. All other
layers are copied. The backbone's map at stride 8 and what the stem adds there are the teachers:
something to say about every cell, in minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.dataset import collate
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.pretrained_v2 import load_mean_v2
from featherface.training.batches import crops_of_side
from featherface.training.config import RunConfig
from featherface.training.context_start import AFTER_SAMPLES, SIDE
from featherface.training.distillation import channel_spread, spread_distance
from featherface.training.factored_start import copy_same, fit_lateral
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, values_of

CROPS = 2400  # the stem cannot fit them: more would show nothing new
FITTED_CROPS = 192
CROPS_A_STEP = 6
LEARNING_RATE = 4e-3
DROPPED = 3  # first blocks of the backbone


def start_shared(
    fabric: Fabric,
    model: FeatherFaceV2,
    config: RunConfig,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Fill ``model`` from ``start.weights`` in place, in ``start.shared_steps`` steps.

    Every process takes crops of its own, of the run's kind at 320 pixels.

    Raises:
        ConfigError: ``model`` shares no stem, or ``start.weights`` are not of a V2 with two.
        WeightsError: a file is missing or wrong.
    """
    files = config.start.weight_files
    two = load_mean_v2(files) if files else None
    if not model.shared_stem or two is None or two.detail is None or two.shared_stem:
        raise ConfigError(
            "start.shared_steps: needs model.shared_stem: true and start.weights of a V2 with a "
            "detail stem beside the backbone's own"
        )
    device = next(model.parameters()).device
    two.to(device).eval().requires_grad_(False)
    crops = crops_of_side(config, store, indices, SIDE)
    first = AFTER_SAMPLES + CROPS * fabric.global_rank
    images = collate([crops[first + i] for i in range(CROPS)]).images.to(device)
    with torch.no_grad():
        copy_two(model, two)
        spreads = fit_bridge(model, two, images[:FITTED_CROPS].float())
    stems: list[Any] = [model.detail, model.backbone.stage1]
    values = values_of(stems)
    order = np.random.default_rng((config.seed, fabric.global_rank))

    def loss_at(step: int) -> Tensor:
        chosen = order.integers(len(images), size=CROPS_A_STEP)
        pixels = images[chosen].float().contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = maps_of_two(two, pixels)
        return spread_distance(maps_of_one(model, pixels), wanted, spreads)

    steps, optimiser = config.start.shared_steps, MatrixSteps([Part(1.0, values)])
    with learning_alone(model, values):
        first_loss, last_loss = learn(
            fabric, optimiser, steps, loss_at, LEARNING_RATE, config.optimiser.clip_norm
        )
    report(f"Shared stem: {steps:,} steps, loss {first_loss:.2f} to {last_loss:.2f}")


def copy_two(model: FeatherFaceV2, two: FeatherFaceV2) -> None:
    """All layers of ``two`` but the first of its backbone."""
    for name, child in model.named_children():
        if name != "backbone":
            copy_same(child, two.get_submodule(name))
    copy_same(model.backbone.stage2, two.backbone.stage2)
    copy_same(model.backbone.stage3, two.backbone.stage3)
    ours, theirs = list(model.backbone.stage1)[1:], list(two.backbone.stage1)[DROPPED:]
    for block, other in zip(ours, theirs, strict=True):
        copy_same(block, other)


def fit_bridge(model: FeatherFaceV2, two: FeatherFaceV2, images: Tensor) -> list[Tensor]:
    """Let the block from the stem's stride 4 to the backbone's be the best linear map; the spreads
    of the maps that are learned from.
    """
    stem: Any = two.detail
    stride_4, _ = stem.on_the_way(images)
    dropped: list[Any] = list(two.backbone.stage1)[:DROPPED]
    wanted = nn.Sequential(*dropped[:-1], *list(dropped[-1])[:-1])(images)
    bridge: list[Any] = list(model.backbone.stage1[0].children())
    depthwise, norm, _, pointwise, out, _ = bridge
    nn.init.dirac_(depthwise.weight, depthwise.groups)
    norm.reset_running_stats()
    fit_lateral(nn.Sequential(pointwise, out), norm(depthwise(stride_4)), wanted)
    return [channel_spread(x) for x in maps_of_two(two, images)]


def maps_of_two(two: FeatherFaceV2, images: Tensor) -> list[Tensor]:
    """The backbone's map at stride 8, and what the detail stem adds."""
    stem: Any = two.detail
    return [two.backbone.stage1(images), stem(images)]


def maps_of_one(model: FeatherFaceV2, images: Tensor) -> list[Tensor]:
    """The same of a V2 that shares its stem."""
    stem: Any = model.detail
    stride_4, detail = stem.on_the_way(images)
    return [model.backbone.stage1(stride_4), detail]
