"""First weights of all between the first stage and the context: learned from V1's own maps.

The first stage is V1's and stands still, so its maps of some thousand crops are made once, beside
V1's laterals and neck. Stages 2 and 3, laterals, fusion and attention then learn to make these out
of those, several times as fast as within the whole net, and with nothing else in the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from featherface.data.augmentation import Photos
from featherface.data.dataset import collate
from featherface.errors import ConfigError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.pretrained import load_v1
from featherface.training.batches import crops_of_side
from featherface.training.config import RunConfig
from featherface.training.context_start import AFTER_SAMPLES, SIDE
from featherface.training.distillation import teacher_input, twin_distance
from featherface.training.factored_start import laterals_of_v1

BATCH = 16
PASSES = 12
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
LATERALS_WEIGH = 0.5  # of the neck, which is what counts
CLIP_NORM = 5.0

Maps = list[Tensor]


def fit_neck(
    model: FeatherFaceV2,
    config: RunConfig,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Bring the neck of ``model``, whose first stage is V1's, near to V1's, in place.

    The crops are those of ``config`` at 320 pixels, ``start.neck_crops`` of them. The batch
    normalisations keep their statistics.

    Raises:
        ConfigError: ``start.v1`` names no file.
        WeightsError: that file is missing or wrong.
    """
    if config.start.v1 is None:
        raise ConfigError("start.neck_crops: needs start.v1, the weights of V1")
    device = next(model.parameters()).device
    maps = maps_of_v1(load_v1(config.start.v1).eval().to(device), config, store, indices)
    learning = [model.backbone.stage2, model.backbone.stage3, model.laterals]
    learning += [model.second_laterals, model.fusions, model.attention]
    model.eval()
    values = [p for module in learning for p in module.parameters()]
    optimiser = torch.optim.AdamW(values, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    count = len(maps[0])
    steps = PASSES * math.ceil(count / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.05
    )
    order = torch.Generator().manual_seed(config.seed)
    distances = []
    for _ in range(steps):
        chosen = torch.randint(count, (BATCH,), generator=order)
        first_stage, *wanted = (
            x[chosen].float().contiguous(memory_format=torch.channels_last) for x in maps
        )
        laterals, neck = from_first_stage(model, first_stage)
        sides = len(laterals)
        distance = twin_distance(neck, wanted[sides:])
        loss = distance + LATERALS_WEIGH * twin_distance(laterals, wanted[:sides])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(values, CLIP_NORM)
        optimiser.step()
        schedule.step()
        distances.append(float(distance.detach()))
    last = distances[-max(1, len(distances) // 20) :]
    report(f"Neck: {sum(last) / len(last):.2f} from V1's after {steps:,} steps on its maps")


def from_first_stage(model: FeatherFaceV2, stage_8: Tensor) -> tuple[Maps, Maps]:
    """Both sets of laterals, and the neck, of the first stage's map ``[B, 64, H/8, W/8]``."""
    stage_16 = model.backbone.stage2(stage_8.clone())
    backbone = [stage_8, stage_16, model.backbone.stage3(stage_16.clone())]
    levels = [f(x.relu()) for f, x in zip(model.laterals, backbone, strict=True)]
    again = [f(x) for f, x in zip(model.second_laterals, levels[1:], strict=True)]
    return [*levels, *again], model.fused(levels, again)


@torch.no_grad()
def maps_of_v1(
    v1: FeatherFaceV1, config: RunConfig, store: Photos, indices: np.ndarray
) -> list[Tensor]:
    """V1's first stage, both sets of laterals, and neck, float16 ``[N, C, H, W]`` each."""
    device = next(v1.parameters()).device
    crops = crops_of_side(config, store, indices, SIDE)
    parts = []
    for first in range(0, config.start.neck_crops, BATCH):
        samples = [crops[AFTER_SAMPLES + first + i] for i in range(BATCH)]
        images = teacher_input(collate(samples).images.to(device).float())
        backbone, laterals, neck = laterals_of_v1(v1, images)
        parts.append([x.half() for x in (backbone[0], *laterals, *neck)])
    return [torch.cat(one) for one in zip(*parts, strict=True)]
