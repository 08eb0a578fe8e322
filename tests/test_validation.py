"""AP on held-out photos: doubtful labels, sizes, limits, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from featherface.cli import app
from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.pack import pack
from featherface.data.shards import PhotoStore
from featherface.errors import ConfigError, DataError
from featherface.evaluation.validation import held_out_photos, score_validation, validate
from featherface.faces import Faces

RED = (255, 0, 0)


def squares(*rows: tuple[float, ...]) -> NDArray[np.float64]:
    """``[N, 5]`` of (x, y, side, score)."""
    boxes = [(x, y, x + side, y + side, *score) for x, y, side, *score in rows]
    return np.array(boxes, np.float64).reshape(len(boxes), -1)


def photo(number: int, doubtful: bool = False) -> LabelledPhoto:
    """Grey with one red square of 16 pixels, where the stand-in network sees a face."""
    image = np.full((96, 128, 3), 60, np.uint8)
    image[40:56, 40:56] = RED
    return LabelledPhoto(
        f"photo-{number}",
        "crowd",
        image,
        np.array([[36, 36, 52, 52]], np.float32),
        np.array([0.3 if doubtful else 0.9], np.float32),
        np.full((1, 5, 2), np.nan, np.float32),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation") / "train"
    pack([photo(n) for n in range(20)], folder)
    return folder


def test_a_perfect_detector_scores_one_in_every_size() -> None:
    boxes = squares((0, 0, 10), (50, 0, 20), (100, 0, 50), (0, 100, 200))
    found = np.concatenate([boxes, np.full((4, 1), 0.9)], axis=1)
    result = score_validation([found], [boxes], [np.zeros(4, bool)])
    assert result.ap == 1
    assert [(one.ap, one.faces) for one in result.by_size.values()] == [(1, 1)] * 4


def test_doubtful_faces_are_neither_missed_nor_false() -> None:
    boxes, doubtful = squares((0, 0, 20), (100, 0, 20)), np.array([False, True])
    both = squares((100, 0, 20, 0.9), (0, 0, 20, 0.5))
    one = squares((0, 0, 20, 0.5))
    for found in (both, one):
        result = score_validation([found], [boxes], [doubtful])
        assert result.faces == 1
        assert result.ap == 1
        assert result.by_size["16-32"].ap == 1


def test_a_false_alarm_counts_in_its_own_size_only() -> None:
    boxes = squares((0, 0, 10), (100, 0, 50))
    found = squares((300, 0, 40, 0.9), (0, 0, 10, 0.8), (100, 0, 50, 0.7))
    result = score_validation([found], [boxes], [np.zeros(2, bool)])
    assert result.by_size["under 16"].ap == 1
    assert result.by_size["32-96"].ap == pytest.approx(0.5)
    assert result.ap == pytest.approx(2 / 3)


def test_sizes_without_faces_and_photos_without_detections() -> None:
    none = np.empty((0, 5))
    result = score_validation([none, none], [squares((0, 0, 10)), np.empty((0, 4))], [
        np.zeros(1, bool), np.zeros(0, bool)
    ])  # fmt: skip
    assert result.ap == 0
    assert result.by_size["under 16"].ap == 0
    assert math.isnan(result.by_size["over 96"].ap)
    empty = score_validation([none], [np.empty((0, 4))], [np.zeros(0, bool)])
    assert math.isnan(empty.ap)


def test_validate_sees_only_the_held_out_photos(shards: Path, tmp_path: Path) -> None:
    store = PhotoStore(shards, tmp_path, progress=False)
    seen = []

    def detect(image: NDArray[np.uint8]) -> Faces:
        seen.append(image.shape)
        return Faces(
            np.array([[36, 36, 52, 52]], np.float32),
            np.ones(1, np.float32),
            np.zeros((1, 5, 2), np.float32),
        )

    result = validate(detect, store, fraction=0.5)
    _, held_out = store.split(0.5, 0)
    assert result.photos == len(held_out) == len(seen)
    assert set(seen) == {(96, 128, 3)}
    assert result.ap == 1


def test_limit_spreads_over_the_split(shards: Path, tmp_path: Path) -> None:
    store = PhotoStore(shards, tmp_path, progress=False)
    everything = held_out_photos(store, 0.5)
    few = held_out_photos(store, 0.5, 3)
    assert len(few) == 3
    assert (few[0], few[-1]) == (everything[0], everything[-1])
    assert held_out_photos(store, 0.5, 1000) == everything
    with pytest.raises(ConfigError, match="at least one"):
        held_out_photos(store, 0.5, 0)
    with pytest.raises(DataError, match="no photo is held out"):
        held_out_photos(store, 0.0)


def test_the_command_writes_its_figures(shards: Path, red_weights: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["evaluate", "validation", "--weights", str(red_weights), "--data", str(shards),
         "--cache", str(tmp_path), "--fraction", "0.5", "--limit", "4",
         "--json", str(tmp_path / "validation.json")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "validation.json").read_text())
    assert content["photos"] == 4
    assert content["faces"] == 4
    assert content["by_size"]["under 16"]["ap"] is None
    assert 0 <= content["ap"] <= 1


def test_the_command_takes_safetensors(shards: Path, tmp_path: Path) -> None:
    from featherface.models.featherface_v2 import FeatherFaceV2
    from featherface.models.weight_files import save_weights

    model = FeatherFaceV2(channels=16, stage3_channels=32)
    arguments = '{"channels": 16, "stage3_channels": 32, "weighted": true, "light_ssh": 2}'
    save_weights(model, tmp_path / "small.safetensors", {"arguments": arguments})
    result = CliRunner().invoke(
        app,
        ["evaluate", "validation", "--weights", str(tmp_path / "small.safetensors"),
         "--data", str(shards), "--cache", str(tmp_path), "--fraction", "0.5", "--limit", "2"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Held-out photos: 2" in result.output


def test_missing_shards_are_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["evaluate", "validation", "--data", str(tmp_path / "none"), "--cache", str(tmp_path)]
    )
    assert result.exit_code == 1
    assert "no such folder" in result.output
