"""What V1 remembers of its photos: the same images shift nothing, a mixture that cancels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.source_statistics import SIDE, RememberedShift, least_shift, random_square


def remembering(images: torch.Tensor) -> nn.Module:
    """A layer whose normalisation has seen the images once, and keeps their plain mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None))
    model.train()(images)
    return model.eval()


def test_the_images_it_remembers_shift_nothing() -> None:
    images = torch.rand(6, 3, 16, 16)
    remembered = RememberedShift(remembering(images))
    remembered.add(images[:2])
    remembered.add(images[2:])
    assert np.abs(remembered.taken()).max() < 1e-5


def test_other_images_shift_and_a_new_count_begins() -> None:
    images = torch.rand(6, 3, 16, 16)
    remembered = RememberedShift(remembering(images))
    remembered.add(images + 3)
    assert np.square(remembered.taken()).sum() > 1
    remembered.add(images)
    assert np.abs(remembered.taken()).max() < 1e-5


def test_the_mixture_that_cancels_is_found() -> None:
    shifts = np.array([[1.0, 0.0], [-3.0, 0.0], [5.0, 4.0]])
    assert least_shift(shifts) == pytest.approx([0.75, 0.25, 0.0], abs=1e-3)


@pytest.mark.parametrize("shape", [(224, 224, 3), (300, 40, 3)])
def test_a_square_fits_into_every_photo(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert random_square(np.zeros(shape, np.uint8), rng).shape == (SIDE, SIDE, 3)
