"""V1 in ONNX Runtime equals V1 in PyTorch, in both formulations, and FaceDetector runs it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from featherface import FaceDetector
from featherface.export.v1_onnx import export_v1_onnx
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.modules.deformable_conv import DeformableConv

SHARED = Path(os.environ.get("FEATHERFACE_SHARED", Path(__file__).parents[1].parent / "shared"))
WEIGHTS = SHARED / "weights" / "featherface_v1_wider.safetensors"


def random_v1() -> FeatherFaceV1:
    """A small V1 whose offsets are not the zeros that it starts from."""
    torch.manual_seed(0)
    model = FeatherFaceV1(out_channels=32).eval()
    for module in model.modules():
        if isinstance(module, DeformableConv):
            torch.nn.init.normal_(module.offset.weight, std=0.05)
            torch.nn.init.normal_(module.mask.weight, std=0.05)
    return model


def largest_difference(model: FeatherFaceV1, path: Path, height: int, width: int) -> float:
    """Between the outputs of ``model`` in PyTorch and of the file in ONNX Runtime."""
    baseline = BaselineV1(model.heads.classes[0].in_channels).eval()  # type: ignore[arg-type]
    baseline.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        expected = baseline(image)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image.numpy()})
    wanted = (expected.logits.sigmoid(), expected.box_deltas, expected.landmark_deltas)
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("plain_operators", [False, True])
def test_random_weights(tmp_path: Path, plain_operators: bool) -> None:
    model = random_v1()
    path = export_v1_onnx(model, tmp_path / "v1.onnx", plain_operators)
    assert largest_difference(model, path, 64, 96) < 1e-3
    faces = FaceDetector(path, input_size=None, score_threshold=0.9, threads=1)(
        np.zeros((50, 70, 3), np.uint8)
    )
    assert np.isfinite(faces.boxes).all()


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the public weights are not here")
def test_public_weights(tmp_path: Path) -> None:
    from featherface.models.pretrained import load_v1

    model = load_v1(WEIGHTS)
    path = export_v1_onnx(model, tmp_path / "v1.onnx")
    assert largest_difference(model, path, 96, 128) < 1e-3
