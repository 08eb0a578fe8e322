"""A V2 in two ways: shortened from one that has one, its branch taught by another detector."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from pydantic import ValidationError
from test_featherface_v2 import LIGHT, TWO_WAYS, unsettled
from test_training_loop import make_small_run
from torch import Tensor, nn

from featherface.anchors import STRIDES
from featherface.data.dataset import Batch
from featherface.data.shards import PhotoStore
from featherface.errors import ConfigError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.interpolated import interpolate
from featherface.models.modules.detail_branch import DetailBranch
from featherface.models.modules.grouped_heads import GroupedHeads, outputs_of
from featherface.models.outputs import HeadOutputs
from featherface.models.pretrained_v2 import load_v2
from featherface.models.weight_files import save_weights
from featherface.training import answers, joined_start, shortened_start
from featherface.training import student as student_file
from featherface.training.branch_start import (
    WhitenedUnit,
    deviation_of,
    fit_branch,
    inputs_of,
    let_speak_alone,
    maps_of,
    units_of,
)
from featherface.training.config import RunConfig
from featherface.training.distillation import with_two_logits
from featherface.training.joined_start import join_ways
from featherface.training.learner import Learner
from featherface.training.loop import train
from featherface.training.optimisers import make_optimisers
from featherface.training.schedules import TermWeights
from featherface.training.shortened_start import join_predictors, shorten, start_shortened
from featherface.training.student import build_student, freeze

UNITS = 13


class AllMaps(nn.Module):
    """What each unit of a branch makes, as the file of a network shows it."""

    def __init__(self, branch: DetailBranch) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(maps_of(self.branch, image / 64))


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetailBranch]:
    """A network of the branch's shape, in a file and as it is."""
    torch.manual_seed(3)
    branch = DetailBranch(16).eval()
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # so that the last maps are no constants
    path = tmp_path_factory.mktemp("peer") / "peer.onnx"
    names = [f"map_{n}" for n in range(UNITS)]
    size = {2: "height", 3: "width"}
    torch.onnx.export(
        AllMaps(branch),
        (torch.zeros(1, 3, 64, 64),),
        str(path),
        input_names=["image"],
        output_names=names,
        dynamic_axes={"image": size} | {name: {2: f"{name}h", 3: f"{name}w"} for name in names},
        opset_version=17,
        dynamo=False,
    )
    return path, branch


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, peer: tuple[Path, DetailBranch]) -> RunConfig:
    return make_small_run(
        tmp_path_factory.mktemp("data"),
        sides=(64,),
        model={"detail_branch": True, "channels": 16},
        loss={"matching": "compensated"},
        start={
            "shortened": 24,
            "shortened_passes": 6,
            "branch_crops": 64,
            "branch_passes": [12, 3, 1],
            "branch_teacher": {
                "path": peer[0],
                "maps": [f"map_{n}" for n in range(UNITS)],
            },
        },
    )


@pytest.mark.parametrize(("strides", "count"), [(1, UNITS), (2, 17)])
def test_units_their_inputs_and_their_maps_agree(strides: int, count: int) -> None:
    torch.manual_seed(0)
    branch = DetailBranch(24, strides).eval()
    image = torch.rand(2, 3, 96, 64) * 255
    with torch.no_grad():
        maps = maps_of(branch, image)
        units, inputs = units_of(branch), inputs_of(image, maps)
        assert len(units) == len(inputs) == len(maps) == count
        for unit, x, y in zip(units, inputs, maps, strict=True):
            torch.testing.assert_close(unit(x), y)
        for ours, theirs in zip(maps[-strides:], branch(image).towers, strict=True):
            torch.testing.assert_close(ours, theirs)
    parts = [x for x in (*units, branch.around, branch.detail) if x is not None]
    assert {id(p) for part in parts for p in part.parameters()} == {
        id(p) for p in branch.parameters()
    }


@pytest.mark.parametrize("place", [0, 1, 4, 11, 12])
def test_a_unit_is_given_what_was_learned_in_other_coordinates(place: int) -> None:
    torch.manual_seed(0)
    branch = DetailBranch(24).eval()
    image = torch.rand(2, 3, 96, 64) * 255
    with torch.no_grad():
        maps = maps_of(branch, image)
        x, unit = inputs_of(image, maps)[place], units_of(branch)[place]
        learned = WhitenedUnit(x, deviation_of(maps[place]), unit)
        learned.write_to(unit)
        made = learned(x) * deviation_of(maps[place])
        torch.testing.assert_close(unit(x), made, rtol=1e-3, atol=1e-3 * float(made.abs().max()))


