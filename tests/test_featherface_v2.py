"""V2: its budget, its parts, and the ONNX file against PyTorch."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featherface.anchors import make_anchors
from featherface.errors import WeightsError
from featherface.export.onnx_file import Deployed, export_onnx
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.modules.cbam_lite import CBAMLite
from featherface.models.modules.channel_permutation import ShuffledPointwise, shuffle_order
from featherface.models.pretrained_v2 import EARLIER_SHAPE, load_v2
from featherface.models.weight_files import load_mean_weights, load_weights, save_weights

LIGHT = {"stage3_channels": 80, "weighted": True, "light_ssh": 2}
FACTORED = LIGHT | {
    "stage3_channels": 256,
    "stage2_rank": 48,
    "stage3_rank": 40,
    "lateral_rank": 32,
    "context_rank": 24,
}
DETAILED = LIGHT | {"stage3_channels": 24, "detail_channels": 48}
SHARED = DETAILED | {"stage2_rank": 48, "shared_stem": True}
TWO_WAYS = LIGHT | {
    "stage2_rank": 36,
    "entry_rank": 28,
    "stage3_rank": 36,
    "context_rank": 24,
    "detail_branch": True,
}
INTERPOLATIVE = TWO_WAYS | {
    "stage2_rank": 46,
    "entry_rank": 40,
    "stage3_rank": 44,
    "context_rank": 32,
    "interpolative": True,
}
TWO_STRIDES = INTERPOLATIVE | {
    "stage2_rank": 44,
    "entry_rank": 38,
    "stage3_rank": 42,
    "coarse_context_rank": 24,
    "branch_strides": 2,
    "folded_norms": True,
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(EARLIER_SHAPE, id="grouped"),
        pytest.param(LIGHT, id="light"),
        pytest.param(FACTORED, id="factored"),
        pytest.param(DETAILED, id="detailed"),
        pytest.param(SHARED, id="shared"),
        pytest.param(TWO_WAYS, id="two_ways"),
        pytest.param(INTERPOLATIVE, id="interpolative"),
        pytest.param(TWO_STRIDES, id="two_strides"),
    ],
)
def arguments(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Those of a V2."""
    shape: dict[str, Any] = request.param
    return shape


@pytest.fixture(scope="module")
def model(arguments: dict[str, Any]) -> FeatherFaceV2:
    """A model whose statistics and weights are all away from their initial values."""
    return unsettled(**arguments)


@torch.no_grad()
def unsettled(**shape: Any) -> FeatherFaceV2:
    """Batch normalisations and attention away from where they begin; in evaluation mode."""
    torch.manual_seed(0)
    model = FeatherFaceV2(**shape)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.2)
    convolution, norm = list(model.backbone.stage1[0])[:2]
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean.fill_(20.0)
        norm.running_var.fill_(60.0**2)
    else:
        convolution.weight /= 60.0
    return model.eval()


def test_has_at_most_250_000_parameters_and_one_gmac(model: FeatherFaceV2) -> None:
    assert parameter_count(model) <= 250_000
    for graph in (model, model.deployed()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            graph(torch.zeros(1, 3, 640, 640))
        assert counter.get_total_flops() / 2 <= 1.0e9


def test_outputs_have_one_row_an_anchor(model: FeatherFaceV2) -> None:
    with torch.no_grad():
        outputs, maps = model.forward_with_features(torch.rand(2, 3, 96, 160) * 255)
    anchors = len(make_anchors(96, 160))
    assert outputs.logits.shape == (2, anchors)
    assert outputs.box_deltas.shape == (2, anchors, 4)
    assert outputs.landmark_deltas.shape == (2, anchors, 10)
    for levels in maps:
        assert [x.shape[2:] for x in levels] == [(12, 20), (6, 10), (3, 5)]


def test_the_detail_stem_adds_to_stride_8_alone() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV2(**DETAILED).eval()
    without = FeatherFaceV2(**LIGHT | {"stage3_channels": 24}).eval()
    without.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(1, 3, 96, 128) * 255
    finest = 12 * 16 * 2
    with torch.no_grad():
        outputs, maps = model.forward_with_features(image)
        plain, plain_maps = without.forward_with_features(image)
        for one, other in zip(outputs, plain, strict=True):
            assert not torch.equal(one[:, :finest], other[:, :finest])
            assert torch.equal(one[:, finest:], other[:, finest:])
        for one, other in zip(maps.neck, plain_maps.neck, strict=True):
            assert torch.equal(one, other)  # what V1's maps are compared with
        norm = model.detail[-1][-1]  # type: ignore[index]
        norm.weight.zero_()
        norm.bias.zero_()
        torch.testing.assert_close(model(image), plain)


@pytest.mark.parametrize("strides", [1, 2])
def test_a_detail_branch_speaks_where_it_is_asked_and_the_other_way_everywhere(
    strides: int,
) -> None:
    model = unsettled(**TWO_WAYS, branch_strides=strides)
    image = torch.rand(1, 3, 96, 128) * 255
    counts = [12 * 16 * 2, 6 * 8 * 2, 3 * 4 * 2]

    def changed_by(part: nn.Module) -> list[bool]:
        """Whether the logits of each stride change with what ``part`` makes."""
        changed = copy.deepcopy(model)
        hook = changed.get_submodule(name_of[part]).register_forward_hook(lambda *x: 2 * x[2])
        with torch.no_grad():
            moved = (changed(image).logits - model(image).logits).abs()[0]
        hook.remove()
        return [bool(x.any()) for x in moved.split(counts)]

    name_of = {module: name for name, module in model.named_modules()}
    assert model.branch is not None
    spoken = [True, strides == 2, False]
    assert changed_by(model.branch.tower) == [True, False, False]
    assert changed_by(model.branch.detail) == [True, False, False]
    coarsest = model.branch.around or model.branch.stages[2]
    assert changed_by(coarsest) == spoken
    assert changed_by(model.branch.stem) == spoken
    if model.branch.coarse_tower is not None:
        assert changed_by(model.branch.coarse_tower) == [False, True, False]
    for level in range(3):
        assert changed_by(model.context[level]) == [level == n for n in range(3)]
    assert changed_by(model.laterals[0]) == [True, True, True]
    assert changed_by(model.backbone.stage2) == [True, True, True]


def test_activations_without_a_slope_are_deployed_as_relus() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) * 255
    for slope in (0.0, 0.1):
        model = FeatherFaceV2(**DETAILED, negative_slope=slope).eval()
        deployed = model.deployed()
        leaky = [x for x in deployed.modules() if isinstance(x, nn.LeakyReLU)]
        assert bool(leaky) == bool(slope)
        with torch.no_grad():
            torch.testing.assert_close(deployed(image), model(image))


