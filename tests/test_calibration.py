"""Temperature and shift: found again, the order stays, and they land in the weights."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from featherface.anchors import make_anchors
from featherface.cli import app
from featherface.data.example_data import make_example_data
from featherface.errors import DataError
from featherface.evaluation.calibration import (
    Correction,
    fit_correction,
    fit_each_stride,
    levels_of,
    reliability,
)
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.pretrained_v2 import SHIPPED, load_v2
from featherface.models.weight_files import read_metadata, save_weights


@pytest.fixture(scope="module")
def photo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_example_data(tmp_path_factory.mktemp("example"), photos=12, measured=1) / "train"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 3), shift=st.floats(-1.5, 1.5))
def test_the_correction_is_found_again(seed: int, temperature: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, 20000)
    hits = rng.random(20000) < 1 / (1 + np.exp(-logits))
    scores = 1 / (1 + np.exp(-(logits - shift) * temperature))
    found = fit_correction(scores, hits, least_score=0)
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    assert found.shift == pytest.approx(shift, abs=0.15)
    before, after = reliability(scores, hits), reliability(found(scores), hits)
    assert after.error < 0.02
    assert after.error <= before.error + 0.01
    assert after.count.sum() == before.count.sum() == 20000


def test_only_scores_that_people_look_at_are_fitted() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20000)
    scores = 1 / (1 + np.exp(-logits))
    hits = rng.random(20000) < scores
    crowd = np.full(200000, 0.01)  # none of them a face
    found = fit_correction(np.r_[scores, crowd], np.r_[hits, np.zeros(len(crowd), bool)], 0.05)
    assert found.temperature == pytest.approx(1, abs=0.1)
    assert found.shift == pytest.approx(0, abs=0.1)


@settings(max_examples=15, deadline=None)
@example(seed=0, slope=0.625, kept=0.01)  # whole steps of Newton's method go to and fro
@given(seed=st.integers(0, 1000), slope=st.floats(0.5, 2), kept=st.floats(0.01, 0.3))
def test_a_score_can_be_kept(seed: int, slope: float, kept: float) -> None:
    rng = np.random.default_rng(seed)
    fixed = np.log(kept / (1 - kept))
    logits = rng.normal(0, 2, 20000)
    hits = rng.random(20000) < 1 / (1 + np.exp(-logits))
    scores = 1 / (1 + np.exp(-((logits - fixed) / slope + fixed)))
    found = fit_correction(scores, hits, least_score=0, kept_score=kept)
    assert found(np.array([kept]))[0] == pytest.approx(kept, rel=1e-6)
    assert 1 / found.temperature == pytest.approx(slope, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.floats(0.001, 0.999), min_size=2, max_size=30),
    first=st.tuples(st.floats(0.3, 4), st.floats(-3, 3)),
    second=st.tuples(st.floats(0.3, 4), st.floats(-3, 3)),
)
def test_order_stays_and_two_corrections_are_one(
    scores: list[float], first: tuple[float, float], second: tuple[float, float]
) -> None:
    given_scores = np.sort(np.array(scores))
    one, two = Correction(*first), Correction(*second)
    changed = one(given_scores)
    assert (np.diff(changed) >= 0).all()
    inside = (changed > 1e-6) & (changed < 1 - 1e-6)
    np.testing.assert_allclose(
        two(changed)[inside], two.after(one)(given_scores)[inside], rtol=1e-6, atol=1e-9
    )


def test_faces_and_the_rest_apart_give_a_finite_correction() -> None:
    found = fit_correction(
        np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]), 0.05
    )
    assert np.isfinite([found.temperature, found.shift]).all()
    assert found.temperature == pytest.approx(0.2)


@pytest.mark.parametrize("hits", [[], [True, True], [False, False]])
def test_one_kind_of_detections_cannot_be_fitted(hits: list[bool]) -> None:
    with pytest.raises(DataError, match="both faces and false detections"):
        fit_correction(np.full(len(hits), 0.4), np.array(hits, bool), 0.05)


def test_corrected_logits() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV2().eval()
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        before = model(image)
        model.heads.correct_logits(2.0, -0.5)
        after = model(image)
    torch.testing.assert_close(after[0], before[0] / 2 - 0.5)
    torch.testing.assert_close(after[1], before[1])
    torch.testing.assert_close(after[2], before[2])


def test_logits_of_one_stride() -> None:
    torch.manual_seed(0)
    model = FeatherFaceV2().eval()
    image = torch.rand(1, 3, 64, 96) * 255
    at_stride_16 = slice(2 * 8 * 12, 2 * (8 * 12 + 4 * 6))
    with torch.no_grad():
        before = model(image)[0]
        model.heads.correct_logits(2.0, -0.5, level=1)
        after = model(image)[0]
    wanted = before.clone()
    wanted[:, at_stride_16] = before[:, at_stride_16] / 2 - 0.5
    torch.testing.assert_close(after, wanted)


def test_each_stride_by_itself() -> None:
    rng = np.random.default_rng(0)
    logits, levels = rng.normal(0, 2, 60000), rng.integers(0, 3, 60000)
    hits = rng.random(60000) < 1 / (1 + np.exp(-logits))
    temperatures, shifts = np.array([0.7, 1.0, 1.6]), np.array([0.5, 0.0, -0.8])
    said = (logits - shifts[levels]) * temperatures[levels]
    found = fit_each_stride(1 / (1 + np.exp(-said)), hits, levels, least_score=0)
    np.testing.assert_allclose([c.temperature for c in found], temperatures, rtol=0.1)
    np.testing.assert_allclose([c.shift for c in found], shifts, atol=0.15)
    one_kind = hits | (levels == 2)
    fitted = fit_each_stride(1 / (1 + np.exp(-said)), one_kind, levels, least_score=0)
    assert fitted == [*found[:2], Correction(1.0, 0.0)]
    with pytest.raises(DataError, match="No stride has both"):
        fit_each_stride(1 / (1 + np.exp(-said)), np.ones_like(hits), levels, least_score=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_which_stride_said_a_score(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = 32 * rows, 32 * columns
    raw = rng.permutation(len(make_anchors(height, width))).astype(np.float32) / 1e6
    chosen = rng.integers(0, len(raw), 20)
    cells = make_anchors(height, width)[chosen, 2]  # 16 and 32, 64 and 128, 256 and 512 pixels
    wanted = (np.log2(cells).astype(int) - 4) // 2
    np.testing.assert_array_equal(levels_of(raw[chosen].astype(float), raw, height, width), wanted)


def test_the_command(photo_shards: Path, tmp_path: Path) -> None:
    out, results = tmp_path / "calibrated.safetensors", tmp_path / "results"
    command = ["calibrate", "--weights", str(SHIPPED), "--data", str(photo_shards)]
    command += ["--out", str(out), "--results", str(results), "--cache", str(tmp_path / "cache")]
    command += ["--fraction", "0.6", "--least-score", "0.001"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads((results / "calibration.json").read_text())
    shipped_with, stored = read_metadata(SHIPPED), read_metadata(out)
    earlier = Correction(
        float(shipped_with.get("temperature", 1)), float(shipped_with.get("shift", 0))
    )
    both = Correction(found["temperature"], found["shift"]).after(earlier)
    assert float(stored["temperature"]) == pytest.approx(both.temperature, rel=1e-3)
    assert float(stored["shift"]) == pytest.approx(both.shift, abs=1e-3)
    assert cv2.imread(str(results / "calibration.png")) is not None
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        logits, shipped = load_v2(out)(image)[0], load_v2()(image)[0]
    back = (logits - found["shift"]) * found["temperature"]
    torch.testing.assert_close(back, shipped, rtol=1e-3, atol=1e-3)
    session = ort.InferenceSession(str(out.with_suffix(".onnx")))
    scores = session.run(["scores"], {"image": image.numpy()})[0]
    np.testing.assert_allclose(scores, torch.sigmoid(logits).numpy(), atol=1e-4)


def test_the_command_by_stride(photo_shards: Path, tmp_path: Path) -> None:
    out, results = tmp_path / "calibrated.safetensors", tmp_path / "results"
    command = ["calibrate", "--weights", str(SHIPPED), "--data", str(photo_shards), "--by-stride"]
    command += ["--out", str(out), "--results", str(results), "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, [*command, "--fraction", "0.6", "--least-score", "0.001"])
    assert done.exit_code == 0, done.output
    found = json.loads((results / "calibration.json").read_text())
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        logits, shipped = load_v2(out)(image)[0], load_v2()(image)[0]
    at_stride_8 = 2 * 8 * 8
    assert found["stride 8"]["temperature"] != 1
    for at, stride in ((slice(at_stride_8), "stride 8"), (slice(-2 * 2 * 2, None), "stride 32")):
        back = (logits[:, at] - found[stride]["shift"]) * found[stride]["temperature"]
        torch.testing.assert_close(back, shipped[:, at], rtol=1e-3, atol=1e-3)
    stored = read_metadata(out)
    assert len(stored["temperature"].split()) == len(stored["shift"].split()) == 3


def test_of_several_weights_their_mean_is_calibrated(photo_shards: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "mean.safetensors"
    model = load_v2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.002)
    save_weights(model, other, read_metadata(SHIPPED))
    command = ["calibrate", "--weights", str(SHIPPED), "--weights", str(other)]
    command += ["--data", str(photo_shards), "--out", str(out)]
    command += ["--cache", str(tmp_path / "cache"), "--fraction", "0.6", "--least-score", "0.001"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    shipped, mean = load_v2(), load_v2(out)
    torch.testing.assert_close(mean.laterals[0][0].weight, 1.001 * shipped.laterals[0][0].weight)
    assert read_metadata(out)["mean_of"] == "featherface_v2 other"


def test_a_wrong_name_is_one_line(tmp_path: Path) -> None:
    command = ["calibrate", "--weights", str(SHIPPED), "--data", str(tmp_path), "--out", "x.onnx"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "ends with .safetensors" in done.stderr
    assert not Path("x.onnx").exists()
