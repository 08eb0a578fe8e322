"""Sizes of anchors that are as sure beside one another as another detector has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from featherface.anchors import SIZES, make_anchors
from featherface.cli import app
from featherface.data.example_data import make_example_data
from featherface.data.labelled_photo import LabelledPhoto
from featherface.errors import ConfigError, DataError
from featherface.evaluation.anchor_sizes import (
    LEAST,
    Sizes,
    fit_size_shifts,
    seen_by_both,
    sure_anchors,
)
from featherface.export.onnx_file import export_onnx
from featherface.models.pretrained_v2 import SHIPPED, load_v2
from featherface.models.weight_files import read_metadata


def said(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def seen_with(shifts: np.ndarray, slope: float, seed: int, counts: list[int]) -> Sizes:
    rng = np.random.default_rng(seed)
    sizes = np.repeat(np.arange(SIZES), counts)
    logits = rng.uniform(0, 6, len(sizes))
    return Sizes(said(logits), said(slope * (logits + shifts[sizes]) - 0.7), sizes)


@settings(deadline=None, max_examples=25)
@example(0, 0.7, [-0.6, 0.2, 0.5, 0.8, -0.8, 0.0])
@given(
    st.integers(0, 99),
    st.floats(0.3, 2.0),
    st.lists(st.floats(-2, 2), min_size=SIZES, max_size=SIZES),
)
def test_the_shifts_are_found_again(seed: int, slope: float, shifts: list[float]) -> None:
    found = fit_size_shifts(seen_with(np.array(shifts), slope, seed, [80] * SIZES))
    np.testing.assert_allclose(found, np.array(shifts) - np.mean(shifts), atol=0.02)


def test_a_size_of_few_anchors_stays_as_it_is() -> None:
    shifts = np.array([1.0, 0.0, -1.0, 0.0, 9.0, 9.0])
    found = fit_size_shifts(seen_with(shifts, 0.6, 0, [100, 100, 100, 100, 29, 0]))
    np.testing.assert_allclose(found, [1.0, 0.0, -1.0, 0.0, 0.0, 0.0], atol=0.02)


def test_one_size_alone_cannot_be_fitted() -> None:
    with pytest.raises(DataError, match="too few to tell one size from another"):
        fit_size_shifts(seen_with(np.zeros(SIZES), 1.0, 0, [100, 5, 0, 0, 0, 0]))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_anchors_know_their_size(height: int, width: int) -> None:
    anchors = make_anchors(height, width)
    scores = np.random.default_rng(0).random(len(anchors))
    seen = sure_anchors(scores, 1 - scores, height, width)
    sure = scores >= LEAST
    assert 16.0 * 2.0**seen.sizes == pytest.approx(anchors[sure, 2])
    assert seen.scores == pytest.approx(scores[sure])
    assert seen.others == pytest.approx(1 - scores[sure])


def test_other_anchors_are_refused() -> None:
    class Says:
        def __init__(self, anchors: int) -> None:
            self.anchors = anchors

        def prepare(self, image: np.ndarray) -> np.ndarray:
            return np.zeros((1, 3, 64, 64), np.float32)

        def run_network(self, blob: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return np.zeros((1, self.anchors)), np.zeros(1), np.zeros(1)

    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
    photo = LabelledPhoto("x", "crowd", np.zeros((64, 64, 3), np.uint8), *none)
    with pytest.raises(ConfigError, match="84 anchors where V2 has 168"):
        seen_by_both(Says(168), Says(84), [photo])


def test_the_command_takes_over_what_another_detector_says_of_a_size(tmp_path: Path) -> None:
    shards = make_example_data(tmp_path / "example", photos=24, measured=1) / "train"
    other, shifts = load_v2(), [-1.0, 0.4, 0.6, 0.0, 0.0, 0.0]
    other.heads.shift_sizes(shifts)
    like = export_onnx(other, tmp_path / "other.onnx")
    out, results = tmp_path / "calibrated.safetensors", tmp_path / "results"
    command = ["calibrate", "--weights", str(SHIPPED), "--data", str(shards), "--out", str(out)]
    command += ["--sizes-like", str(like), "--results", str(results), "--fraction", "0.9"]
    command += ["--cache", str(tmp_path / "cache"), "--least-score", "0.001"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Shifts by size of anchor: 16 pixels -" in done.output
    found = json.loads((results / "calibration.json").read_text())
    told = list(found["size_shifts"].values())
    fitted = [k for k in range(SIZES) if told[k]]
    wanted = np.array(shifts)[fitted]
    assert len(fitted) >= 2
    np.testing.assert_allclose(np.array(told)[fitted], wanted - wanted.mean(), atol=0.1)
    stored = [float(x) for x in read_metadata(out)["size_shifts"].split()]
    assert stored == pytest.approx(told, abs=1e-3)
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        logits, shipped = load_v2(out)(image)[0], load_v2()(image)[0]
    moved = (logits - found["shift"]) * found["temperature"] - shipped
    tiny, next_size = moved[0, 0 : 2 * 64 : 2], moved[0, 1 : 2 * 64 : 2]  # of stride 8
    torch.testing.assert_close(tiny, torch.full_like(tiny, told[0]), rtol=0, atol=2e-3)
    torch.testing.assert_close(next_size, torch.full_like(tiny, told[1]), rtol=0, atol=2e-3)