def test_the_branch_comes_near_a_teacher_of_its_shape(
    config: RunConfig, peer: tuple[Path, DetailBranch]
) -> None:
    store = PhotoStore(config.data.shards, config.data.cache)
    torch.manual_seed(0)
    student = FeatherFaceV2(**config.model.model_dump())
    assert student.branch is not None
    image = torch.from_numpy(np.ascontiguousarray(store[0].image[:64, :64])).permute(2, 0, 1)[None]
    image = image.float()

    def distances() -> float:
        """How far each unit is from its teacher's on the same inputs, the median."""
        assert student.branch is not None
        with torch.no_grad():
            wanted = maps_of(peer[1], image / 64)
            inputs = inputs_of(image, wanted)
            made = [unit(x) for unit, x in zip(units_of(student.branch), inputs, strict=True)]
            pairs = zip(made, wanted, strict=True)
            return float(np.median([((x - y) / deviation_of(y)).square().mean() for x, y in pairs]))

    before, others = distances(), copy.deepcopy(student.backbone.state_dict())
    said: list[str] = []
    learner = Learner(student, config, None)
    fit_branch(Fabric(accelerator="cpu"), learner, store, np.arange(len(store)), said.append)
    assert [x.split(":")[0] for x in said] == ["Units", "Branch", "Branch by labels"]
    for line, share in zip(said, (0.3, 0.95, 0.9), strict=True):
        first, last = (float(x) for x in line.split("loss ")[1].split(" to "))
        assert last < share * first
    assert distances() < 0.5 * before
    assert all(p.requires_grad for p in student.parameters())
    for name, value in student.backbone.state_dict().items():
        assert torch.equal(value, others[name])


def test_both_ways_have_an_equal_say_where_the_branch_has_any() -> None:
    torch.manual_seed(0)
    student, alone, other = (
        unsettled(**TWO_WAYS),
        GroupedHeads([64], None),
        GroupedHeads([64], None),
    )
    let_speak_alone(student, alone)
    both = student.heads.predictors[0]
    context, tower = torch.rand(2, 1, 64, 4, 4)
    one, two = other.predictors[0], alone.predictors[0]
    assert all(isinstance(x, nn.Conv2d) for x in (both, one))
    with torch.no_grad():
        torch.testing.assert_close(both(torch.cat([context, tower], 1)), two(tower))
        join_predictors(both, one)  # type: ignore[arg-type]
        made = both(torch.cat([context, tower], 1))
        torch.testing.assert_close(made, (one(context) + two(tower)) / 2)
        coarse = student.heads.predictors[2]
        join_predictors(coarse, one)  # type: ignore[arg-type]
        torch.testing.assert_close(coarse(context), one(context))


def test_a_v2_of_no_lower_rank_makes_the_same() -> None:
    longer = unsettled(**LIGHT)
    model = FeatherFaceV2(detail_branch=True)
    with torch.no_grad():
        for predictor in model.heads.predictors:
            predictor.weight.zero_()  # type: ignore[operator]
            predictor.bias.zero_()  # type: ignore[operator]
    image = torch.rand(1, 3, 64, 96) * 255
    shorten(model, longer, image)
    finest = 8 * 12 * 2
    with torch.no_grad():
        (ours, our_maps), (theirs, their_maps) = (
            x.forward_with_features(image) for x in (model, longer)
        )
        for name in ("neck", "context"):
            pairs = zip(getattr(our_maps, name), getattr(their_maps, name), strict=True)
            for one, other in pairs:
                torch.testing.assert_close(one, other)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one[:, finest:], other[:, finest:])
            torch.testing.assert_close(one[:, :finest], other[:, :finest] / 2)  # the branch: silent


def test_what_the_detail_stem_added_comes_from_the_branch() -> None:
    torch.manual_seed(0)
    longer, model = unsettled(**LIGHT | {"detail_channels": 48}), unsettled(**TWO_WAYS)
    image = torch.rand(2, 3, 64, 96) * 255
    shorten(model, longer, image)
    assert model.branch is not None
    assert longer.detail is not None
    with torch.no_grad():
        told, wanted = model.branch(image).detail, longer.detail(image)
        torch.testing.assert_close(
            told.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=0.01, atol=0.01
        )
        left = (told - wanted).square().mean() / wanted.var((0, 2, 3)).mean()
        assert float(left) < 0.8  # by maps that chance made


