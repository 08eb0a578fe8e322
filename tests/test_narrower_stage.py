"""Channels cut out of stage 2: exact where they carry nothing, near where they hardly vary."""

from __future__ import annotations

import pytest
import torch

from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training.narrower_stage import (
    copy_with_narrower_stage2,
    layers,
    lost,
    mean_after,
)

CUT = (3, 50, 51, 127)


@pytest.fixture(params=[False, True])
def wide(request: pytest.FixtureRequest) -> FeatherFaceV2:
    torch.manual_seed(0)
    model = FeatherFaceV2(channels=16, fusions=1, weighted=request.param).eval()
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.normal_()
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return model


@torch.no_grad()
def silence(model: FeatherFaceV2, bias: float) -> None:
    """The channels ``CUT`` of stage 2 give the same value everywhere."""
    for block in layers(model.backbone.stage2):
        for layer in (1, 4) if block[0].in_channels == 128 else (4,):
            for channel in CUT:
                block[layer].weight[channel] = 0
                block[layer].bias[channel] = bias
    after = layers(model.backbone.stage3)[0][1]
    after.weight[list(CUT)] = 0
    after.bias[list(CUT)] = bias


@pytest.mark.parametrize("bias", [0.0, 0.7, -0.7])
def test_channels_that_never_vary_can_go(wide: FeatherFaceV2, bias: float) -> None:
    silence(wide, bias)
    narrow = FeatherFaceV2(
        channels=16, fusions=1, weighted=len(wide.second_laterals) > 0, stage2_channels=124
    ).eval()
    copy_with_narrower_stage2(narrow, wide)
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        for ours, theirs in zip(narrow(image), wide(image), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_mean_behind_an_activation() -> None:
    norm = torch.nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0]))
        norm.bias.copy_(torch.tensor([0.0, 0.8, -1.5]))
    values = norm(torch.randn(1, 3, 600, 600, generator=torch.Generator().manual_seed(0)))
    seen = torch.nn.functional.leaky_relu(values, 0.1).mean((0, 2, 3))
    torch.testing.assert_close(mean_after(norm, 0.1), seen, atol=5e-3, rtol=0)


def test_what_is_lost_is_what_the_kept_leave_over() -> None:
    weight, means = torch.rand(5, 4, 1, 1), torch.rand(4)
    kept = torch.tensor([0, 2])
    left = weight.flatten(1)[:, kept] @ means[kept]
    torch.testing.assert_close(lost(weight, means, kept) + left, weight.flatten(1) @ means)