def test_an_anchor_follows_its_cell(model: FeatherFaceV2) -> None:
    """The order of the outputs is that of the anchors: a change in one corner moves that corner."""
    # An untrained net passes little on: in single precision rounding would be as large.
    exact = copy.deepcopy(model).double()
    image = torch.full((1, 3, 512, 512), 100.0, dtype=torch.float64)
    changed = image.clone()
    changed[..., :8, 504:] = 255.0
    with torch.no_grad():
        # Attention sees the whole map, so the largest change marks the place.
        moved = (exact(changed).logits - exact(image).logits).abs()[0]
    centre = make_anchors(512, 512)[int(moved[: 64 * 64 * 2].argmax()), :2]
    assert centre[0] > 256
    assert centre[1] < 256


def test_attention_has_a_quarter_of_v1s_parameters_at_most() -> None:
    v1_at_64_channels = 64 * 4 + 4 + 4 * 64 + 64 + 2 * 49 + 2
    assert parameter_count(CBAMLite(64)) <= 0.25 * v1_at_64_channels


def test_shuffle_interleaves_the_groups() -> None:
    assert shuffle_order(8, 2).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_folded_shuffle_computes_the_same(groups: int) -> None:
    torch.manual_seed(groups)
    layer = ShuffledPointwise(16, 8, groups).eval()
    layer.norm.running_mean.normal_()
    x = torch.randn(2, 16, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(layer.folded()(x), layer(x), atol=1e-5, rtol=1e-5)


def test_the_deployed_model_computes_the_same(model: FeatherFaceV2) -> None:
    image = torch.rand(1, 3, 128, 96) * 255
    with torch.no_grad():
        for ours, theirs in zip(model.deployed()(image), model(image), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def onnx_file(model: FeatherFaceV2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "v2.onnx")


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 320, 256), (2, 96, 160), (3, 64, 64)])
def test_onnx_agrees_with_pytorch(
    model: FeatherFaceV2, onnx_file: Path, shape: tuple[int, int, int]
) -> None:
    batch, height, width = shape
    image = np.random.default_rng(0).uniform(0, 255, (batch, 3, height, width)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    found = session.run(["scores", "box_deltas", "landmark_deltas"], {"image": image})
    with torch.no_grad():
        expected = Deployed(model)(torch.from_numpy(image))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4, rtol=1e-4)


def test_onnx_is_opset_17_with_no_foreign_operator(onnx_file: Path) -> None:
    graph = onnx.load(onnx_file)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
    operators = {node.op_type for node in graph.graph.node}
    assert not operators & {"DeformConv", "GridSample", "Loop", "If", "GatherND"}


def test_weights_round_trip(
    model: FeatherFaceV2, arguments: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(model, path, {"model": "FeatherFaceV2", "arguments": json.dumps(arguments)})
    again = load_v2(path)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_the_mean_of_weight_files_loads(tmp_path: Path) -> None:
    models = [FeatherFaceV2() for _ in range(2)]
    paths = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for model, path in zip(models, paths, strict=True):
        save_weights(model, path, {})
    mean = FeatherFaceV2()
    load_mean_weights(mean, paths)
    states = [model.state_dict() for model in models]
    for name, tensor in mean.state_dict().items():
        expected = (states[0][name].double() + states[1][name].double()) / 2
        torch.testing.assert_close(tensor, expected.to(tensor.dtype))
    with pytest.raises(WeightsError, match="at least one"):
        load_mean_weights(mean, [])


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_weights(FeatherFaceV2(stage3_channels=128), path, {})
    with pytest.raises(WeightsError, match="other weights") as caught:
        load_weights(FeatherFaceV2(), path)
    assert len(str(caught.value)) < len(str(path)) + 200
    path.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="safetensors"):
        load_v2(path)


def test_a_file_from_before_an_argument_is_built_as_it_was(tmp_path: Path) -> None:
    """The grouped V2's files say nothing of the fusion and the context that came after it."""
    path = tmp_path / "grouped.safetensors"
    grouped = FeatherFaceV2(**EARLIER_SHAPE)
    save_weights(grouped, path, {"model": "FeatherFaceV2", "arguments": '{"channels": 64}'})
    assert parameter_count(load_v2(path)) == parameter_count(grouped) == 248_124
