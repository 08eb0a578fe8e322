"""Parts of V1 replaced one at a time: V1's own maps are at distance nought, a refit is exact."""

from __future__ import annotations

import pytest
import torch

from benchmarks.twin_distance import PARTS, TakenApart
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.training.distillation import teacher_input


@pytest.fixture(scope="module")
def v1() -> TakenApart:
    torch.manual_seed(0)
    with torch.no_grad():
        return TakenApart(FeatherFaceV1().eval(), torch.rand(4, 3, 64, 64) * 255, 2)


def test_v1s_own_way_changes_nothing(v1: TakenApart) -> None:
    with torch.no_grad():
        again = v1.to_the_end(v1.laterals, v1.second)
    assert v1.distances(again) == pytest.approx([0.0] * 6, abs=1e-6)


def test_it_is_v1_that_was_taken_apart(v1: TakenApart) -> None:
    torch.manual_seed(0)
    model = FeatherFaceV1().eval()
    images = torch.rand(4, 3, 64, 64) * 255
    with torch.no_grad():
        maps = model.forward_with_features(teacher_input(images))[1]
    for ours, theirs in zip(v1.maps, [*maps.neck, *maps.context], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_linear_map_is_found_again(v1: TakenApart) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(4, 5, 8, 8), torch.randn(3, 5)
    target = torch.einsum("bchw,oc->bohw", x, weight) + 2
    torch.testing.assert_close(v1.refit(x, target), target, atol=1e-4, rtol=1e-4)


def test_one_set_of_laterals_is_no_longer_v1(v1: TakenApart) -> None:
    with torch.no_grad():
        assert max(v1.distances(PARTS["V1, one set of laterals"](v1))) > 0.01
