"""Parts that add up, twins that are counted right, maps that are compared fairly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from torch import nn  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from featherface.analysis.map_plots import linear_similarity, spatial_gates  # noqa: E402
from featherface.analysis.parts import parameters_by_part, parameters_by_stage, parts_of  # noqa: E402
from featherface.analysis.twins import compare_twins, multiply_adds  # noqa: E402
from featherface.cli import app  # noqa: E402
from featherface.models.baseline import BaselineV1  # noqa: E402
from featherface.models.featherface_v1 import FeatherFaceV1  # noqa: E402
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)


@pytest.mark.parametrize("model", [FeatherFaceV1(), FeatherFaceV2()], ids=["v1", "v2"])
def test_parts_add_up_to_the_model(model: FeatherFaceV1 | FeatherFaceV2) -> None:
    total = parameter_count(model)
    assert sum(part.parameters for part in parts_of(model)) == total
    assert sum(parameters_by_stage(model).values()) == total


def test_shared_parameters_count_once() -> None:
    shared = nn.Linear(3, 3)
    counts = parameters_by_part(nn.ModuleDict({"first": shared, "second": nn.Sequential(shared)}))
    assert counts == {"first": 12, "second": 0}


def test_multiply_adds_of_a_convolution() -> None:
    convolution = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    assert multiply_adds(convolution, torch.zeros(1, 4, 10, 12)) == 4 * 8 * 9 * 10 * 12


def test_twins_count_what_the_models_hold() -> None:
    v1, v2 = BaselineV1(), FeatherFaceV2()
    twins = {twin.name: twin for twin in compare_twins(v1, v2, IMAGE, side=64)}
    first, second = parameters_by_part(v1), parameters_by_part(v2)
    assert twins["context"].parameters == (first["context"] + first["shuffle"], second["context"])
    assert twins["heads"].parameters == (first["heads"], second["heads"])
    fused = second["laterals"] + second["second_laterals"] + second["fusions"]
    assert twins["laterals and fusion"].parameters == (first["fusions"], fused)
    assert all(work > 0 for twin in twins.values() for work in twin.multiply_adds)


def test_similarity_is_one_for_the_same_places_whatever_the_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 16, 16)
    turned = torch.linalg.qr(torch.randn(8, 8))[0]
    other = 3 * torch.einsum("oc,bchw->bohw", turned, x)
    assert linear_similarity(x, other) == pytest.approx(1, abs=1e-6)
    assert linear_similarity(x, torch.randn(1, 8, 16, 16)) < 0.3


@pytest.mark.parametrize("model", [BaselineV1(), FeatherFaceV2()], ids=["v1", "v2"])
def test_spatial_gates_have_the_size_of_their_maps(model: BaselineV1 | FeatherFaceV2) -> None:
    gates = spatial_gates(model, IMAGE)
    assert [gate.shape for gate in gates] == [(12, 16), (6, 8), (3, 4)]
    assert all((gate >= 0).all() and (gate <= 1).all() for gate in gates)


def test_baseline_is_v1_behind_v2s_door() -> None:
    torch.manual_seed(0)
    v1 = FeatherFaceV1().eval()
    baseline = BaselineV1().eval()
    baseline.load_state_dict(v1.state_dict())
    image = torch.rand(1, 3, 64, 64) * 255
    means = torch.tensor([104.0, 117.0, 123.0])[None, :, None, None]
    with torch.no_grad():
        expected = v1(image.flip(1) - means)
        found = baseline(image)
    torch.testing.assert_close(found.logits.sigmoid(), expected.logits.softmax(-1)[..., 1])
    torch.testing.assert_close(found.box_deltas, expected.box_deltas)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_diagram_command(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "pictures" / f"architecture.{suffix}"
    result = CliRunner().invoke(app, ["diagram", "--out", str(out)])
    assert result.exit_code == 0
    assert out.stat().st_size > 10_000
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_diagram_refuses_other_kinds(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["diagram", "--out", str(tmp_path / "architecture.txt")])
    assert result.exit_code == 1
    assert "ends with .png, .svg or .pdf" in result.output
