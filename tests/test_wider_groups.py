"""A V2 whose groups are fewer and wider begins as the function that the narrower one is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from featherface.errors import WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.pretrained_v2 import load_v2
from featherface.models.weight_files import save_weights
from featherface.training.config import RunConfig
from featherface.training.loop import build_student
from featherface.training.wider_groups import copy_context, in_groups


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A V2 of 32 channels in groups of four and two, no layer of which is as it was made."""
    torch.manual_seed(0)
    arguments = {"channels": 32, "fusions": 1}
    model = FeatherFaceV2(**arguments)
    with torch.no_grad():
        for value in [*model.parameters(), *batch_statistics(model)]:
            value.add_(0.2 * torch.rand_like(value))
    path = tmp_path / "narrow.safetensors"
    save_weights(model, path, {"model": "FeatherFaceV2", "arguments": json.dumps(arguments)})
    return path


def batch_statistics(model: nn.Module) -> Iterator[torch.Tensor]:
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            yield value


@pytest.mark.parametrize(("ssh_groups", "head_groups"), [(1, 1), (2, 1), (4, 2)])
def test_the_function_stays_when_groups_merge(
    narrow: Path, ssh_groups: int, head_groups: int
) -> None:
    source = load_v2(narrow)
    model = FeatherFaceV2(
        channels=32, fusions=1, ssh_groups=ssh_groups, head_groups=head_groups
    ).eval()
    for part in ("backbone", "laterals", "fusions"):
        getattr(model, part).load_state_dict(getattr(source, part).state_dict())
    copy_context(model, narrow)
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        for ours, theirs in zip(model(image), source(image), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (parameter_count(model) > parameter_count(source)) == (ssh_groups < 4)


def test_every_new_weight_can_learn(narrow: Path) -> None:
    model = FeatherFaceV2(channels=32, fusions=1, ssh_groups=1, head_groups=1)
    copy_context(model, narrow)
    context: nn.Conv2d = model.context[0].context_3[0]  # type: ignore[index, assignment]
    assert (context.weight == 0).float().mean() == pytest.approx(0.75, abs=0.01)
    outputs = model(torch.rand(2, 3, 64, 64) * 255)
    sum(x.square().sum() for x in outputs).backward()  # type: ignore[union-attr]
    assert (context.weight.grad[context.weight == 0] != 0).all()  # type: ignore[index]


def test_a_run_begins_with_the_context_of_its_file(narrow: Path) -> None:
    start = {"context": narrow}
    shape = {"channels": 32, "fusions": 2, "weighted": True}
    student = build_student(RunConfig.model_validate({"model": shape, "start": start}))
    theirs = load_v2(narrow).context.state_dict()
    assert all(torch.equal(value, theirs[k]) for k, value in student.context.state_dict().items())


def test_other_channels_are_refused(narrow: Path) -> None:
    with pytest.raises(WeightsError, match=r"narrow\.safetensors: its attention do not fit"):
        copy_context(FeatherFaceV2(channels=64, fusions=1), narrow)


def test_wider_groups_into_narrower_ones_are_refused(tmp_path: Path) -> None:
    arguments = {"channels": 32, "fusions": 1, "ssh_groups": 1}
    path = tmp_path / "dense.safetensors"
    save_weights(
        FeatherFaceV2(**arguments),
        path,
        {"model": "FeatherFaceV2", "arguments": json.dumps(arguments)},
    )
    with pytest.raises(WeightsError, match="as many groups or fewer"):
        copy_context(FeatherFaceV2(channels=32, fusions=1), path)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups cannot become 2"):
        in_groups(torch.zeros(6, 2, 1, 1), 3, 2)
