"""Graph rewrites: fewer nodes, the same outputs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from featherface.export import onnx_file
from featherface.export.onnx_file import export_onnx
from featherface.models.featherface_v2 import FeatherFaceV2


def run(path: Path, image: np.ndarray) -> list[np.ndarray]:
    """All outputs of the file for ``image``."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"image": image}))


def test_same_outputs_from_fewer_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = FeatherFaceV2()
    for parameter in model.parameters():  # outputs that differ from cell to cell
        torch.nn.init.normal_(parameter, std=0.1)
    simple = export_onnx(model, tmp_path / "simple.onnx")
    monkeypatch.setattr(onnx_file, "simplify", lambda graph: graph)
    plain = export_onnx(model, tmp_path / "plain.onnx")
    image = np.random.default_rng(0).uniform(0, 255, (2, 3, 64, 96)).astype(np.float32)
    for found, expected in zip(run(simple, image), run(plain, image), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5)
    kinds = Counter(node.op_type for node in onnx.load(simple).graph.node)
    assert kinds["Shape"] == kinds["Gather"] == 0
    assert len(onnx.load(simple).graph.node) < len(onnx.load(plain).graph.node)
