"""Temperature: it is found again, keeps order and decision, and lands in the weights."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from featherface.cli import app
from featherface.data.example_data import make_example_data
from featherface.errors import DataError
from featherface.evaluation.calibration import at_temperature, fit_temperature, reliability
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.pretrained_v2 import SHIPPED, load_v2
from featherface.models.weight_files import read_metadata


@pytest.fixture(scope="module")
def photo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_example_data(tmp_path_factory.mktemp("example"), photos=12, measured=1) / "train"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 3))
def test_the_temperature_is_found_again(seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, 20000)
    hits = rng.random(20000) < 1 / (1 + np.exp(-logits))
    scores = 1 / (1 + np.exp(-logits * temperature))  # as sure as the temperature is high
    assert fit_temperature(scores, hits) == pytest.approx(temperature, rel=0.08)
    before, after = (
        reliability(scores, hits),
        reliability(at_temperature(scores, temperature), hits),
    )
    assert after.error < 0.02
    assert after.error <= before.error + 0.01
    assert after.count.sum() == before.count.sum() == 20000


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.floats(0.001, 0.999), min_size=2, max_size=30),
    temperature=st.floats(0.3, 4),
)
def test_order_and_decision_stay(scores: list[float], temperature: float) -> None:
    given_scores = np.sort(np.array(scores))
    changed = at_temperature(given_scores, temperature)
    assert (np.diff(changed) >= 0).all()
    sure = np.abs(given_scores - 0.5) > 1e-9
    np.testing.assert_array_equal((changed > 0.5)[sure], (given_scores > 0.5)[sure])


@pytest.mark.parametrize("hits", [[], [True, True], [False, False]])
def test_one_kind_of_detections_cannot_be_fitted(hits: list[bool]) -> None:
    with pytest.raises(DataError, match="both faces and false detections"):
        fit_temperature(np.full(len(hits), 0.4), np.array(hits, bool))


def test_divided_logits() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV2().eval()
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        before = model(image)
        model.heads.divide_logits(2.0)
        after = model(image)
    torch.testing.assert_close(after[0], before[0] / 2)
    torch.testing.assert_close(after[1], before[1])
    torch.testing.assert_close(after[2], before[2])


def test_the_command(photo_shards: Path, tmp_path: Path) -> None:
    out, results = tmp_path / "calibrated.safetensors", tmp_path / "results"
    command = ["calibrate", "--weights", str(SHIPPED), "--data", str(photo_shards)]
    command += ["--out", str(out), "--results", str(results), "--cache", str(tmp_path / "cache")]
    command += ["--fraction", "0.6"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads((results / "calibration.json").read_text())
    old = float(read_metadata(SHIPPED).get("temperature", "1"))
    stored = float(read_metadata(out)["temperature"])
    assert stored == pytest.approx(old * found["temperature"], rel=1e-3)
    assert cv2.imread(str(results / "calibration.png")) is not None
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        logits, shipped = load_v2(out)(image)[0], load_v2()(image)[0]
    torch.testing.assert_close(logits * found["temperature"], shipped, rtol=1e-3, atol=1e-3)
    session = ort.InferenceSession(str(out.with_suffix(".onnx")))
    scores = session.run(["scores"], {"image": image.numpy()})[0]
    np.testing.assert_allclose(scores, torch.sigmoid(logits).numpy(), atol=1e-4)


def test_a_wrong_name_is_one_line(tmp_path: Path) -> None:
    command = ["calibrate", "--weights", str(SHIPPED), "--data", str(tmp_path), "--out", "x.onnx"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "ends with .safetensors" in done.stderr
    assert not Path("x.onnx").exists()
