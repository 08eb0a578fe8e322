"""One stem in place of two: it learns what both made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from pydantic import ValidationError
from test_training_loop import make_small_run
from torch import nn

from featherface.data.shards import PhotoStore
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.pretrained_v2 import EARLIER_SHAPE, load_v2
from featherface.models.weight_files import save_weights
from featherface.training import shared_start
from featherface.training.config import ModelConfig, RunConfig
from featherface.training.loop import train
from featherface.training.shared_start import maps_of_one, maps_of_two, start_shared

TWO = {"stage3_channels": 24, "detail_channels": 12}
ONE = TWO | {"shared_stem": True}


@pytest.fixture
def two() -> FeatherFaceV2:
    torch.manual_seed(0)
    model = FeatherFaceV2(**TWO)
    model.train()(255 * torch.rand(4, 3, 96, 96))  # statistics of images
    return model.eval()


def run_config(folder: Path, two: FeatherFaceV2, **changes: object) -> RunConfig:
    facts = {"model": "FeatherFaceV2"}
    facts["arguments"] = json.dumps(EARLIER_SHAPE | {"weighted": True, "light_ssh": 2} | TWO)
    save_weights(two, folder / "two.safetensors", facts)
    start = {"weights": folder / "two.safetensors", "shared_steps": 40}
    values = {"model": ONE, "start": start | {"frozen_statistics": True}}
    return make_small_run(folder, (64,), **values | changes)


@pytest.fixture(autouse=True)
def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_start, "CROPS", 6)
    monkeypatch.setattr(shared_start, "CROPS_A_STEP", 2)
    monkeypatch.setattr(shared_start, "SIDE", 96)
    monkeypatch.setattr(shared_start, "LEARNING_RATE", 3e-4)  # an untrained stem's


def test_both_read_the_stems_map_of_stride_4() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV2(**ONE).eval()
    assert parameter_count(model) < parameter_count(FeatherFaceV2(**TWO)) + 200
    image = 255 * torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps, detail = model.seen(image)
        assert detail is not None
        assert [x.shape[2:] for x in (*maps, detail)] == [(8, 12), (4, 6), (2, 3), (8, 12)]
        stem = model.detail
        assert stem is not None
        torch.testing.assert_close(stem(image), detail)
        nn.init.zeros_(list(stem.children())[3][0].weight)  # type: ignore[index]
        again, without = model.seen(image)
    assert not torch.allclose(again[0], maps[0])
    assert without is not None
    assert not torch.allclose(without, detail)


def test_it_learns_what_two_stems_made(two: FeatherFaceV2, tmp_path: Path) -> None:
    config = run_config(tmp_path, two)
    store = PhotoStore([config.data.shards], config.data.cache)
    indices, _ = store.split(0.0, seed=0)
    image = 255 * torch.rand(1, 3, 96, 96)

    def distance(model: FeatherFaceV2) -> float:
        with torch.no_grad():
            pairs = zip(maps_of_one(model, image), maps_of_two(two, image), strict=True)
            return sum(
                float(((x - y).square().mean((0, 2, 3)) / y.var((0, 2, 3))).mean())
                for x, y in pairs
            )

    said: list[str] = []
    distances = []
    for steps in (1, 40):
        torch.manual_seed(1)
        model = FeatherFaceV2(**ONE)
        start = config.start.model_copy(update={"shared_steps": steps})
        changed = config.model_copy(update={"start": start})
        start_shared(Fabric(accelerator="cpu"), model, changed, store, indices, said.append)
        distances.append(distance(model.eval()))
        assert all(p.requires_grad for p in model.parameters())
    assert distances[1] < 0.8 * distances[0]
    assert said[1].startswith("Shared stem: 40 steps, loss")
    for name, value in two.state_dict().items():
        if not name.startswith(("backbone.stage1.", "detail.")):
            assert torch.equal(model.state_dict()[name], value), name


def test_a_run_begins_with_it_and_a_v2_teaches(two: FeatherFaceV2, tmp_path: Path) -> None:
    teaching = {"teacher": tmp_path / "two.safetensors", "adapters": False}
    config = run_config(tmp_path, two, distillation=teaching)
    said: list[str] = []
    trained = load_v2(train(config, accelerator="cpu", report=said.append))
    assert trained.shared_stem
    assert any(line.startswith("Shared stem:") for line in said)


def test_other_shapes_are_refused(two: FeatherFaceV2, tmp_path: Path) -> None:
    config = run_config(tmp_path, two)
    for model in (TWO, {"stage3_channels": 24}):
        changed = config.model_copy(update={"model": ModelConfig.model_validate(model)})
        with pytest.raises(ConfigError, match="shared_stem: true"):
            train(changed, accelerator="cpu", report=lambda _: None)
    with pytest.raises(ValidationError, match="needs detail_channels"):
        ModelConfig(shared_stem=True)


def test_a_shared_stem_is_no_detail_stem_to_be_taught_alone(tmp_path: Path) -> None:
    start = {"detail_crops": 8}
    config = make_small_run(tmp_path, (64,), model=ONE, start=start)
    with pytest.raises(ConfigError, match="shared with nothing"):
        train(config, accelerator="cpu", report=lambda _: None)
