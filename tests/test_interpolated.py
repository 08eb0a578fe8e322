"""Convolutions of lower rank in a basis of their own outputs: the same network in fewer values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_featherface_v2 import FACTORED, INTERPOLATIVE, TWO_STRIDES, TWO_WAYS, unsettled
from torch import nn

from featherface.errors import WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.interpolated import Chain, interpolate, put_in_order
from featherface.models.modules.factored_pointwise import FactoredPointwise
from featherface.models.modules.folded_norms import convolution_with, fold_norms
from featherface.models.modules.interpolative_pointwise import (
    InterpolativePointwise,
    basis_first,
)
from featherface.models.pretrained_v2 import EARLIER_SHAPE, load_v2
from featherface.models.weight_files import save_weights
from featherface.training.config import RunConfig
from featherface.training.student import build_student

PLAIN = {"interpolative": False, "folded_norms": False}


@st.composite
def factors(draw: st.DrawFn) -> FactoredPointwise:
    """Two factors of any size, their outputs of unlike scales."""
    outputs, inputs = draw(st.integers(2, 24)), draw(st.integers(1, 24))
    rank = draw(st.integers(1, min(inputs, outputs - 1)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    layer = FactoredPointwise(inputs, outputs, rank, bias=draw(st.booleans()))
    layer.wide.weight.data *= torch.logspace(-2, 1, outputs)[:, None, None, None]
    return layer


@torch.no_grad()
@given(factors())
@settings(deadline=None, max_examples=60)
def test_a_basis_of_the_outputs_makes_all_of_them(layer: FactoredPointwise) -> None:
    scale = torch.logspace(2, -1, layer.outputs)
    image = torch.randn(2, layer.inputs, 3, 4)
    wanted = layer(image)
    order = basis_first([(layer, scale)])
    assert sorted(order.tolist()) == list(range(layer.outputs))
    for value in layer.wide.state_dict().values():
        value.copy_(value[order])
    short = InterpolativePointwise.like(layer)
    short.fill(layer)
    torch.testing.assert_close(short(image), wanted[:, order], rtol=1e-3, atol=1e-4)
    weights = short.others.weight.flatten(1) * scale[order][layer.rank :, None]
    assert (weights / scale[order][: layer.rank]).abs().max() < 2**layer.rank  # as QR promises
    saved = parameter_count(layer) - parameter_count(short)
    assert saved == layer.rank**2


@torch.no_grad()
def test_a_batch_normalisation_behind_folds_into_it() -> None:
    torch.manual_seed(0)
    layer, norm = InterpolativePointwise(6, 10, 4), nn.BatchNorm2d(10).eval()
    for value in norm.state_dict().values():
        if value.ndim:
            value.uniform_(0.5, 1.5)
    image = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(convolution_with(layer, norm)(image), norm(layer(image)))


@torch.no_grad()
@pytest.mark.parametrize(
    "shape", [TWO_WAYS, FACTORED, TWO_STRIDES], ids=["two_ways", "one_way", "two_strides"]
)
def test_a_v2_in_factors_and_its_interpolative_twin_say_the_same(shape: dict[str, Any]) -> None:
    factored = unsettled(**shape | PLAIN)
    model = FeatherFaceV2(**shape | PLAIN | {"interpolative": True}).eval()
    interpolate(model, factored)
    image = torch.rand(1, 3, 96, 128) * 255
    for graph in (model, model.deployed()):
        for ours, theirs in zip(graph(image), factored(image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.std()))
    ranks = [x.rank for x in factored.modules() if isinstance(x, FactoredPointwise)]
    ranks += [-x.rank for x in model.modules() if isinstance(x, FactoredPointwise)]
    saved = parameter_count(factored) - parameter_count(model)
    assert saved == sum(rank * abs(rank) for rank in ranks) > 5000


@torch.no_grad()
@pytest.mark.parametrize("interpolative", [False, True])
def test_norms_fold_into_convolutions_of_every_kind(interpolative: bool) -> None:
    factored = unsettled(**FACTORED | TWO_STRIDES | PLAIN | {"lateral_rank": 24})
    shape = FACTORED | TWO_STRIDES | {"interpolative": interpolative, "lateral_rank": 24}
    model = FeatherFaceV2(**shape).eval()
    interpolate(model, factored)
    assert not any(isinstance(x, nn.BatchNorm2d) for x in model.modules())
    image = torch.rand(1, 3, 64, 96) * 255
    for graph in (model, model.deployed()):
        for ours, theirs in zip(graph(image), factored(image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.std()))
    norms = [x for x in factored.modules() if isinstance(x, nn.BatchNorm2d)]
    if not interpolative:
        saved = parameter_count(factored) - parameter_count(model)
        assert saved == sum(x.num_features for x in norms) > 3000


def test_a_grouped_v2_keeps_the_norms_of_its_shuffles() -> None:
    model = unsettled(**EARLIER_SHAPE)
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        wanted = model(image)
        fold_norms(model)
        torch.testing.assert_close(model(image), wanted)
        torch.testing.assert_close(model.deployed()(image), wanted)


def test_an_order_ends_where_channels_mix() -> None:
    first, last = FactoredPointwise(3, 5, 2), nn.Conv2d(5, 2, 1)
    depthwise, plain = nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(2, 2, 1)
    untouched = plain.weight.clone()
    image = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        wanted = last(depthwise(first(image)))
        before = depthwise.weight.clone()
        put_in_order(Chain([first, depthwise], [[last, plain]]))
        assert not torch.equal(depthwise.weight, before)
        torch.testing.assert_close(last(depthwise(first(image))), wanted)
    assert torch.equal(plain.weight, untouched)


@pytest.mark.parametrize("change", [{"stage2_rank": 0}, {"stage2_rank": 40}, {"fusions": 2}])
def test_factors_of_another_shape_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="factors"):
        interpolate(FeatherFaceV2(**INTERPOLATIVE), FeatherFaceV2(**TWO_WAYS | change))


@torch.no_grad()
def test_a_run_begins_at_weights_in_factors_or_at_its_own(tmp_path: Path) -> None:
    factored = unsettled(**TWO_WAYS)
    path = tmp_path / "factors.safetensors"
    save_weights(factored, path, {"model": "FeatherFaceV2", "arguments": json.dumps(TWO_WAYS)})
    shape = TWO_WAYS | {"interpolative": True}

    def started(weights: Path) -> FeatherFaceV2:
        section = {"model": shape, "start": {"weights": weights}}
        return build_student(RunConfig.model_validate({"name": "x", **section})).eval()

    image = torch.rand(1, 3, 64, 64) * 255
    model = started(path)
    torch.testing.assert_close(model(image), factored(image), rtol=1e-3, atol=1e-3)
    again = tmp_path / "interpolative.safetensors"
    save_weights(model, again, {"model": "FeatherFaceV2", "arguments": json.dumps(shape)})
    for twin in (load_v2(again), started(again)):
        torch.testing.assert_close(twin(image), model(image))
