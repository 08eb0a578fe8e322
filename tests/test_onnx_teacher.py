"""Teachers in ONNX Runtime: they answer as in PyTorch, teach, and say when they cannot."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch
from test_training_loop import draw_photo, make_config

from featherface.data.dataset import Batch
from featherface.data.pack import pack
from featherface.errors import ConfigError, WeightsError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.outputs import FeatureMaps
from featherface.training import loop
from featherface.training.config import RunConfig
from featherface.training.distillation import teacher_input
from featherface.training.learner import Learner
from featherface.training.onnx_teacher import OnnxTeacher
from featherface.training.schedules import TermWeights
from featherface.training.twin_teacher import TwinTeacher

OUTPUTS_ONLY = [(0.0, 0.0, 1.0, 1.0)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "train"
    pack([draw_photo(n) for n in range(12)], folder)
    return folder


def test_v1_answers_and_shows_its_maps_as_in_pytorch() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV1(out_channels=16, bottleneck=False).eval()
    teacher = TwinTeacher(model)
    assert teacher(torch.rand(1, 3, 32, 32), maps=False)[1] is None
    images = torch.rand(2, 3, 64, 96) * 255
    with torch.no_grad():
        expected, expected_maps = model.forward_with_features(teacher_input(images))
    found, maps = teacher(images, maps=True)
    assert maps is not None
    for part in FeatureMaps._fields:
        for ours, theirs in zip(getattr(maps, part), getattr(expected_maps, part), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    for ours, theirs in zip(
        (found.logits[..., 1] - found.logits[..., 0], *found[1:]),
        (expected.logits[..., 1] - expected.logits[..., 0], *expected[1:]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_v2_teaches_as_in_pytorch_and_nothing_to_itself() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV2(stage3_channels=24, detail_channels=12).eval()
    teacher = TwinTeacher(model)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        expected, expected_maps = model.forward_with_features(images.float())
    found, maps = teacher(images.float(), maps=True)
    assert maps is not None
    torch.testing.assert_close(found.logits[..., 1], expected.logits, atol=1e-4, rtol=1e-4)
    assert not found.logits[..., 0].any()
    for part in FeatureMaps._fields:
        for ours, theirs in zip(getattr(maps, part), getattr(expected_maps, part), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    nobody = torch.zeros(0)
    batch = Batch(images, nobody.view(0, 4), nobody, nobody.view(0, 5, 2), nobody.long())
    config = RunConfig.model_validate({"distillation": {"adapters": False}})
    for one in (teacher, copy.deepcopy(model)):
        student = copy.deepcopy(model)
        learner = Learner(student, config, one)
        with torch.no_grad():
            terms = learner(images, batch, TermWeights(1.0, 1.0, 0.0))
            assert float(terms["features"]) < 1e-6
            assert float(terms["teacher_logits"]) < 1e-6
            # What the heads of stride 8 read counts, as the teacher has a detail stem as well.
            for value in student.context[0].parameters():
                value.mul_(0.5)
            terms = learner(images, batch, TermWeights(1.0, 0.0, 0.0))
            assert float(terms["features"]) > 1e-2


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
