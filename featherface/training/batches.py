"""The batches of a run: which samples at which size, the same after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from featherface.data.augmentation import TrainingCrop
from featherface.data.crop_settings import CropSettings
from featherface.data.dataset import Batch, CropDataset, collate, sample_weights
from featherface.training.config import RunConfig


class SizedSampler(Sampler[list[tuple[int, int]]]):
    """Lists of (global sample number, crop side); a batch has one side, drawn by its number.

    A batch at a larger side holds fewer crops, so that its pixels stay about the same. Each of
    ``world`` processes takes the batches of its ``rank``.
    """

    def __init__(self, config: RunConfig, first_batch: int, rank: int = 0, world: int = 1) -> None:
        self.config, self.first_batch = config, first_batch
        self.rank, self.world = rank, world
        sides, shares = zip(*config.data.sizes, strict=True)
        self.sides, self.shares = sides, np.asarray(shares) / sum(shares)

    def side(self, batch: int) -> int:
        """The crop side of the batch of this number."""
        rng = np.random.default_rng((self.config.seed, batch, 1))
        return int(rng.choice(self.sides, p=self.shares))

    def crops(self, side: int) -> int:
        """How many crops of this side make a batch."""
        return max(2, round(self.config.batch * (self.sides[0] / side) ** 2))

    def __len__(self) -> int:
        return max(0, total_batches(self.config, self.world) - self.first_batch)

    def batch(self, number: int) -> list[tuple[int, int]]:
        """The samples of the batch of this number."""
        side = self.side(number)
        start = (number * self.world + self.rank) * self.config.batch
        return [(start + i, side) for i in range(self.crops(side))]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in range(self.first_batch, self.first_batch + len(self)):
            yield self.batch(number)


class SizedCrops(Dataset[Any]):
    """Crops addressed by (global sample number, side)."""

    def __init__(self, by_side: dict[int, CropDataset]) -> None:
        self.by_side = by_side

    def __getitem__(self, place: tuple[int, int]) -> Any:
        number, side = place
        return self.by_side[side][number]


def crop_settings(config: RunConfig, side: int) -> CropSettings:
    """The run's settings; a larger crop has room for larger faces."""
    settings = config.data.crop
    smallest, largest = settings.face_sizes
    return settings.model_copy(
        update={"face_sizes": (smallest, largest * side / config.data.sizes[0][0])}
    )


def crops_of_side(config: RunConfig, store: Any, indices: np.ndarray, side: int) -> CropDataset:
    """The run's crops of ``side`` pixels, by their number."""
    weights = sample_weights(store, indices, config.data.source_weights)
    crop = TrainingCrop(side, crop_settings(config, side))
    return CropDataset(store, indices, crop, config.seed, weights)


def total_batches(config: RunConfig, world: int = 1) -> int:
    """Steps of a run: its images over the crops of a step."""
    return max(int(config.images > 0), round(config.images / (config.batch * world)))


def make_loader(
    config: RunConfig,
    store: Any,
    indices: np.ndarray,
    first_batch: int,
    rank: int,
    world: int,
    for_gpu: bool = False,
) -> DataLoader[Batch]:
    """The loader of a run from ``first_batch`` on; ``for_gpu`` pins the batches."""
    crops = SizedCrops(
        {side: crops_of_side(config, store, indices, side) for side, _ in config.data.sizes}
    )
    workers = config.data.workers
    return DataLoader(
        crops,
        batch_sampler=SizedSampler(config, first_batch, rank, world),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=for_gpu,
        worker_init_fn=quiet_worker if workers else None,
        persistent_workers=False,
    )


def quiet_worker(_: int) -> None:
    """One thread a worker: the cores belong to the network."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
