"""``featherface data false-alarms``: what is taken for a face, cut out with its surroundings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import PaintRed
from numpy.typing import NDArray
from typer.testing import CliRunner

from featherface.cli import app
from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.pack import pack
from featherface.data.shards import PhotoStore, split_by_key
from featherface.evaluation.false_alarms import SIDE, SOURCE, FalseAlarm, search
from featherface.evaluation.views import FoundFaces
from featherface.faces import Detect

FACE = (100.0, 40.0, 160.0, 100.0)
COLOUR = (10, 200, 90)


def photo(key: str = "photo", boxes: tuple[tuple[float, ...], ...] = (FACE,)) -> LabelledPhoto:
    """Grey with a patch of another colour, and faces that only the labels know."""
    image = np.full((700, 900, 3), 60, np.uint8)
    image[400:480, 600:680] = COLOUR
    landmarks = np.full((len(boxes), 5, 2), np.nan, np.float32)
    landmarks[:, :] = [[110, 60]]
    scores = np.ones(len(boxes), np.float32)
    return LabelledPhoto(key, "made", image, np.array(boxes, np.float32), scores, landmarks)


def finds(*shares: tuple[float, ...], score: float = 0.9) -> Detect:
    """A detector that finds the same parts of every image; ``shares`` of 900x700 pixels."""

    def detect(image: NDArray[np.uint8]) -> FoundFaces:
        height, width = image.shape[:2]
        scale = np.array([width / 900, height / 700] * 2)
        return FoundFaces(np.array(shares) * scale, np.full(len(shares), score), None)

    return detect


PATCH = (600.0, 400.0, 680.0, 480.0)


def alarms_of(detect: Detect, *judges: Detect) -> list[list[FalseAlarm]]:
    """Of ten photos, whose keys give them different views."""
    return [search(photo(f"photo {n}"), detect, judges, seed=0) for n in range(10)]


def test_only_what_no_label_covers_is_a_false_alarm() -> None:
    for found in alarms_of(finds(FACE, PATCH)):
        (alarm,) = found
        assert alarm.crop.image.shape == (SIDE, SIDE, 3)
        assert alarm.crop.source == SOURCE
        x1, y1, x2, y2 = alarm.box.round().astype(int)
        inside = alarm.crop.image[max(y1, 0) + 8 : y2 - 8, max(x1, 0) + 8 : x2 - 8].reshape(-1, 3)
        assert np.abs(np.median(inside, axis=0) - COLOUR).max() <= 3


def test_views_differ_and_a_seed_repeats_them() -> None:
    first, second = alarms_of(finds(PATCH)), alarms_of(finds(PATCH))
    sizes = {round(float(found[0].box[2] - found[0].box[0])) for found in first}
    assert len(sizes) >= 3
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0].crop.image, other[0].crop.image)


@pytest.mark.parametrize(
    "detect",
    [finds((115, 60, 135, 80)), finds(PATCH, score=0.3), finds(FACE)],
    ids=["a nose", "a low score", "a face"],
)
def test_none_of_these_is_one(detect: Detect) -> None:
    assert not any(alarms_of(detect))


def test_a_judge_that_sees_a_face_there_is_believed() -> None:
    assert not any(alarms_of(finds(PATCH), finds(PATCH, score=0.2)))
    assert all(alarms_of(finds(PATCH), finds(PATCH, score=0.1), finds(FACE)))


def test_labels_move_with_the_crop_and_parts_are_doubtful() -> None:
    near = (560.0, 400.0, 600.0, 440.0)
    wide = (0.0, 0.0, 590.0, 690.0)
    checked = 0
    for n in range(40):
        for alarm in search(photo(f"{n}", (near, wide)), finds(PATCH), [], seed=1):
            scale = (alarm.box[2] - alarm.box[0]) / 80
            for box, score in zip(alarm.crop.boxes, alarm.crop.scores, strict=True):
                if (box[3] - box[1]) < 60 * scale and score == 1:
                    checked += 1
                    np.testing.assert_allclose(box[0], alarm.box[0] - 40 * scale, atol=1)
                    np.testing.assert_allclose(box[1], alarm.box[1], atol=1)
                elif (box[3] - box[1]) > 60 * scale and scale > 1:
                    assert score < 0.5
            assert alarm.crop.boxes.size == 0 or alarm.crop.boxes.max() <= SIDE
    assert checked > 5


def test_a_crop_is_on_its_photos_side_of_the_split() -> None:
    keys = np.array([f"{n}{mark}" for n in range(200) for mark in ("", "#0", "#1")])
    training, held_out = split_by_key(keys, 0.2, 0)
    assert len(held_out) % 3 == 0
    sides = [{key.partition("#")[0] for key in keys[side]} for side in (training, held_out)]
    assert not sides[0] & sides[1]


@pytest.fixture
def shards(tmp_path: Path, paint_red: PaintRed) -> Path:
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
    images = (paint_red(640, 480, (320, 160, 64)) for _ in range(6))
    pack((LabelledPhoto(f"p{n}", "made", x, *empty) for n, x in enumerate(images)), tmp_path / "in")
    return tmp_path / "in"


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "false-alarms", *map(str, words)])
    return result.exit_code, result.output


def test_command(tmp_path: Path, shards: Path, red_weights: Path) -> None:
    common = ("--data", shards, "--cache", tmp_path / "cache", "--validation-fraction", 0)
    code, text = run(*common, "--out", tmp_path / "out", "--weights", red_weights)
    assert code == 0, text
    assert "false alarms on 6 photos" in text
    assert (tmp_path / "out" / "worst.jpg").stat().st_size > 1000
    store = PhotoStore([shards, tmp_path / "out"], tmp_path / "cache")
    keys = {str(key).partition("#")[0] for key in store.keys}
    assert len(keys) == 6  # crops go by their photos' names, so a split keeps them together
    training, held_out = (set(store.keys[side]) for side in store.split(0.5))
    sides = [{key.partition("#")[0] for key in side} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    mined = [store[n] for n in range(len(store)) if store.sources[n] == SOURCE]
    assert len(mined) >= 6
    assert all(one.image[..., 0].max() > 150 for one in mined)

    code, text = run(*common, "--out", tmp_path / "out", "--weights", red_weights)
    assert code != 0
    assert "holds shards already" in text
    judged = ("--weights", red_weights, "--judge", red_weights)
    code, text = run(*common, "--out", tmp_path / "none", *judged)
    assert code == 0
    assert "no false alarm" in text
    assert not (tmp_path / "none").exists()
