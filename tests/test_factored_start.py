"""Factored convolutions and their first weights, fitted to whole ones and to V1's last stage."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from safetensors.torch import save_file
from test_featherface_v2 import LIGHT
from test_training_loop import make_small_run
from torch import nn

from featherface.anchors import make_anchors
from featherface.data.shards import PhotoStore
from featherface.errors import ConfigError, WeightsError
from featherface.models.featherface_v1 import FeatherFaceV1, attend
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.modules.factored_pointwise import FactoredPointwise, pointwise
from featherface.models.pretrained_v2 import load_v2
from featherface.models.weight_files import save_weights
from featherface.training import factored_start
from featherface.training.config import RunConfig
from featherface.training.distillation import teacher_input, twin_distance
from featherface.training.factored_start import (
    copy_same,
    fit_factors,
    fit_pointwise,
    set_slope,
    start_factored,
)
from featherface.training.joined_teacher import JoinedTeacher
from featherface.training.loop import train
from featherface.training.warm_start import warm_start_from_imagenet, warm_start_from_v1

RANKS = {"stage2_rank": 48, "stage3_rank": 40, "lateral_rank": 32, "context_rank": 24}
FACTORED = {"stage3_channels": 256} | RANKS


def test_all_channels_of_the_last_stage_fit_the_budget() -> None:
    whole = FeatherFaceV2(stage3_channels=256)
    assert parameter_count(whole) > 250_000
    assert parameter_count(FeatherFaceV2(**FACTORED)) <= 250_000


def test_no_rank_is_a_plain_convolution() -> None:
    assert isinstance(pointwise(8, 8), nn.Conv2d)
    assert isinstance(pointwise(8, 8, 4), FactoredPointwise)


@settings(deadline=None, max_examples=20)
@given(rank=st.integers(1, 6), seed=st.integers(0, 100))
def test_a_map_of_low_rank_is_found_again(rank: int, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    weight = torch.randn(10, rank, generator=noise) @ torch.randn(rank, 8, generator=noise)
    x = torch.randn(4, 8, 6, 6, generator=noise)
    constant = torch.randn(10, generator=noise)
    wanted = torch.einsum("bchw,oc->bohw", x, weight) + constant[:, None, None]
    layer = FactoredPointwise(8, 10, rank)
    with torch.no_grad():
        left = fit_pointwise(layer, x, wanted, torch.rand(10, generator=noise) + 0.5)
        made = layer(x) + left[:, None, None]
    assert torch.allclose(made, wanted, atol=1e-3 * float(wanted.abs().max()))


def test_no_other_map_of_the_rank_is_nearer() -> None:
    """Steps to any side of the fitted factors do not help."""
    noise = torch.Generator().manual_seed(0)
    x, wanted = (torch.randn(8, c, 8, 8, generator=noise) for c in (12, 9))
    layer = FactoredPointwise(12, 9, 3)
    with torch.no_grad():
        left = fit_pointwise(layer, x, wanted, torch.ones(9))[:, None, None]
        best = (layer(x) + left - wanted).square().mean()
        assert best < wanted.var()
        for _ in range(20):
            other = copy.deepcopy(layer)
            for weight in other.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=noise)
            assert (other(x) + left - wanted).square().mean() > best


IMAGES = 255 * torch.rand(12, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models() -> tuple[FeatherFaceV2, FeatherFaceV1]:
    """A V2 that begins with V1's first stages; batch normalisations know their inputs."""
    torch.manual_seed(0)
    whole, v1 = FeatherFaceV2(stage3_channels=80, stage2_rank=0), FeatherFaceV1()
    with torch.no_grad():
        copy_same(whole.backbone.stage1, v1.backbone.stage1)
        copy_same(whole.backbone.stage2, v1.backbone.stage2)
        stem: Any = whole.backbone.stage1[0]
        stem[0].weight.copy_(stem[0].weight.flip(1))
        for model, images in ((whole, IMAGES), (v1, teacher_input(IMAGES))):
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0
            model.train()(images)
    return whole.eval(), v1.eval()


