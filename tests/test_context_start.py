"""The context's first weights, learned from maps of a teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_loop import draw_photo, make_config
from torch import Tensor

from featherface.data.pack import pack
from featherface.data.shards import PhotoStore
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.outputs import FeatureMaps
from featherface.training import loop
from featherface.training.config import RunConfig
from featherface.training.context_start import fit_context
from featherface.training.distillation import twin_distance

SHAPE = {"channels": 16, "fusions": 1, "weighted": True, "light_ssh": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "train"
    pack([draw_photo(n) for n in range(6)], folder)
    return folder


def context_run(shards: Path, output: Path, crops: int) -> RunConfig:
    start = {"context_crops": crops}
    return make_config(shards, output, (64,), images=8, model=SHAPE, start=start)


def test_the_context_comes_nearer_to_the_teachers(shards: Path, tmp_path: Path) -> None:
    """And nothing else moves."""
    config = context_run(shards, tmp_path, 160)
    torch.manual_seed(0)
    student = FeatherFaceV2(**config.model.model_dump())
    before = {name: value.clone() for name, value in student.state_dict().items()}
    mix = torch.randn(16, 16) / 4
    noise = torch.Generator().manual_seed(1)

    def teacher(images: Tensor) -> FeatureMaps:
        neck = [torch.randn(len(images), 16, s, s, generator=noise) for s in (16, 8, 4)]
        context = [torch.einsum("bchw,oc->bohw", x, mix).relu() for x in neck]
        return FeatureMaps([], neck, context)

    def distance() -> float:
        maps = teacher(torch.empty(16, 3, 320, 320))
        with torch.no_grad():
            made = [f.eval()(x) for f, x in zip(student.context, maps.neck, strict=True)]
        return float(twin_distance(made, maps.context))

    at_first = distance()
    store = PhotoStore(config.data.shards, config.data.cache)
    said: list[str] = []
    fit_context(student.context, teacher, config, store, np.arange(len(store)), said.append)
    assert distance() < 0.8 * at_first
    assert said[0].startswith("Context: ")
    after = student.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"context"}


def test_a_run_without_v1_has_no_maps_to_learn_from(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"context_crops.*V1's weights"):
        loop.train(context_run(shards, tmp_path, 8), accelerator="cpu", report=lambda _: None)