def test_what_is_left_comes_near_the_whole_again(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr(shortened_start, "LEARNING_RATE", 2e-3)  # few steps
    save_weights(unsettled(**LIGHT), tmp_path / "longer.safetensors", {})
    start = config.start.model_copy(
        update={"weights": tmp_path / "longer.safetensors", "shortened_passes": 10}
    )
    shape = config.model.model_copy(update={"channels": 64, "stage2_rank": 2, "context_rank": 4})
    sizes = config.data.model_copy(update={"sizes": [(128, 1.0)]})
    run = config.model_copy(update={"start": start, "model": shape, "data": sizes})
    store = PhotoStore(config.data.shards, config.data.cache)
    student = build_student(run)
    first = {n: x.clone() for n, x in student.state_dict().items()}
    said: list[str] = []
    learner = Learner(student, run, None)
    start_shortened(Fabric(accelerator="cpu"), learner, store, np.arange(len(store)), said.append)
    before, after = (float(x) for x in said[0].split("whole ")[1].split(" to "))
    assert after < 0.8 * before
    for name, value in student.state_dict().items():
        if name.startswith("branch.") and not name.startswith("branch.detail."):
            assert torch.equal(value, first[name])
    assert all(p.requires_grad for p in student.parameters())


def test_a_run_that_is_its_start_is_interpolative_after_it(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"model": "FeatherFaceV2", "arguments": json.dumps(LIGHT)}
    save_weights(unsettled(**LIGHT), tmp_path / "longer.safetensors", facts)
    changed = {"weights": tmp_path / "longer.safetensors", "shortened_passes": 1}
    start = config.start.model_copy(update=changed | {"branch_crops": 0})
    shape = {"channels": 64, "stage2_rank": 4, "interpolative": True}
    model = config.model.model_copy(update=shape)
    changes = {"images": 0, "model": model, "start": start, "output": tmp_path}
    run = RunConfig.model_validate(config.model_dump() | changes)
    fitted: list[FeatherFaceV2] = []

    def note(model: FeatherFaceV2, factored: FeatherFaceV2) -> None:
        fitted.append(copy.deepcopy(factored).eval())
        interpolate(model, factored)

    monkeypatch.setattr(student_file, "interpolate", note)
    said: list[str] = []
    trained = load_v2(train(run, accelerator="cpu", report=said.append)).eval()
    assert any(line.startswith("Shortened: ") for line in said)
    assert trained.interpolative
    assert not fitted[0].interpolative
    assert parameter_count(trained) < parameter_count(fitted[0])
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        for ours, theirs in zip(trained(image), fitted[0](image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std()))


def test_a_branch_learns_from_crops_of_several_sizes(config: RunConfig) -> None:
    data = config.data.model_copy(update={"sizes": [(64, 0.5), (96, 0.5)]})
    start = config.start.model_copy(update={"branch_crops": 24, "branch_passes": (1, 1, 1)})
    run = config.model_copy(update={"data": data, "start": start})
    store = PhotoStore(config.data.shards, config.data.cache)
    learner = Learner(build_student(run), run, None)
    said: list[str] = []
    fit_branch(Fabric(accelerator="cpu"), learner, store, np.arange(len(store)), said.append)
    assert [line.split(":")[0] for line in said] == ["Units", "Branch", "Branch by labels"]


def test_what_cannot_start_so_is_refused(config: RunConfig, tmp_path: Path) -> None:
    store = PhotoStore(config.data.shards, config.data.cache)
    fabric, indices = Fabric(accelerator="cpu"), np.arange(len(store))
    with pytest.raises(ConfigError, match=r"needs model\.detail_branch"):
        fit_branch(fabric, Learner(FeatherFaceV2(), config, None), store, indices, print)
    with pytest.raises(ConfigError, match=r"needs model\.detail_branch"):
        start_shortened(fabric, Learner(FeatherFaceV2(), config, None), store, indices, print)
    student = FeatherFaceV2(**config.model.model_dump())
    with pytest.raises(ConfigError, match=r"needs start\.weights of a V2 with one way"):
        start_shortened(fabric, Learner(student, config, None), store, indices, print)
    dynamic = config.model_copy(
        update={"loss": config.loss.model_copy(update={"matching": "dynamic"})}
    )
    with pytest.raises(ConfigError, match="dynamic asks anchors of all strides"):
        fit_branch(fabric, Learner(student, dynamic, None), store, indices, print)
    alone = config.model_copy(update={"start": config.start.model_copy(update={"shortened": 0})})
    with pytest.raises(ConfigError, match=r"needs start\.shortened"):
        fit_branch(fabric, Learner(student, alone, None), store, indices, print)
    assert config.start.branch_teacher is not None
    fewer = config.start.branch_teacher.model_copy(update={"maps": ["map_0"]})
    for teacher, problem in (
        (None, r"needs start\.branch_teacher"),
        (fewer, "1 maps for 13 units"),
    ):
        start = config.start.model_copy(update={"branch_teacher": teacher})
        learner = Learner(student, config.model_copy(update={"start": start}), None)
        with pytest.raises(ConfigError, match=problem):
            fit_branch(fabric, learner, store, indices, print)


def test_the_branch_may_learn_slowly_or_in_part(config: RunConfig) -> None:
    optimiser = config.optimiser.model_copy(update={"branch_rate": 0.25})
    start = config.start.model_copy(update={"frozen_branch": True})
    run = config.model_copy(update={"optimiser": optimiser, "start": start})
    student = build_student(run)
    freeze(student, run.start)
    (adamw,) = make_optimisers(Learner(student, run, None), run)
    branch = student.branch
    assert branch is not None
    kept = {id(p) for part in (branch.stem, branch.stage_4) for p in part.parameters()}
    shares = {id(p): g["share"] for g in adamw.param_groups for p in g["params"]}
    assert not kept & set(shares)
    assert {shares[id(p)] for p in branch.parameters() if id(p) not in kept} == {0.25}
    assert {shares[id(p)] for p in student.context.parameters()} == {1.0}


@pytest.mark.parametrize(("shape", "counts"), [(TWO_WAYS, False), (LIGHT, True)])
def test_v1_does_not_judge_what_its_way_reads_of_the_branch(
    config: RunConfig, shape: dict[str, Any], counts: bool
) -> None:
    distillation = config.distillation.model_copy(update={"adapters": False})
    run = config.model_copy(update={"distillation": distillation})
    student = unsettled(**shape)
    learner = Learner(student, run, None)
    image = torch.rand(2, 3, 128, 128) * 255
    nothing = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5, 2), torch.zeros(0).long()
    with torch.no_grad():
        outputs, maps = student.forward_with_features(image)
        first, *others = maps.context
        taught = maps._replace(context=[first + 1, *others])
        terms = learner.compare(
            outputs,
            maps,
            learner.anchors_of(image),
            Batch(image, *nothing),
            (outputs, taught),
            TermWeights(1.0, 0.0, 0.0),
        )
    assert (float(terms["features"]) > 0) == counts