def test_what_both_have_is_copied_and_more_ranks_come_nearer(
    models: tuple[FeatherFaceV2, FeatherFaceV1],
) -> None:
    whole, v1 = models
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    with torch.no_grad():
        stages = whole.backbone(IMAGES)
    laterals, stage_2 = [], []
    for factor in (4, 1):
        ranks = {name: rank // factor for name, rank in RANKS.items()}
        model = FeatherFaceV2(stage3_channels=256, **ranks)
        laterals.append(fit_factors(model, whole, v1, IMAGES))
        with torch.no_grad():
            ours = model.backbone(IMAGES)
        assert torch.equal(ours[0], stages[0])
        stage_2.append(float(twin_distance([ours[1]], [stages[1]])))
    assert laterals[1] < laterals[0] - 0.1
    assert stage_2[1] < stage_2[0] - 0.1
    for name, value in model.fusions.state_dict().items():
        assert torch.equal(value, before[f"fusions.{name}"])
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_a_twin_of_v1_has_all_its_laterals(models: tuple[FeatherFaceV2, FeatherFaceV1]) -> None:
    whole, v1 = models
    fusion: Any = v1.fusions[0]
    with torch.no_grad():
        attended = attend(v1.backbone_attention, v1.backbone(teacher_input(IMAGES)))
        wanted = [f(x) for f, x in zip(fusion.laterals, attended, strict=True)]
    distances = []
    for all_laterals in (False, True):
        model = FeatherFaceV2(**FACTORED)
        fit_factors(model, whole, v1, IMAGES, all_laterals)
        with torch.no_grad():
            maps = [x.relu() for x in model.backbone(IMAGES)]
            made = [f(x) for f, x in zip(model.laterals, maps, strict=True)]
        distances.append(
            [float(twin_distance([a], [b])) for a, b in zip(made, wanted, strict=True)]
        )
    assert max(distances[1]) < 1 < min(distances[0][:2])


def test_a_v2_that_looks_through_v1s_last_stage(
    models: tuple[FeatherFaceV2, FeatherFaceV1],
) -> None:
    """Its own last stage no longer matters, its second one and V1's last do."""

    def answers(change: Callable[[JoinedTeacher], nn.Module] | None = None) -> torch.Tensor:
        joined = JoinedTeacher(*copy.deepcopy(models))
        if change:
            with torch.no_grad():
                for value in change(joined).parameters():
                    value *= 0.5
        outputs, maps = joined(IMAGES[:2])
        assert outputs.logits.shape == (2, len(make_anchors(160, 160)), 2)
        assert [x.shape[2] for x in maps.neck] == [20, 10, 5]
        return outputs.logits[..., 1] - outputs.logits[..., 0]

    plain = answers()
    own, _ = models
    with torch.no_grad():
        assert not torch.allclose(plain, own(IMAGES[:2]).logits, atol=1e-3)
    assert torch.equal(plain, answers(lambda joined: joined.v2.backbone.stage3))
    assert torch.equal(plain, answers(lambda joined: joined.v2.laterals[2]))
    assert not torch.allclose(plain, answers(lambda joined: joined.v2.backbone.stage2), atol=1e-3)
    assert not torch.allclose(plain, answers(lambda joined: joined.v1.backbone.stage3), atol=1e-3)


def run_config(tmp_path: Path, **start: object) -> RunConfig:
    start = {"factored_crops": 2} | start
    return make_small_run(tmp_path, (64,), model=FACTORED, start=start)


@pytest.mark.parametrize("twin_crops", [0, 8])
def test_a_run_begins_with_the_fitted_factors(
    tmp_path: Path,
    twin_crops: int,
    models: tuple[FeatherFaceV2, FeatherFaceV1],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, v1 = models
    save_weights(
        whole,
        tmp_path / "whole.safetensors",
        {"arguments": '{"stage3_channels": 80, "weighted": true, "light_ssh": 2}'},
    )
    monkeypatch.setattr(factored_start, "load_v1", lambda _: v1)
    config = run_config(
        tmp_path,
        weights=tmp_path / "whole.safetensors",
        v1=tmp_path / "v1.safetensors",
        twin_crops=twin_crops,
    )
    said: list[str] = []
    model = load_v2(train(config, accelerator="cpu", report=said.append))
    assert said[0].startswith("Factors fitted: ")
    assert any(x.startswith("Twin: ") for x in said) == bool(twin_crops)
    assert isinstance(model.laterals[2][0], FactoredPointwise)  # type: ignore[index]
    ours: Any = model.laterals[0]
    theirs: Any = whole.laterals[0]
    # One step away, and those of the twin start.
    most = 0.02 if twin_crops else 0.01
    assert torch.allclose(ours[0].weight, theirs[0].weight, atol=most)


def test_stages_in_factors_learn_from_whole_ones(
    tmp_path: Path, models: tuple[FeatherFaceV2, FeatherFaceV1]
) -> None:
    whole, _ = models
    path = tmp_path / "whole.safetensors"
    save_weights(whole, path, {"arguments": json.dumps(LIGHT | {"stage3_channels": 80})})
    with torch.no_grad():
        wanted = whole.backbone(IMAGES)
    distances = []
    for steps in (0, 40):
        config = make_small_run(
            tmp_path / str(steps),
            (64,),
            model={"stage2_rank": 12, "detail_channels": 12},
            start={"factored_crops": 4, "factored_steps": steps, "weights": path},
        )
        said: list[str] = []
        model = FeatherFaceV2(**config.model.model_dump())
        before = copy.deepcopy(model)
        store = PhotoStore(config.data.shards, config.data.cache)
        joined = start_factored(
            Fabric(accelerator="cpu"), model, config, store, np.arange(len(store)), said.append
        )
        assert joined is None
        assert len(said) == (2 if steps else 1)
        with torch.no_grad():
            made = model.backbone(IMAGES)
        assert torch.equal(made[0], wanted[0])
        distances.append(float(twin_distance(made[1:2], wanted[1:2])))
        assert all(p.requires_grad for p in model.parameters())
        for name, value in model.state_dict().items():
            if name.startswith("detail."):
                assert torch.equal(value, before.state_dict()[name])
            elif name.startswith(("fusions", "context", "heads")):
                assert torch.equal(value, whole.state_dict()[name])
    first, last = (float(x) for x in said[1].split("loss ")[1].split(" to "))
    assert said[1].startswith("Factors: 40 steps, loss ")
    assert last < 0.9 * first


def test_activations_lose_their_slope_on_the_way(
    tmp_path: Path, models: tuple[FeatherFaceV2, FeatherFaceV1]
) -> None:
    whole = copy.deepcopy(models[0])
    set_slope(whole, 0.7)
    path = tmp_path / "whole.safetensors"
    shape = LIGHT | {"stage3_channels": 80, "negative_slope": 0.7}
    save_weights(whole, path, {"arguments": json.dumps(shape)})
    config = make_small_run(
        tmp_path,
        (64,),
        model={"negative_slope": 0.0},
        start={"factored_crops": 4, "factored_steps": 60, "weights": path},
    )
    model = FeatherFaceV2(**config.model.model_dump())
    store = PhotoStore(config.data.shards, config.data.cache)
    said: list[str] = []
    start_factored(
        Fabric(accelerator="cpu"), model, config, store, np.arange(len(store)), said.append
    )
    assert not [x for x in model.deployed().modules() if isinstance(x, nn.LeakyReLU)]
    # Where the slope goes and nothing learns, the maps are farther off.
    still = copy.deepcopy(whole)
    set_slope(still, 0.0)
    photos = torch.stack([torch.from_numpy(store[i].image[:160, :160]) for i in range(6)])
    images = photos.permute(0, 3, 1, 2).float()
    with torch.no_grad():
        wanted, made, left = (
            net.both_laterals(net.backbone(images))[0] for net in (whole, model, still)
        )
    far, near = (
        sum(float((x - y).square().mean()) for x, y in zip(maps, wanted, strict=True))
        for maps in (left, made)
    )
    assert near < 0.8 * far
    assert not torch.equal(
        model.backbone.stage1[0][0].weight,  # type: ignore[index]
        whole.backbone.stage1[0][0].weight,  # type: ignore[index]
    )


def test_fitting_to_v1_needs_v1(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"factored_crops: needs start\.v1, the weights of V1"):
        train(run_config(tmp_path), accelerator="cpu")


def test_a_copy_of_whole_convolutions_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "v1.safetensors")
    for warm_start in (warm_start_from_v1, warm_start_from_imagenet):
        with pytest.raises(WeightsError, match=r"begin with start\.factored_crops"):
            warm_start(FeatherFaceV2(**FACTORED), tmp_path / "v1.safetensors")
    with pytest.raises(WeightsError, match=r"begin with start\.factored_crops"):
        warm_start_from_v1(FeatherFaceV2(lateral_rank=32), tmp_path / "v1.safetensors")
