"""Crops that a part of a student sees several times before the first step: drawn once and kept."""

from __future__ import annotations

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from featherface.data.dataset import Batch
from featherface.data.labelled_photo import Photos
from featherface.training.batches import make_loader
from featherface.training.config import RunConfig


def crops_to_keep(
    fabric: Fabric, config: RunConfig, store: Photos, indices: np.ndarray, count: int, seed: int
) -> list[Batch]:
    """This process's share of ``count`` crops of the run's sizes, drawn by its seed and ``seed``.

    A crop of 320 pixels takes 0.3 MB of memory.
    """
    kind = config.model_copy(update={"images": count, "seed": config.seed + seed})
    loader = make_loader(
        kind, store, indices, 0, fabric.global_rank, fabric.world_size, fabric.device.type == "cuda"
    )
    return [batch.to(fabric.device) for batch in loader]


def chosen_crops(labels: Batch, chosen: np.ndarray) -> Batch:
    """The crops of these numbers."""
    faces = [torch.nonzero(labels.crops == int(crop)).flatten() for crop in chosen]
    kept = torch.cat(faces)
    numbers = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(x) for x in faces]))
    return Batch(
        labels.images[chosen],
        labels.boxes[kept],
        labels.scores[kept],
        labels.landmarks[kept],
        numbers.to(labels.crops.device),
    )


def images_alike(batches: list[Batch]) -> list[Tensor]:
    """The images of the batches whose crops have the size of the first batch's."""
    size = batches[0].images.shape[2:]
    return [batch.images for batch in batches if batch.images.shape[2:] == size]


def as_input(images: Tensor) -> Tensor:
    """Kept images as the networks take them."""
    return images.float().contiguous(memory_format=torch.channels_last)
