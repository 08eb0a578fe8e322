"""The detail stem's start: learned from labels and other detectors' maps; nothing else moves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lightning_fabric import Fabric
from onnx import TensorProto, helper, numpy_helper
from test_featherface_v2 import LIGHT
from test_training_loop import make_small_run
from torch import nn

from featherface.data.dataset import Batch
from featherface.data.shards import PhotoStore
from featherface.errors import ConfigError, WeightsError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.pretrained_v2 import load_v2
from featherface.models.weight_files import save_weights
from featherface.training.config import MapTeacherConfig, RunConfig
from featherface.training.detail_start import fit_detail, share_values
from featherface.training.learner import Learner
from featherface.training.loop import train
from featherface.training.map_teacher import MapTeacher
from featherface.training.schedules import TermWeights
from featherface.training.student import build_student

WEIGHTS = np.random.default_rng(0).normal(0, 0.1, (6, 3, 4, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one image, as others make them: maps of strides 4 and 8 inside, a score out."""
    down = helper.make_node("MaxPool", ["quarter"], ["eighth"], kernel_shape=[2, 2], strides=[2, 2])
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "kernel"], ["conv"], strides=[4, 4]),
            helper.make_node("Relu", ["conv"], ["quarter"]),
            down,
            helper.make_node("GlobalMaxPool", ["eighth"], ["score"]),
        ],
        "peer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, 6, 1, 1])],
        [numpy_helper.from_array(WEIGHTS, "kernel")],
    )
    path = tmp_path_factory.mktemp("peer") / "peer.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, peer: Path) -> RunConfig:
    return make_small_run(
        tmp_path_factory.mktemp("data"),
        sides=(64,),
        model={"detail_channels": 12},
        loss={"matching": "compensated"},
        start={
            "detail_crops": 80,
            "detail_passes": [2, 3, 1],
            "detail_teachers": [{"path": peer, "maps": ["eighth"], "scale": 64.0}],
        },
    )


def test_maps_are_those_of_the_network(peer: Path) -> None:
    images = torch.rand(2, 3, 32, 64) * 255
    teacher = MapTeacher(
        MapTeacherConfig(path=peer, maps=["eighth", "quarter"], bgr=True, mean=127.5, scale=128.0)
    )
    eighth, quarter = teacher(images)
    pixels = (images.flip(1) - 127.5) / 128
    expected = nn.functional.conv2d(pixels, torch.from_numpy(WEIGHTS), stride=4).relu()
    torch.testing.assert_close(quarter, expected)
    torch.testing.assert_close(eighth, nn.functional.max_pool2d(expected, 2))


def test_the_stem_and_what_reads_it_learn(config: RunConfig) -> None:
    store = PhotoStore(config.data.shards, config.data.cache)
    torch.manual_seed(0)
    student = FeatherFaceV2(**config.model.model_dump())
    student.backbone.stage1[0].requires_grad_(False)
    learns = {n: p.requires_grad for n, p in student.named_parameters()}
    before = {n: x.clone() for n, x in student.state_dict().items()}
    said: list[str] = []
    learner = Learner(student, config, None)
    fit_detail(Fabric(accelerator="cpu"), learner, store, np.arange(len(store)), said.append)
    assert {n: p.requires_grad for n, p in student.named_parameters()} == learns
    moved = {n for n, x in student.state_dict().items() if not torch.equal(x, before[n])}
    may_move = ("detail.", "context.0.", "heads.predictors.0.")
    assert all(name.startswith(may_move) for name in moved)
    for part in may_move:
        names = {n for n in learns if n.startswith(part)}
        assert len(names & moved) > 0.9 * len(names)
    # 80 crops in tens of 8: 20 steps of 4 or 40 of 2 a pass.
    runs = {"Reader": 40, "Detail stem": 120, "Detail stem by labels": 20}
    assert [x.split(":")[0] for x in said] == list(runs)
    for line, (name, steps) in zip(said, runs.items(), strict=True):
        assert line.startswith(f"{name}: {steps} steps, loss ")
    first, last = (float(x) for x in said[1].split("loss ")[1].split(" to "))
    assert last < 0.8 * first


def test_what_the_labels_do_not_teach_is_left_out(config: RunConfig, tmp_path: Path) -> None:
    start = config.start.model_copy(update={"detail_crops": 8, "detail_passes": (0, 2, 0)})
    said: list[str] = []
    train(
        config.model_copy(update={"start": start, "output": tmp_path}),
        accelerator="cpu",
        report=said.append,
    )
    assert [x.split(":")[0] for x in said if "steps, loss" in x] == ["Detail stem"]


