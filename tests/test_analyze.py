"""The architecture study: every cost adds up, fields are exact, pruning cuts what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_training_loop import draw_photo
from torch import nn
from typer.testing import CliRunner

from featherface.analysis.architecture_study import ArchitectureStudy, Settings, study_architectures
from featherface.analysis.channel_scores import STAGES, channel_scores, normalised_convs
from featherface.analysis.design_implications import implications
from featherface.analysis.module_costs import BETWEEN, module_costs, parts_of_model
from featherface.analysis.module_times import module_times
from featherface.analysis.onnx_times import onnx_times, part_of_node
from featherface.analysis.pruning import pruning_curves, stages_of, without_weakest
from featherface.analysis.receptive_field import effective_fields, theoretical_fields
from featherface.analysis.savings import total
from featherface.analysis.study_report import report, write_study
from featherface.analysis.twins import multiply_adds
from featherface.cli import app
from featherface.data.pack import pack
from featherface.data.shards import PhotoStore
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.modules.folded_norms import fold_norms
from featherface.models.weight_files import save_weights

SMALL = {
    "channels": 16,
    "stage3_channels": 32,
    "fusions": 1,
    "weighted": True,
    "light_ssh": 2,
    "detail_channels": 12,
}
MACHINE = {"cpu": "a processor"}


def small_v1() -> BaselineV1:
    torch.manual_seed(0)
    return BaselineV1(out_channels=16).eval()


def small_v2() -> FeatherFaceV2:
    torch.manual_seed(0)
    return FeatherFaceV2(**SMALL).eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PhotoStore:
    folder = tmp_path_factory.mktemp("photos")
    pack([draw_photo(n) for n in range(12)], folder / "train")
    return PhotoStore(folder / "train", folder / "cache", progress=False)


@pytest.fixture(scope="module")
def study(store: PhotoStore, tmp_path_factory: pytest.TempPathFactory) -> ArchitectureStudy:
    cache = tmp_path_factory.mktemp("cache")
    settings = Settings(width=64, height=64, rounds=1, fraction=0.4, photos=2, cache=cache)
    return study_architectures(small_v1(), small_v2(), settings, store=store)


@pytest.mark.parametrize("model", [small_v1(), small_v2()], ids=["v1", "v2"])
def test_costs_add_up_to_the_network(model: BaselineV1 | FeatherFaceV2) -> None:
    costs = module_costs(model, 64, 96)
    assert list(costs) == [*parts_of_model(model), BETWEEN]
    assert sum(cost.parameters for cost in costs.values()) == parameter_count(model)
    whole = sum(cost.multiply_adds for cost in costs.values())
    assert whole == multiply_adds(model, torch.zeros(1, 3, 96, 64))
    assert all(cost.multiply_adds > 0 for name, cost in costs.items() if name != BETWEEN)
    assert all(cost.written_bytes > 0 for cost in costs.values())


def test_costs_of_a_plain_part_are_those_of_its_formula() -> None:
    model = small_v2()
    lateral = module_costs(model, 64, 96)["laterals"].blocks["0"]
    cells = 8 * 12
    assert lateral.parameters == 64 * 16 + 2 * 16
    assert lateral.multiply_adds == 64 * 16 * cells
    assert lateral.written_bytes >= 4 * 16 * cells


def test_deformable_samples_count_as_memory() -> None:
    """The nine samples a pixel are made inside a module's code; they are its largest tensor."""
    model = small_v1()
    context = module_costs(model, 64, 64)["context"].blocks["0"]
    samples = 4 * 9 * 16 * 8 * 8
    assert context.written_bytes > 2 * samples


@pytest.mark.parametrize("model", [small_v1(), small_v2()], ids=["v1", "v2"])
def test_both_clocks_cover_every_part(model: BaselineV1 | FeatherFaceV2) -> None:
    names = [*parts_of_model(model), BETWEEN]
    for times in (module_times(model, 64, 64, 2), onnx_times(model, 64, 64, 2)):
        assert list(times) == names
        assert all(milliseconds >= 0 for milliseconds in times.values())
        assert all(times[name] > 0 for name in names if name != BETWEEN)


