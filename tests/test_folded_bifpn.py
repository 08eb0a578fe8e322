"""Edge weights of the BiFPN folded into the convolutions around its sums: the same network."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import Tensor, nn

from featherface.export.graph_rewrites import name_sizes, trim_kernels
from featherface.export.onnx_file import export_onnx
from featherface.models.modules.bifpn import downsample
from featherface.models.modules.folded_bifpn import FoldedBiFPN, FoldedDownsample, fold_edges
from featherface.models.modules.light_bifpn import FusionNode, LightBiFPN
from featherface.models.pretrained_v2 import load_v2

CHANNELS = 8
EDGES = st.lists(st.floats(0.02, 2.0), min_size=9, max_size=9)


def neck(edges: list[list[float]], seed: int) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
    """Laterals, second laterals and BiFPN layers in evaluation mode, nothing in them neutral."""
    torch.manual_seed(seed)

    def lateral() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS))

    laterals = nn.ModuleList(lateral() for _ in range(3))
    second = nn.ModuleList(lateral() for _ in range(2))
    layers = nn.ModuleList(LightBiFPN(CHANNELS, weighted=True) for _ in edges)
    for layer, values in zip(layers, edges, strict=True):
        left = list(values)
        for node in layer.children():
            assert isinstance(node, FusionNode)
            assert node.edges is not None
            count = len(node.edges)
            node.edges.data = torch.tensor(left[:count])
            del left[:count]
    parts = (laterals, second, layers)
    for part in parts:
        part.eval()
        for module in part.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
                nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return parts


@torch.no_grad()
def made(parts: tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList], maps: list[Tensor]) -> list:
    laterals, second, layers = parts
    levels = [lateral(x) for lateral, x in zip(laterals, maps, strict=True)]
    again = [lateral(x) for lateral, x in zip(second, levels[1:], strict=True)]
    for layer in layers:
        levels, again = layer(levels, again), []
    return levels


@settings(deadline=None, max_examples=15)
@given(edges=st.lists(EDGES, min_size=1, max_size=3), seed=st.integers(0, 100))
def test_the_same_maps_whatever_the_edges_weigh(edges: list[list[float]], seed: int) -> None:
    parts = neck(edges, seed)
    maps = [torch.randn(2, CHANNELS, *size) for size in ((16, 24), (8, 12), (4, 6))]
    expected = made(parts, maps)
    laterals, second, layers = copy.deepcopy(parts)
    folded = fold_edges(laterals, second, layers)
    assert all(isinstance(layer, FoldedBiFPN) for layer in folded)
    for found, wanted in zip(made((laterals, second, folded), maps), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_an_edge_that_is_hardly_there_or_turns_its_map_round_is_left() -> None:
    for weight in (0.0, -0.3):
        laterals, second, layers = neck([[0.5] * 7 + [weight, 0.5]], seed=0)
        assert fold_edges(laterals, second, layers) is layers


def test_the_pooled_map_has_zeros_around() -> None:
    x = torch.randn(2, CHANNELS, 10, 6) - 1.5  # a last window may hold negative values alone
    with torch.no_grad():
        found = FoldedDownsample(CHANNELS, 0.7)(x)
    torch.testing.assert_close(found, 0.7 * downsample(x))
    assert (found[:, :, -1] == 0).any()


def test_the_file_has_no_weights_left_to_multiply_by(tmp_path: Path) -> None:
    graph = onnx.load(export_onnx(load_v2(), tmp_path / "v2.onnx")).graph
    kinds = [node.op_type for node in graph.node]
    # A swish has one product, with a factor two; each attention has two.
    assert kinds.count("Mul") <= 2 * 12 - 3 + 2 * 3
    assert "Pad" not in kinds
    kernels = [x for x in graph.initializer if len(x.dims) == 4]
    assert not any(tuple(x.dims[2:]) == (2, 2) for x in kernels)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"image": image})[0])


def convolution(kernel: np.ndarray, **attributes: object) -> onnx.ModelProto:
    """One convolution of ``image`` ``[batch, 2, height, width]``, then one of stride 2."""
    sides = list(kernel.shape[2:])
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"], kernel_shape=sides, **attributes),
        helper.make_node("Conv", ["map", "last"], ["out"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    last = np.random.default_rng(1).normal(size=(2, 2, 2, 2)).astype(np.float32)
    return helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("image", 1, ["batch", 2, "height", "width"])],
            [helper.make_tensor_value_info("out", 1, ["batch", 2, None, None])],
            [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(last, "last")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


@pytest.mark.parametrize(("pads", "trimmed"), [([1, 1, 1, 1], 1), ([0, 1, 1, 1], 0)])
def test_a_row_and_column_of_zeros_goes_where_the_padding_may(
    pads: list[int], trimmed: int
) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 2, 3, 3)).astype(np.float32)
    kernel[:, :, 0] = kernel[:, :, :, 0] = 0
    model = convolution(kernel, pads=pads, strides=[1, 1])
    image = rng.normal(size=(1, 2, 7, 9)).astype(np.float32)
    before = run(model, image)
    assert trim_kernels(model) == trimmed
    np.testing.assert_allclose(run(model, image), before, atol=1e-6)
    sides = {tuple(one.dims[2:]) for one in model.graph.initializer if one.name == "kernel"}
    assert sides == {(2, 2) if trimmed else (3, 3)}


def test_maps_of_one_size_are_named_alike() -> None:
    kernel = np.ones((2, 2, 3, 3), np.float32)
    model = convolution(kernel, pads=[1, 1, 1, 1])
    assert name_sizes(model) == 1
    (value,) = model.graph.value_info
    sides = [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]
    assert (value.name, sides) == ("map", ["batch", 2, "height/1", "width/1"])
    onnx.checker.check_model(model, full_check=True)
    smaller = convolution(kernel, pads=[0, 0, 0, 0])  # neither a half nor all of it
    assert name_sizes(smaller) == 0
    fixed = convolution(kernel, pads=[1, 1, 1, 1])
    fixed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    assert name_sizes(fixed) == 0