@pytest.mark.parametrize(
    ("v1", "way_rate"), [([], 0.0), ([0.1, 0.2, 0.4, 0.4, 0.5, 0.5], 0.0), ([], 0.5)]
)
def test_both_ways_learn_to_say_what_they_said_whole(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    v1: list[float],
    way_rate: float,
) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr(joined_start, "LEARNING_RATE", 1e-3)  # few steps
    save_weights(unsettled(**LIGHT), tmp_path / "longer.safetensors", {})
    changed: dict[str, Any] = {"weights": tmp_path / "longer.safetensors", "joined_crops": 24}
    changed |= {"joined_passes": 12, "joined_v1": v1, "joined_way_rate": way_rate}
    shape = config.model.model_copy(
        update={"channels": 64, "stage2_rank": 2, "context_rank": 4, "branch_strides": 2}
    )
    start = config.start.model_copy(update=changed | {"branch_crops": 0})
    data = config.data.model_copy(update={"sizes": [(64, 0.5), (96, 0.5)]})
    run = config.model_copy(update={"start": start, "model": shape, "data": data})
    store = PhotoStore(config.data.shards, config.data.cache)
    student = build_student(run)
    longer = load_v2(tmp_path / "longer.safetensors")
    shorten(student, longer, torch.rand(4, 3, 96, 96) * 255)
    first = {n: x.clone() for n, x in student.state_dict().items()}
    said: list[str] = []
    teacher = FeatherFaceV1().eval().requires_grad_(False) if v1 else None
    learner = Learner(student, run, teacher)
    join_ways(Fabric(accelerator="cpu"), learner, store, np.arange(len(store)), said.append)
    before, after = (float(x) for x in said[0].split("loss ")[1].split(" to "))
    assert after < 0.9 * before
    moved = {n for n, x in student.state_dict().items() if not torch.equal(x, first[n])}
    way = ("backbone.stage2.", "laterals.", "fusions.")
    coarsest = ("context.2.", "heads.predictors.2.")
    learned = ("branch.stages.2.", "branch.coarse_tower.", "heads.predictors.1.", "context.1.")
    learned += (way if way_rate else ()) + (coarsest if v1 else ())
    still = ("backbone.stage1.", "branch.stem.", "branch.stage_4.")
    still += (() if way_rate else way) + (() if v1 else coarsest)
    assert not any(n.startswith(still) for n in moved)
    assert all(any(n.startswith(part) for n in moved) for part in learned)
    assert all(p.requires_grad for p in student.parameters())
    unasked = run.model_copy(update={"start": start.model_copy(update={"joined_v1": [0.5] * 6})})
    alone = Learner(student, unasked, None)
    with pytest.raises(ConfigError, match=r"start\.joined_v1: needs V1's weights"):
        join_ways(Fabric(accelerator="cpu"), alone, store, np.arange(len(store)), print)
    one = Learner(FeatherFaceV2(), run, None)
    with pytest.raises(ConfigError, match=r"needs model\.detail_branch and start\.shortened"):
        join_ways(Fabric(accelerator="cpu"), one, store, np.arange(len(store)), print)


