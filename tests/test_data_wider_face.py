"""WIDER FACE: both label files, good and malformed, and the command line on them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from featherface.cli.data import register
from featherface.data.shards import PhotoStore
from featherface.data.wider_face import WiderFacePhotos, read_labels
from featherface.errors import DataError

POINTS = "20 21 0.0 30 22 0.0 25 26 0.0 21 30 0.0 29 31 0.0"
ABSENT = " ".join(["-1"] * 15)
RETINAFACE = f"""# 0--Parade/a.jpg
10 12 30 40 {POINTS} 0.8
50 50 10 12 {ABSENT} 0.3
1 1 0 5 {ABSENT} 0.3
# 1--Handshaking/b.jpg
# 1--Handshaking/c.jpg
3 4 20 20
"""
OFFICIAL = """0--Parade/a.jpg
3
10 12 30 40 0 0 0 0 0 0
50 50 10 12 2 0 0 1 2 0
9 9 0 0 0 0 0 0 0 0
1--Handshaking/b.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/c.jpg
1
3 4 20 20 0 0 0 0 0 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("0--Parade/a.jpg", "1--Handshaking/b.jpg", "1--Handshaking/c.jpg"):
        path = tmp_path / "train" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((120, 160, 3), (250, 20, 20), np.uint8))
    return tmp_path / "train"


def test_retinaface_labels(folder: Path) -> None:
    (folder / "label.txt").write_text(RETINAFACE)
    photos = WiderFacePhotos(folder)
    assert len(photos) == 3
    first, second, third = photos
    assert first.image.shape == (120, 160, 3)
    assert first.image[5, 5, 2] > 200 > first.image[5, 5, 0]
    np.testing.assert_array_equal(first.boxes, [[10, 12, 40, 52], [50, 50, 60, 62]])
    np.testing.assert_array_equal(first.scores, [1, 1])
    np.testing.assert_array_equal(
        first.landmarks[0], [[20, 21], [30, 22], [25, 26], [21, 30], [29, 31]]
    )
    assert np.isnan(first.landmarks[1]).all()
    assert second.boxes.shape == (0, 4)
    assert second.landmarks.shape == (0, 5, 2)
    np.testing.assert_array_equal(third.boxes, [[3, 4, 23, 24]])


def test_official_labels(folder: Path) -> None:
    split = folder.parent / "wider_face_split"
    split.mkdir()
    (split / "wider_face_train_bbx_gt.txt").write_text(OFFICIAL)
    photos = WiderFacePhotos(folder)
    assert [len(photo.boxes) for photo in photos] == [2, 0, 1]
    np.testing.assert_allclose(photos[0].scores, [1, 0.2])
    assert np.isnan(photos[0].landmarks).all()


def test_photo_without_faces_and_without_its_line_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "gt.txt"
    path.write_text("a/b.jpg\n0\na/c.jpg\n1\n3 4 20 20 0 0 0 0 0 0\n")
    assert [len(photo.boxes) for photo in read_labels(path)] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# a.jpg\n1 2 3\n", r":2: 4 or 19 or 20 finite numbers"),
        ("# a.jpg\n1 2 three 4\n", r":2: not numbers"),
        ("# a.jpg\n1 2 nan 4\n", r":2: 4 or 19 or 20 finite"),
        ("#\n1 2 3 4\n", r":1: no path"),
        ("a/b.jpg\nmany\n", r":2: a number of faces"),
        ("a/b.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n", r"ends within the 2 faces of a/b\.jpg"),
        ("a/b.jpg\n1\n1 2 3 4\n", r":3: 10 finite numbers"),
        ("a/b.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n5 6 7 8 0 0 0 0 0 0\n", r":4: the path of a photo"),
        ("a/b.jpg\n", r":1: the path of a photo"),
    ],
)
def test_malformed_labels_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "label.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_labels(path)
    assert "label.txt" in str(caught.value)


def test_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images/"):
        WiderFacePhotos(tmp_path)
    with pytest.raises(DataError, match="no label file"):
        WiderFacePhotos(folder)
    with pytest.raises(DataError, match="cannot be read"):
        WiderFacePhotos(folder, tmp_path / "nowhere.txt")
    (folder / "label.txt").write_text("# gone.jpg\n1 2 3 4\n# empty.jpg\n")
    (folder / "images" / "empty.jpg").write_bytes(b"")
    photos = WiderFacePhotos(folder)
    for index, name in enumerate(("gone", "empty")):
        with pytest.raises(DataError, match=name):
            photos[index]


def test_commands(folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    (folder / "label.txt").write_text(RETINAFACE)
    runner = CliRunner()
    shards, cache = tmp_path / "shards", ["--cache", str(tmp_path / "cache")]
    packed = runner.invoke(app, ["data", "pack", "--data", str(folder), "--out", str(shards)])
    assert packed.exit_code == 0, packed.output
    assert len(PhotoStore(shards, tmp_path / "cache", progress=False)) == 3
    for extra in (["--data", str(shards), *cache], ["--data", str(folder), "--layout", "wider"]):
        out = tmp_path / "sheet.jpg"
        seen = runner.invoke(
            app, ["data", "view", "--out", str(out), "--count", "3", "--size", "64", *extra]
        )
        assert seen.exit_code == 0, seen.output
        assert cv2.imread(str(out)) is not None
        counted = runner.invoke(app, ["data", "inspect", *extra])
        assert counted.exit_code == 0, counted.output
        assert "wider" in counted.output
    recipe = tmp_path / "run.yaml"
    recipe.write_text("data: {crop: {mosaic: 0, rotate: 1, degrees: 45, hide: 1, dim: 1}}")
    view = ["data", "view", "--data", str(shards), *cache, "--size", "64", "--count", "3"]
    sheets = []
    for name, extra in (("plain.png", []), ("spoiled.png", ["--config", str(recipe)])):
        assert runner.invoke(app, [*view, "--out", str(tmp_path / name), *extra]).exit_code == 0
        sheets.append(cv2.imread(str(tmp_path / name)))
    assert (sheets[0] != sheets[1]).any()
    bad = runner.invoke(
        app, ["data", "view", "--out", str(tmp_path / "sheet.xyz"), "--data", str(shards), *cache]
    )
    assert isinstance(bad.exception, DataError)
