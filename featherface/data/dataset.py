"""Crops as a PyTorch data set: sample number n of a run is always the same crop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from featherface.data.augmentation import TrainingCrop
from featherface.data.crop_geometry import Sample
from featherface.data.labelled_photo import LabelledPhoto, Photos
from featherface.errors import ConfigError

SOURCE_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"crowd": 3.0, "bikes": 2.0, "flickr": 1.2, "portraits": 1.6, "sports": 0.8, "lfw": 0.6}
)


@dataclass(frozen=True)
class Batch:
    """Crops of one size, and the faces of all of them in one list.

    Attributes:
        images: uint8 RGB [B, 3, S, S].
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the crop.
        scores: float32 [N]; below 0.5 the face is to be ignored.
        landmarks: float32 [N, 5, 2], NaN where absent.
        crops: int64 [N], the crop that the face lies on, from 0 and never falling.
    """

    images: Tensor
    boxes: Tensor
    scores: Tensor
    landmarks: Tensor
    crops: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(*(x.to(device, non_blocking=True) for x in self._tensors()))

    def pin_memory(self) -> Batch:
        """The same batch where a GPU may fetch it while the processor goes on."""
        return Batch(*(x.pin_memory() for x in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


class CropDataset(Dataset[Sample]):
    """Training crops by their number in the run, which has no end.

    Photo and augmentation of sample ``n`` follow from ``seed`` and ``n`` alone, whatever worker
    makes it, so a resumed run that asks for the numbers after its checkpoint goes on as if it had
    never stopped.
    """

    def __init__(
        self,
        store: Photos,
        indices: NDArray[np.int64],
        crop: TrainingCrop,
        seed: int = 0,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Crops of the photos ``indices`` (int64 [P]) of ``store``.

        Args:
            weights: float64 [P], chance of each photo; by default that of its source.
        """
        self.store = store
        self.indices = np.asarray(indices, np.int64)
        if not len(self.indices):
            raise ValueError("no photo to crop from")
        self.crop = crop
        self.seed = seed
        weights = sample_weights(store, self.indices) if weights is None else weights
        self.cumulative = np.cumsum(weights) / np.sum(weights)
        small = np.isin(store.sources[self.indices], crop.settings.mosaic_sources)
        self.partners = self.indices[small]

    def __getitem__(self, number: int) -> Sample:
        """Crop ``number`` of the run, from 0."""
        cv2.setNumThreads(0)
        rng = np.random.default_rng((self.seed, int(number)))
        drawn = int(np.searchsorted(self.cumulative, rng.random(), side="right"))
        index = int(self.indices[min(drawn, len(self.indices) - 1)])
        return self.crop(index, self.store, rng, self.partners)


def sample_weights(
    store: Photos,
    indices: NDArray[np.int64],
    source_weights: Mapping[str, float] = MappingProxyType({}),
) -> NDArray[np.float64]:
    """The chance of each photo of ``indices`` to be drawn, float64 [len(indices)], sum 1.

    ``source_weights`` are laid over ``SOURCE_WEIGHTS``; a source in neither weighs 1.

    Raises:
        ConfigError: every photo weighs 0.
    """
    by_source = {**SOURCE_WEIGHTS, **source_weights}
    weights = np.array([by_source.get(str(name), 1.0) for name in store.sources[indices]])
    if not weights.sum() > 0:
        raise ConfigError("source_weights: every source of these photos weighs 0; let one count")
    return weights / weights.sum()


class ResumableSampler(Sampler[int]):
    """Yields the sample numbers from ``start`` to ``start + length``.

    With several processes each takes every ``processes``-th number, beginning at its ``rank``.
    """

    def __init__(self, start: int, length: int, rank: int = 0, processes: int = 1) -> None:
        self.numbers = range(start + rank, start + length, processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack crops of one size into a batch."""
    images = np.stack([sample.image for sample in samples])
    counts = [len(sample.scores) for sample in samples]
    return Batch(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.concatenate([sample.boxes for sample in samples])),
        torch.from_numpy(np.concatenate([sample.scores for sample in samples])),
        torch.from_numpy(np.concatenate([sample.landmarks for sample in samples])),
        torch.arange(len(samples)).repeat_interleave(torch.tensor(counts)),
    )


def validation_photos(store: Photos, indices: NDArray[np.int64]) -> Iterator[LabelledPhoto]:
    """The whole photos ``indices`` of ``store``, in order, as they are."""
    for index in indices:
        yield store[int(index)]