@pytest.mark.parametrize(
    ("node", "part"),
    [
        (
            "/model/backbone/stage1/stage1.0/stage1.0.2/LeakyRelu_output_0_nchwc#3",
            "backbone.stage1",
        ),
        ("/model/laterals.2/laterals.2.0/Conv_output_0_nchwc#4", "laterals"),
        ("/model/context_2/Relu_1#5", "context"),
        ("/model/context/mix/mix.2_1/Relu_output_0_nchwc#5", "context"),
        ("fused /model/attention.0/channel/Conv#6", "attention"),
        ("/model/tower.1/tower.1.2/Relu_output_0#7", "heads"),
        ("/model/Transpose_8#8", "heads"),
        ("/model/Relu_2#9", BETWEEN),
        ("ReorderOutput_token_42#10", BETWEEN),
    ],
)
def test_nodes_belong_to_parts(node: str, part: str) -> None:
    assert part_of_node(node, list(parts_of_model(small_v2())), True) == part


def test_fields_of_the_backbone_follow_the_formula() -> None:
    """Width += (kernel - 1) * jump; jump *= stride, over MobileNetV1's 3x3 convolutions."""
    strides = [2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    width, jump, expected = 1, 1, {}
    for place, stride in enumerate(strides):
        width, jump = width + 2 * jump, jump * stride
        if place in (5, 11, 13):
            expected[jump] = width
    for model in (small_v1(), small_v2()):
        fields = theoretical_fields(model, 2048)
        assert fields["backbone"] == expected == {8: 43, 16: 219, 32: 315}
        for stride, seen in expected.items():
            assert seen < fields["neck"][stride] < fields["context"][stride] < 2048


def test_effective_fields_lie_within_the_photo() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (90, 200, 3)).astype(np.uint8)
    for field in effective_fields(small_v2(), [picture], 128).values():
        assert 0 < field.half <= field.ninety <= 258


def test_scores_cover_every_stage() -> None:
    grouped = FeatherFaceV2(**SMALL | {"light_ssh": 0})
    assert list(channel_scores(grouped)) == list(STAGES)
    scores = channel_scores(small_v1())
    for one in (scores, channel_scores(small_v2())):
        assert set(STAGES) - set(one) == {"heads"}  # they have no normalisation
    assert scores["stage 3"].channels == 256 + 256
    model = small_v2()
    with torch.no_grad():
        model.backbone.stage2[0][4].weight[:10] = 0.01
    assert channel_scores(model)["stage 2"].weak == 10


def test_pruning_zeroes_the_weakest_and_what_follows_them() -> None:
    model = small_v2()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(0.5, 1.5)
        weak = [1, 7, 9, 100]
        model.backbone.stage2[0][4].weight[weak] = 0.1
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = without_weakest(model, "stage 2", 4 / 128)
    for layer in (pruned.backbone.stage2[0][4], pruned.backbone.stage2[1][1]):
        assert layer.weight.flatten().nonzero().numel() == 124
        assert (layer.weight[weak] == 0).all()
        assert (layer.bias[weak] == 0).all()
    maps = pruned.backbone.stage2[:1](pruned.backbone.stage1(torch.rand(1, 3, 64, 64)))
    assert (maps[:, weak] == 0).all()
    assert (maps[:, 0] != 0).any()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    untouched = without_weakest(model, "stage 2", 0.0).state_dict()
    assert all(torch.equal(before[name], untouched[name]) for name in before)


@pytest.mark.parametrize("folded", [False, True])
def test_a_pruned_stage_leaves_the_others_alone(folded: bool) -> None:
    model = small_v2()
    stages = stages_of(model)
    if folded:
        fold_norms(model)
        assert stages_of(model) == stages
    for stage in stages_of(model):
        pruned = without_weakest(model, stage, 0.5)
        for pair in normalised_convs(pruned):
            zeros = int((pair.scales() == 0).sum())
            if not pair.is_depthwise:
                half = round(0.5 * pair.conv.out_channels)
                assert zeros == (half if pair.stage == stage else 0), pair.name