def test_a_teachers_answers_lie_as_a_predictor_gives_them() -> None:
    torch.manual_seed(0)
    images = torch.zeros(2, 3, 64, 96)
    maps = [torch.randn(2, 30, 64 // stride, 96 // stride) for stride in STRIDES]
    back = answers.as_maps(with_two_logits(outputs_of(maps)), images)
    for ours, theirs in zip(back, maps, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_v1_has_its_share_at_each_size_of_anchor() -> None:
    shares = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    at_16 = answers.share_of_channels(shares, 1, torch.zeros(1))
    apart = torch.ones(1, 30, 2, 3)
    mixed = HeadOutputs(*(x[0] for x in outputs_of([apart * at_16])))
    for values in mixed:
        flat = values.reshape(6, 2, -1)  # cell, anchor
        assert (flat[:, 0] == torch.tensor(0.2)).all()
        assert (flat[:, 1] == torch.tensor(0.3)).all()
    with pytest.raises(ValidationError, match="5 values for six sizes of anchors"):
        RunConfig.model_validate({"name": "x", "start": {"joined_v1": shares[1:]}})


def test_answers_are_apart_where_a_face_is_said_otherwise() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(2, 30, 4, 4)
    assert float(answers.answers_distance(wanted, wanted)) == pytest.approx(0, abs=1e-6)
    wanted[:, :2] = -20.0  # no face
    moved = wanted.clone()
    moved[:, 2:] += 1.0
    assert float(answers.answers_distance(moved, wanted)) < 1e-6  # whose boxes count nothing
    wanted[0, 1, 2, 3] = moved[0, 1, 2, 3] = 20.0
    box, landmarks = wanted.clone(), wanted.clone()
    box[0, 6:10, 2, 3] += 1.0
    landmarks[0, 20:30, 2, 3] += 1.0
    of_box = float(answers.answers_distance(box, wanted))
    of_landmarks = float(answers.answers_distance(landmarks, wanted))
    assert of_box == pytest.approx(0.5 / 3)
    assert of_landmarks == pytest.approx(0.3 * 0.5 / 3)
    box[0, 2:6, 2, 3] += 5.0  # the other anchor's
    assert float(answers.answers_distance(box, wanted)) == pytest.approx(of_box)


def test_two_strides_without_a_branch_are_refused() -> None:
    with pytest.raises(ValidationError, match="branch_strides: 2 needs detail_branch"):
        RunConfig.model_validate({"name": "x", "model": {"branch_strides": 2}})
