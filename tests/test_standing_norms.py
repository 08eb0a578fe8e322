"""Batch normalisations that stand still: the same outputs and gradients in fewer passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_featherface_v2 import DETAILED, FACTORED, INTERPOLATIVE, SHARED, unsettled
from torch import nn
from torch.nn import functional

from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.pretrained_v2 import EARLIER_SHAPE
from featherface.training.standing_norms import keep_statistics


def make_student(**shape: Any) -> FeatherFaceV2:
    """A V2 by chance whose statistics and factors are far from those it began with."""
    student = unsettled(**shape or DETAILED).double().train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return student


def gradients(student: FeatherFaceV2, image: torch.Tensor) -> list[torch.Tensor]:
    """The outputs, the maps, and what every parameter learns from them."""
    outputs, maps = student.forward_with_features(image)
    shown = [*outputs, *(level for part in maps for level in part)]
    torch.stack([(x.tanh() * x).mean() for x in shown]).sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    return [*shown, *(p.grad for p in student.parameters() if p.grad is not None)]


@pytest.mark.parametrize("shape", [EARLIER_SHAPE, FACTORED, DETAILED, SHARED, INTERPOLATIVE])
def test_the_same_is_computed_and_learned(shape: dict[str, Any]) -> None:
    plain, kept = make_student(**shape), make_student(**shape)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    keep_statistics(kept)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 255
    for one, other in zip(gradients(plain, image), gradients(kept, image), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_the_weights_have_their_names_and_statistics() -> None:
    plain, kept = make_student(), make_student()
    keep_statistics(kept)
    kept(torch.rand(2, 3, 64, 64, dtype=torch.float64))
    values = kept.state_dict()
    assert list(values) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(values[name], value)


def test_convolutions_have_taken_most_norms_over(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[torch.Tensor] = []
    normalise = functional.batch_norm

    def counted(x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        passes.append(x)
        return normalise(x, *arguments, **options)

    monkeypatch.setattr(functional, "batch_norm", counted)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    student = make_student().eval()
    student(image)
    before = len(passes)
    keep_statistics(student)
    student(image)
    assert len(passes) - before < before / 2


def test_a_copy_has_weights_of_its_own() -> None:
    kept = make_student()
    keep_statistics(kept)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    before = kept(image)[0]
    twin = copy.deepcopy(kept)
    with torch.no_grad():
        for value in kept.parameters():
            value.add_(0.1)
    torch.testing.assert_close(twin(image)[0], before)