def test_finished_pruning_steps_are_not_measured_again(
    store: PhotoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_v2()
    first = pruning_curves(model, store, 0.4, 2, (0.5,), cache=tmp_path)
    assert 0 <= first.whole <= 1
    assert set(first.by_stage) == set(stages_of(model))

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("featherface.analysis.pruning.validate_model", never)
    assert pruning_curves(model, store, 0.4, 2, (0.5,), cache=tmp_path) == first


def test_savings_add_up(study: ArchitectureStudy) -> None:
    for side, network in (("first", study.v1), ("second", study.v2)):
        whole = total(network.figures)
        for quantity in ("parameters", "multiply_adds", "written_bytes", "torch_ms", "onnx_ms"):
            parts = sum(getattr(getattr(one, side), quantity) for one in study.savings)
            assert parts == pytest.approx(getattr(whole, quantity))


def test_the_study_is_written_whole(study: ArchitectureStudy, tmp_path: Path) -> None:
    write_study(study, tmp_path, MACHINE)
    names = {"analysis.json", "analysis.md"}
    pictures = {"costs.png", "receptive_field.png", "channels.png", "pruning.png"}
    assert {path.name for path in tmp_path.iterdir()} == names | pictures
    for picture in pictures:
        assert cv2.imread(str(tmp_path / picture)).std() > 0
    content = json.loads((tmp_path / "analysis.json").read_text())
    counted = content["networks"]["V2"]["total"]["parameters"]
    assert counted == parameter_count(small_v2())
    text = (tmp_path / "analysis.md").read_text()
    assert f"{counted:,}" in text
    assert all(f"({picture})" in text for picture in pictures)
    assert text.rstrip().splitlines()[-1].startswith(f"{len(implications(study))}. ")
    assert "<" not in text


def test_what_is_not_known_is_said(study: ArchitectureStudy) -> None:
    bare = replace(study.v1, trained=False, effective=None, channels=None, pruning=None)
    known = replace(study.v2, effective=None, pruning=None)
    text = report(replace(study, v1=bare, v2=known), MACHINE, ["costs", "receptive_field"])
    assert "chance weights" in text
    assert "Pruning was not measured" in text
    assert "pruning.png" not in text
    assert "V1's" in text


def test_implications_follow_the_numbers(study: ArchitectureStudy) -> None:
    figures = dict(study.v1.figures)
    figures["shuffle"] = replace(figures["shuffle"], onnx_ms=1e6)
    first = implications(replace(study, v1=replace(study.v1, figures=figures)))[0]
    assert "V1's time goes into `shuffle`" in first
    heads = dict(study.v2.figures)
    heads["heads"] = replace(heads["heads"], onnx_ms=1e6, parameters=1e9)
    texts = implications(replace(study, v2=replace(study.v2, figures=heads)))
    assert any("Grouped heads: dearer than its twin in parameters and time" in t for t in texts)


def test_the_command_without_data_or_v1(tmp_path: Path) -> None:
    weights = tmp_path / "v2.safetensors"
    save_weights(small_v2(), weights, {"arguments": json.dumps(SMALL)})
    arguments = ["--v2", str(weights), "--out", str(tmp_path / "out"), "--rounds", "1"]
    arguments += ["--width", "64", "--height", "64"]
    result = CliRunner().invoke(app, ["analyze", *arguments])
    assert result.exit_code == 0, result.output
    assert "pruning is skipped" in result.output
    assert (tmp_path / "out" / "analysis.md").exists()
    assert not (tmp_path / "out" / "pruning.png").exists()


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["analyze", "--width", "100", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "multiples of 32" in result.output


def test_v1_behind_v2s_door_is_the_same_network() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV1(out_channels=16, bottleneck=False).eval()
    baseline = BaselineV1.of(model)
    assert not baseline.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), baseline.parameters()))  # noqa: B905
