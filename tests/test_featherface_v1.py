"""V1: its size, its public weights, its reference outputs, and its deformable convolution."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featherface.anchors import make_anchors
from featherface.errors import WeightsError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.modules.deformable_conv import DeformableConv, deformable_convolution
from featherface.models.pretrained import load_v1
from featherface.training.warm_start import warm_start_from_v1

SHARED = Path(os.environ.get("FEATHERFACE_SHARED", Path(__file__).parents[2] / "shared"))
WEIGHTS = SHARED / "weights" / "featherface_v1_wider.safetensors"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason="V1's public weights are absent")


def test_parameter_counts_are_those_of_code_and_paper() -> None:
    assert parameter_count(FeatherFaceV1(64)) == 592_371
    assert parameter_count(FeatherFaceV1.paper()) == 488_664


def test_outputs_have_one_row_an_anchor_also_at_odd_sizes() -> None:
    model = FeatherFaceV1.paper().eval()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, 70, 101))
    anchors = len(make_anchors(70, 101))
    assert outputs.logits.shape == (2, anchors, 2)
    assert outputs.box_deltas.shape == (2, anchors, 4)
    assert outputs.landmark_deltas.shape == (2, anchors, 10)


@needs_weights
@pytest.mark.parametrize("photo", ["0", "1"])
def test_reproduces_the_reference_outputs(photo: str) -> None:
    reference = np.load(SHARED / "reference" / "v1_outputs.npz")
    path = next((SHARED / "data").rglob(str(reference[f"{photo}_image"])))
    image = cv2.imread(str(path)).astype(np.float32) - np.float32([104, 117, 123])
    with torch.no_grad():
        outputs = load_v1(WEIGHTS)(torch.from_numpy(image).permute(2, 0, 1)[None])
    for name, found in (
        ("boxes", outputs.box_deltas),
        ("scores", outputs.logits.softmax(-1)),
        ("landmarks", outputs.landmark_deltas),
    ):
        np.testing.assert_allclose(found[0].numpy(), reference[f"{photo}_{name}"], atol=1e-4)


@needs_weights
def test_weights_without_cbam_are_refused(tmp_path: Path) -> None:
    tensors = {k: v for k, v in load_file(WEIGHTS).items() if "cbam" not in k}
    path = tmp_path / "no_cbam.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="not all of FeatherFace V1's weights"):
        load_v1(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v1.safetensors"
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(WeightsError, match=r"v1\.safetensors"):
        load_v1(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="is it FeatherFace V1"):
        load_v1(path)
    with pytest.raises(WeightsError, match="is it FeatherFace V1"):
        warm_start_from_v1(FeatherFaceV2(), path)


@needs_weights
def test_warm_start_takes_over_what_v1_computes() -> None:
    """V2 sees RGB 0..255, V1 BGR minus means: away from the border the first stages agree."""
    teacher, student = load_v1(WEIGHTS), FeatherFaceV2().eval()
    warm_start_from_v1(student, WEIGHTS)
    image = torch.randint(0, 256, (1, 3, 128, 128)).float()
    means = torch.tensor([104.0, 117.0, 123.0])[None, :, None, None]
    with torch.no_grad():
        theirs = teacher.backbone(image.flip(1) - means)
        ours = student.backbone(image)
    inner = (..., slice(5, 11), slice(5, 11))
    torch.testing.assert_close(ours[0][inner], theirs[0][inner], atol=1e-3, rtol=1e-3)
    assert ours[2].shape[1] == 80
    for ours_fusion, theirs_fusion in zip(student.fusions, teacher.fusions, strict=True):
        torch.testing.assert_close(
            ours_fusion.out_8.pointwise.weight, theirs_fusion.out_8.pointwise.weight
        )


@needs_weights
def test_weighed_fusion_is_v1s_own() -> None:
    """All three layers, on the laterals that V1 has."""
    teacher = load_v1(WEIGHTS)
    student = FeatherFaceV2().eval()
    warm_start_from_v1(student, WEIGHTS)
    torch.manual_seed(0)
    maps = [torch.rand(1, c, s, s) for c, s in ((64, 16), (128, 8), (256, 4))]
    first: Any = teacher.fusions[0]
    with torch.no_grad():
        levels = [lateral(x) for lateral, x in zip(first.laterals, maps, strict=True)]
        again = [lateral(x) for lateral, x in zip(first.second_laterals, maps[1:], strict=True)]
        for ours, theirs in zip(student.fusions, teacher.fusions, strict=True):
            levels, again, maps = ours(levels, again), [], theirs(maps)
            for a, b in zip(levels, maps, strict=True):
                torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@needs_weights
def test_second_laterals_are_read_off_the_first() -> None:
    """On inputs that do not correlate no linear map comes nearer; on average it is exact."""
    first: Any = load_v1(WEIGHTS).fusions[0]
    student = FeatherFaceV2().eval()
    warm_start_from_v1(student, WEIGHTS)
    convolution, norm = first.laterals[1]
    spread = torch.randn(1, 128, 96, 96, generator=torch.Generator().manual_seed(0))
    means = torch.linalg.lstsq(
        convolution.weight.flatten(1), norm.running_mean - convolution.bias
    ).solution
    x = spread + means[:, None, None]
    ours: Any = student.second_laterals[0]
    with torch.no_grad():
        one, two = first.laterals[1](x), first.second_laterals[0](x)
        made = ours(one)
        inputs = one.flatten(2)[0].T
        ones = torch.ones(len(inputs), 1)
        wanted = two.flatten(2)[0].T
        fitted = torch.linalg.lstsq(torch.cat([inputs, ones], 1), wanted)
        least = (torch.cat([inputs, ones], 1) @ fitted.solution - wanted).square().mean()
    middle = made - made.mean((2, 3), keepdim=True) - two + two.mean((2, 3), keepdim=True)
    assert middle.square().mean() < 1.05 * least
    at_means = first.laterals[1][1].bias
    with torch.no_grad():
        answer = ours(at_means[None, :, None, None])[0, :, 0, 0]
    torch.testing.assert_close(answer, first.second_laterals[0][1].bias, atol=1e-3, rtol=1e-3)


def direct_loop(
    x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Deformable convolution written out, one tap of one place at a time."""
    batch, _, height, width = x.shape
    out = torch.zeros(batch, len(weight), height, width, dtype=x.dtype)

    def at(image: int, row: int, column: int) -> torch.Tensor:
        if 0 <= row < height and 0 <= column < width:
            return x[image, :, row, column]
        return torch.zeros_like(x[image, :, 0, 0])

    for b in range(batch):
        for i in range(height):
            for j in range(width):
                total = torch.zeros(len(weight), dtype=x.dtype)
                for tap in range(9):
                    row = i + tap // 3 - 1 + offset[b, 2 * tap, i, j]
                    column = j + tap % 3 - 1 + offset[b, 2 * tap + 1, i, j]
                    top, left = int(torch.floor(row)), int(torch.floor(column))
                    down, right = row - top, column - left
                    value = (
                        (1 - down) * (1 - right) * at(b, top, left)
                        + (1 - down) * right * at(b, top, left + 1)
                        + down * (1 - right) * at(b, top + 1, left)
                        + down * right * at(b, top + 1, left + 1)
                    )
                    total = total + mask[b, tap, i, j] * (weight[:, :, tap // 3, tap % 3] @ value)
                out[b, :, i, j] = total
    return out


def random_arguments() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return values.requires_grad_()

    return draw(2, 2, 4, 5), draw(2, 18, 4, 5, scale=1.5), draw(2, 9, 4, 5), draw(3, 2, 3, 3)


def test_deformable_convolution_equals_the_direct_loop() -> None:
    arguments = random_arguments()
    expected = direct_loop(*arguments)
    found = deformable_convolution(*arguments)
    torch.testing.assert_close(found, expected)
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).double()
    for ours, theirs in zip(
        torch.autograd.grad(found, arguments, seed),
        torch.autograd.grad(expected, arguments, seed),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_deformable_convolution_passes_gradcheck() -> None:
    arguments = random_arguments()
    small = (arguments[0][:1, :, :3, :3], arguments[1][:1, :, :3, :3], arguments[2][:1, :, :3, :3])
    inputs = [x.detach().clone().requires_grad_() for x in (*small, arguments[3])]
    assert torch.autograd.gradcheck(deformable_convolution, inputs)


def test_without_offsets_it_is_a_convolution() -> None:
    layer = DeformableConv(4, 6)
    x = torch.randn(1, 4, 7, 9)
    torch.testing.assert_close(layer(x), layer.kernel(x), atol=1e-5, rtol=1e-5)
