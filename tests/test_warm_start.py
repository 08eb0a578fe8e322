"""First weights from an ImageNet classifier: the layers of the backbone that survive are copied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featherface.errors import WeightsError
from featherface.models.backbone import MobileNetV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training.distillation import teacher_input
from featherface.training.warm_start import warm_start_from_imagenet


@pytest.fixture
def classifier() -> MobileNetV1:
    torch.manual_seed(0)
    return MobileNetV1().eval()


@pytest.fixture
def weights(classifier: MobileNetV1, tmp_path: Path) -> Path:
    path = tmp_path / "imagenet.safetensors"
    save_file(classifier.state_dict() | {"fc.weight": torch.randn(1000, 256)}, path)
    return path


def test_the_backbone_computes_what_the_classifiers_does(
    classifier: MobileNetV1, weights: Path
) -> None:
    """Away from the border, where one pads with black and the other with the mean."""
    model = FeatherFaceV2(stage3_channels=256).eval()
    warm_start_from_imagenet(model, weights)
    image = torch.randint(0, 256, (1, 3, 512, 512)).float()
    with torch.no_grad():
        maps = zip(model.backbone(image), classifier(teacher_input(image)), strict=True)
    for ours, theirs in maps:
        middle = slice(3 * ours.shape[2] // 8, 5 * ours.shape[2] // 8)
        torch.testing.assert_close(
            ours[..., middle, middle], theirs[..., middle, middle], atol=1e-4, rtol=1e-3
        )


def test_the_last_stage_keeps_the_channels_that_weigh_most(
    classifier: MobileNetV1, tmp_path: Path
) -> None:
    state = classifier.state_dict()
    head = torch.full((10, 256), 1e-3)
    head[:, 40:200] = 1.0
    save_file(state | {"fc.weight": head}, tmp_path / "imagenet.safetensors")
    model = FeatherFaceV2(stage3_channels=160)
    warm_start_from_imagenet(model, tmp_path / "imagenet.safetensors")
    last = [m for m in model.backbone.stage3.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    assert last.weight.shape[:2] == (160, 160)
    theirs = state["stage3.1.3.weight"]
    for ours, row in zip(last.weight.flatten(1), theirs[40:200].flatten(1), strict=True):
        assert torch.isin(ours, row).all()


def test_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="is it MobileNetV1"):
        warm_start_from_imagenet(FeatherFaceV2(), tmp_path / "other.safetensors")
