"""A teacher in an ONNX file answers as in PyTorch, teaches, and says when it cannot."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from test_training_loop import draw_photo, make_config

from featherface.data.pack import pack
from featherface.errors import ConfigError, WeightsError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.training import loop
from featherface.training.distillation import teacher_input
from featherface.training.onnx_teacher import OnnxTeacher

OUTPUTS_ONLY = [(0.0, 0.0, 1.0, 1.0)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "train"
    pack([draw_photo(n) for n in range(12)], folder)
    return folder


def test_it_answers_as_v1_does_in_pytorch() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV1(out_channels=16, bottleneck=False).eval()
    images = torch.rand(2, 3, 64, 96) * 255
    with torch.no_grad():
        expected = model.forward_with_features(teacher_input(images))[0]
    found = OnnxTeacher.of(model)(images)
    for ours, theirs in zip(
        (found.logits[..., 1] - found.logits[..., 0], *found[1:]),
        (expected.logits[..., 1] - expected.logits[..., 0], *expected[1:]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_run_learns_from_an_onnx_file(shards: Path, tmp_path: Path, red_weights: Path) -> None:
    config = make_config(
        shards,
        tmp_path,
        images=16,
        distillation={"teacher": red_weights, "schedule": OUTPUTS_ONLY},
    )
    loop.train(config, accelerator="cpu", report=lambda _: None)
    with (config.folder / "log.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["teacher_logits"]) > 0
    assert float(row["features"]) == 0


def test_no_features_from_an_onnx_file(shards: Path, tmp_path: Path, red_weights: Path) -> None:
    config = make_config(shards, tmp_path, distillation={"teacher": red_weights})
    with pytest.raises(ConfigError, match=r"red\.onnx shows no features"):
        loop.train(config, accelerator="cpu", report=lambda _: None)


def test_a_file_that_is_no_detector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    path.write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"teacher\.onnx: not an ONNX model"):
        OnnxTeacher(path)
    with pytest.raises(WeightsError, match="no such weights file"):
        OnnxTeacher(tmp_path / "missing.onnx")
