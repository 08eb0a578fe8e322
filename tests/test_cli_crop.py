"""``featherface crop``: names, index, sizes, and what goes wrong."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from conftest import PaintRed
from test_cli_detect import featherface_command

from featherface import FaceDetector
from featherface.images import read_image, write_image

EXAMPLE = Path(__file__).parents[1] / "featherface" / "examples" / "astronaut.jpg"


def test_example_photo(tmp_path: Path) -> None:
    result = featherface_command("crop", EXAMPLE, "--out", tmp_path, "--threads", 1)
    assert result.exit_code == 0, result.output
    crop = read_image(tmp_path / "astronaut_face0.png")
    assert crop.shape == (112, 112, 3)
    image = read_image(EXAMPLE)
    best = FaceDetector(threads=1)(image)[0]
    assert 170 < best.box[0] < 190  # the astronaut's, not the emblem's
    assert (crop == best.align(image)).all()


def test_names_and_index(tmp_path: Path, paint_red: PaintRed, red_weights: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "in" / "crops"
    write_image(photos / "one.png", paint_red(96, 64, (40, 24, 8), (8, 8, 8)))
    write_image(photos / "one.webp", paint_red(96, 64, (40, 24, 8)))
    write_image(photos / "deep" / "one.png", paint_red(96, 64, (40, 24, 8)))
    write_image(photos / "none.png", paint_red(96, 64))
    (photos / "text.jpg").write_text("no picture")
    command = (
        "crop", photos, "--recursive", "--out", out, "--size", 64, "--weights", red_weights,
        "--input-size", 0, "--threads", 1,
    )  # fmt: skip
    for _ in range(2):  # the crops of the first time are not looked at in the second
        result = featherface_command(*command)
        assert result.exit_code == 1
        assert "text.jpg: text, not a picture" in result.output
        names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
        assert names == [
            "deep/one_face0.png", "one_face0.png", "one_face1.png", "one_webp_face0.png",
        ]  # fmt: skip
    assert read_image(out / "one_face0.png").shape == (64, 64, 3)
    rows = list(csv.DictReader(io.StringIO((out / "faces.csv").read_text())))
    index = json.loads((out / "faces.json").read_text())
    assert index["size"] == 64
    assert [row["crop"] for row in rows] == [one["crop"] for one in index["crops"]]
    assert {row["crop"]: row["face"] for row in rows}["one_face1.png"] == "1"
    assert Path(rows[0]["photo"]).is_file()
    assert len(index["errors"]) == 1


def test_small_faces_are_left_out(tmp_path: Path, paint_red: PaintRed, red_weights: Path) -> None:
    write_image(tmp_path / "one.png", paint_red(96, 64, (40, 24, 8)))
    result = featherface_command(
        "crop", tmp_path / "one.png", "--out", tmp_path / "out", "--min-face", 40,
        "--weights", red_weights, "--input-size", 0, "--format", "jpg", "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["faces.csv", "faces.json"]


def test_nothing_to_crop(tmp_path: Path) -> None:
    result = featherface_command("crop", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "no such file" in result.output
    assert not (tmp_path / "out").exists()