def test_a_run_begins_with_a_v2_without_the_stem(config: RunConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = FeatherFaceV2()
    save_weights(plain, tmp_path / "plain.safetensors", {})
    start = config.start.model_copy(
        update={
            "weights": tmp_path / "plain.safetensors",
            "detail_crops": 16,
            "detail_passes": (1, 1, 1),
        }
    )
    changed = config.model_copy(update={"start": start, "output": tmp_path})
    said: list[str] = []
    model = load_v2(train(changed, accelerator="cpu", report=said.append))
    assert any(x.startswith("Detail stem: 8 steps") for x in said)
    assert model.detail is not None
    ours, theirs = model.backbone.stage3[0][3].weight, plain.backbone.stage3[0][3].weight
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)  # one step away


def test_a_stem_that_is_there_learns_on(config: RunConfig, tmp_path: Path) -> None:
    torch.manual_seed(2)
    first = FeatherFaceV2(detail_channels=12)
    told = {"arguments": json.dumps(LIGHT | {"detail_channels": 12})}
    save_weights(first, tmp_path / "first.safetensors", told)
    start = config.start.model_copy(
        update={"weights": tmp_path / "first.safetensors", "detail_crops": 8}
    )
    student = build_student(config.model_copy(update={"start": start}))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value)


def test_maps_of_other_strides_are_refused(config: RunConfig, peer: Path, tmp_path: Path) -> None:
    teacher = MapTeacherConfig(path=peer, maps=["quarter", "eighth"])
    for teachers, told in (
        ([teacher], r"maps of strides \[4, 8\]; the detail stem has 8"),
        ([], r"needs start\.detail_teachers"),
    ):
        start = config.start.model_copy(update={"detail_teachers": teachers})
        changed = config.model_copy(update={"start": start, "output": tmp_path})
        with pytest.raises(ConfigError, match=told):
            train(changed, accelerator="cpu")


def test_names_and_files_that_do_not_exist(peer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peer\.onnx has no map '999' inside"):
        MapTeacher(MapTeacherConfig(path=peer, maps=["999"]))
    for path in (tmp_path / "none.onnx", tmp_path / "text.onnx"):
        if path.stem == "text":
            path.write_text("no network")
        with pytest.raises(WeightsError, match="cannot be read as ONNX"):
            MapTeacher(MapTeacherConfig(path=path, maps=["a"]))


def test_the_dynamic_matching_is_refused(config: RunConfig, tmp_path: Path) -> None:
    loss = config.loss.model_copy(update={"matching": "dynamic"})
    with pytest.raises(ConfigError, match="dynamic asks anchors of all strides"):
        train(config.model_copy(update={"loss": loss, "output": tmp_path}), accelerator="cpu")


def test_a_model_without_the_stem_is_refused(config: RunConfig, tmp_path: Path) -> None:
    model = config.model.model_copy(update={"detail_channels": 0})
    with pytest.raises(ConfigError, match=r"start\.detail_crops: needs model\.detail_channels"):
        train(config.model_copy(update={"model": model, "output": tmp_path}), accelerator="cpu")


def test_processes_go_on_with_the_mean_of_their_statistics() -> None:
    class TwoProcesses:
        world_size = 2

        def all_reduce(self, values: torch.Tensor, reduce_op: str) -> torch.Tensor:
            assert reduce_op == "mean"
            return (values + 3) / 2  # the other has threes

    norm = nn.BatchNorm2d(2)
    share_values(TwoProcesses(), norm.buffers())  # type: ignore[arg-type]
    assert norm.running_mean.tolist() == [1.5, 1.5]  # type: ignore[union-attr]
    assert norm.running_var.tolist() == [2.0, 2.0]  # type: ignore[union-attr]


def test_v1_is_no_measure_of_what_a_detail_stem_adds() -> None:
    torch.manual_seed(0)
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    nobody = torch.zeros(0)
    batch = Batch(images, nobody.view(0, 4), nobody, nobody.view(0, 5, 2), nobody.long())
    config = RunConfig.model_validate({"distillation": {"adapters": False}})
    student = FeatherFaceV2(detail_channels=12).eval()
    assert student.detail is not None
    norm = list(list(student.detail.children())[-1].children())[-1]
    learner = Learner(student, config, FeatherFaceV1().eval())
    losses = []
    for added in (0.0, 5.0):
        nn.init.constant_(norm.bias, added)  # type: ignore[arg-type]
        losses.append(learner(images, batch, TermWeights(1.0, 0.0, 0.0))["features"])
    torch.testing.assert_close(losses[0], losses[1])
