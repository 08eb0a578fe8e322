"""A larger V2 that begins as a smaller one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_featherface_v2 import unsettled
from test_training_loop import make_small_run

from featherface.errors import ConfigError, WeightsError
from featherface.models.backbone import MobileNetV1
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.pretrained_v2 import EARLIER_SHAPE, load_v2
from featherface.models.weight_files import save_weights
from featherface.training.grown_start import grow
from featherface.training.loop import train
from featherface.training.warm_start import LAST_READER

SMALL = {"stage3_channels": 24, "stage2_rank": 16, "light_ssh": 1, "detail_channels": 12}
LARGE = SMALL | {"stage3_channels": 256, "stage2_rank": 0, "light_ssh": 3}
IMAGE = 255 * torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small() -> FeatherFaceV2:
    """Batch normalisations and attention away from where they begin."""
    return unsettled(**SMALL)


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """V1's backbone and what reads it, by their public names."""
    torch.manual_seed(1)
    state = {f"body.{name}": value for name, value in MobileNetV1().state_dict().items()}
    path = tmp_path / "v1.safetensors"
    save_file(state | {LAST_READER: torch.randn(64, 256, 1, 1)}, path)
    return path


def test_it_computes_what_the_smaller_one_does(small: FeatherFaceV2, v1: Path) -> None:
    model = FeatherFaceV2(**LARGE)
    grow(model, small, v1)
    assert model.training
    model.eval()
    with torch.no_grad():
        for ours, theirs in zip(model(IMAGE), small(IMAGE), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        last = model.backbone(IMAGE)[2]
    assert last[:, 24:].std() > 0.01  # the new channels see something


def test_the_new_channels_are_those_of_v1_that_were_left_out(
    small: FeatherFaceV2, v1: Path
) -> None:
    model = FeatherFaceV2(**LARGE)
    grow(model, small, v1)
    theirs = load_file(v1)["body.stage3.1.0.weight"].flatten(1)
    ours = model.backbone.stage3[1][0].weight.detach().flatten(1)[24:]
    found = [int((theirs == kernel).all(1).nonzero()) for kernel in ours]
    assert len(set(found)) == 256 - 24


def test_what_was_new_can_learn(small: FeatherFaceV2, v1: Path) -> None:
    model = FeatherFaceV2(**LARGE).eval()
    grow(model, small, v1)
    model(IMAGE).logits.square().sum().backward()
    lateral = model.laterals[2][0].weight.grad
    assert lateral[:, 24:].abs().max() > 0
    for layer in model.context[0].children():
        for value in layer.parameters():
            assert value.grad.abs().max() > 0


def test_a_run_begins_so(small: FeatherFaceV2, v1: Path, tmp_path: Path) -> None:
    facts = {"arguments": json.dumps(EARLIER_SHAPE | {"weighted": True} | SMALL)}
    save_weights(small, tmp_path / "small.safetensors", facts)
    config = make_small_run(
        tmp_path,
        (64,),
        model=LARGE,
        start={
            "weights": tmp_path / "small.safetensors",
            "v1": v1,
            "grown": True,
            "frozen_statistics": True,
        },
        optimiser={"learning_rate": 1e-9},
    )
    grown = load_v2(train(config, accelerator="cpu", report=lambda _: None))
    assert parameter_count(grown) > 2 * parameter_count(small)
    with torch.no_grad():
        torch.testing.assert_close(grown(IMAGE), small(IMAGE), atol=1e-3, rtol=1e-3)


def test_what_cannot_be_grown_is_refused(small: FeatherFaceV2, v1: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start\.v1"):
        grow(FeatherFaceV2(**LARGE), small, None)
    for change in ({"stage3_channels": 16}, {"detail_channels": 0}, {"fusions": 2}):
        with pytest.raises(ConfigError, match="cannot compute"):
            grow(FeatherFaceV2(**SMALL | {"stage2_rank": 0} | change), small, v1)
    with pytest.raises(WeightsError, match="two factors"):
        grow(FeatherFaceV2(**LARGE | {"stage3_rank": 8}), small, v1)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="is it FeatherFace V1"):
        grow(FeatherFaceV2(**LARGE), small, tmp_path / "other.safetensors")
