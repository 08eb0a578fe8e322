"""The context's first weights: learned from V1's own maps before a run's first step.

What lies behind the fusion is V2's own and begins by chance, while everything before it comes from
V1. On V1's maps of a few thousand crops, which V1 makes once, the context learns twenty times as
fast as within the whole net.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from featherface.data.dataset import collate
from featherface.data.labelled_photo import Photos
from featherface.models.outputs import FeatureMaps
from featherface.training.batches import crops_of_side
from featherface.training.config import RunConfig
from featherface.training.distillation import twin_distance

SIDE = 320
BATCH = 8
PASSES = 8
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.01
AFTER_SAMPLES = 1 << 30  # crops that the run itself does not draw


def fit_context(
    levels: nn.ModuleList,
    teacher: Callable[[Tensor], FeatureMaps],
    config: RunConfig,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Bring ``levels``, the context of strides 8, 16 and 32, near to V1's, in place.

    ``teacher`` gives V1's maps for RGB ``[B, 3, H, W]``, 0..255. The crops are those of ``config``
    at 320 pixels, ``start.context_crops`` of them.
    """
    device = next(levels.parameters()).device
    neck, context = maps_of_crops(teacher, config, store, indices, device)
    levels.train()
    optimiser = torch.optim.AdamW(levels.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    count = len(neck[0])
    steps = PASSES * (count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.05
    )
    order = torch.Generator().manual_seed(config.seed)
    distances = []
    for _ in range(steps):
        chosen = torch.randint(count, (BATCH,), generator=order)
        wanted = [x[chosen].float() for x in context]
        made = [level(x[chosen].float()) for level, x in zip(levels, neck, strict=True)]
        distance = twin_distance(made, wanted)
        optimiser.zero_grad()
        distance.backward()
        optimiser.step()
        schedule.step()
        distances.append(float(distance.detach()))
    last = distances[-max(1, len(distances) // 20) :]
    report(f"Context: {sum(last) / len(last):.2f} from V1's after {steps:,} steps on its maps")


@torch.no_grad()
def maps_of_crops(
    teacher: Callable[[Tensor], FeatureMaps],
    config: RunConfig,
    store: Photos,
    indices: np.ndarray,
    device: torch.device,
) -> tuple[list[Tensor], list[Tensor]]:
    """V1's neck and context at three strides, float16 ``[N, C, H, W]`` each."""
    crops = crops_of_side(config, store, indices, SIDE)
    necks, contexts = [], []
    for first in range(0, config.start.context_crops, BATCH):
        samples = [crops[AFTER_SAMPLES + first + i] for i in range(BATCH)]
        maps = teacher(collate(samples).images.to(device).float())
        necks.append([x.half() for x in maps.neck])
        contexts.append([x.half() for x in maps.context])
    return (
        [torch.cat(level) for level in zip(*necks, strict=True)],
        [torch.cat(level) for level in zip(*contexts, strict=True)],
    )
