"""The command line: what it writes, what it says, and how it fails."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PaintRed
from PIL import Image
from typer.testing import CliRunner, Result

import featherface
from featherface.cli import app
from featherface.detector import PACKAGED_WEIGHTS
from featherface.images import read_image, write_image


def featherface_command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def photos(tmp_path: Path, paint_red: PaintRed) -> Path:
    """Two folders that share a file name, one with a subfolder."""
    write_image(tmp_path / "a" / "one.png", paint_red(96, 64, (40, 24, 8)))
    write_image(tmp_path / "a" / "two.png", paint_red(96, 64))
    write_image(tmp_path / "b" / "one.png", paint_red(64, 96, (8, 8, 8), (40, 64, 8)))
    write_image(tmp_path / "a" / "deep" / "one.png", paint_red(64, 64, (8, 8, 8)))
    return tmp_path


def test_help_and_version() -> None:
    result = featherface_command("--help")
    assert result.exit_code == 0
    for job in ("detect", "demo", "data", "evaluate", "train", "distill"):
        assert job in result.output
    version = featherface_command("--version")
    assert version.output.strip() == f"featherface {featherface.__version__}"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, featherface.cli\n"
        "heavy = {'torch', 'cv2', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_at_once(photos: Path, red_weights: Path, tmp_path: Path) -> None:
    out, faces_json, faces_csv = tmp_path / "out", tmp_path / "r" / "f.json", tmp_path / "f.csv"
    result = featherface_command(
        "detect", photos / "a", photos / "b" / "one.png", "--weights", red_weights, "--size", 0,
        "--out", out, "--json", faces_json, "--csv", faces_csv, "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 faces in 3 pictures" in result.output
    assert "two.png: no faces, 96x64" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["b_one.png", "one.png", "two.png"]
    drawn = read_image(out / "one.png")
    assert (drawn != read_image(photos / "a" / "one.png")).any()

    images = json.loads(faces_json.read_text())["images"]
    assert [len(image["faces"]) for image in images] == [1, 0, 2]
    assert images[0]["faces"][0]["box"] == [36, 20, 52, 36]
    assert (images[2]["width"], images[2]["height"]) == (64, 96)
    rows = list(csv.DictReader(io.StringIO(faces_csv.read_text())))
    assert len(rows) == 3
    assert rows[0]["nose_x"] == "44.0"


def test_recursive_and_glob(photos: Path, red_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("--weights", red_weights, "--size", 0, "--threads", 1)
    result = featherface_command("detect", photos / "a", "-r", "--out", out, *common)
    assert result.exit_code == 0
    assert (out / "deep" / "one.png").is_file()
    globbed = featherface_command("detect", photos / "[ab]" / "one.png", *common)
    assert "3 faces in 2 pictures" in globbed.output
    twice = featherface_command("detect", photos / "a", photos / "a" / "one.png", *common)
    assert "1 faces in 2 pictures" in twice.output


def test_annotated_copies_never_replace_the_pictures(photos: Path, red_weights: Path) -> None:
    before = (photos / "a" / "one.png").read_bytes()
    result = featherface_command(
        "detect", photos / "a", "--out", photos / "a", "--weights", red_weights, "--threads", 1
    )
    assert result.exit_code == 0
    assert (photos / "a" / "one.png").read_bytes() == before
    assert (photos / "a" / "a_one.png").is_file()


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.jpg"
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    if kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(buffer.getvalue()[:-300])
    elif kind == "text":
        path.write_text("no picture\n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        Image.new("1", (20_000, 20_000)).save(path.with_suffix(".png"))
        return path.with_suffix(".png")
    return path


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "absent", "folder", "huge"])
def test_one_bad_input_is_one_line(tmp_path: Path, red_weights: Path, kind: str) -> None:
    path = bad_file(tmp_path, kind)
    result = featherface_command(
        "detect", path, "--weights", red_weights, "--out", tmp_path / "out", "--threads", 1
    )
    assert result.exit_code == 1
    lines = result.output.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert path.name in lines[0]
    assert not (tmp_path / "out").exists()


def test_the_rest_is_done(photos: Path, red_weights: Path, tmp_path: Path) -> None:
    bad = [bad_file(tmp_path, kind) for kind in ("empty", "truncated", "text", "absent")]
    empty_folder = bad_file(tmp_path, "folder")
    result = featherface_command(
        "detect", *bad, photos / "a" / "one.png", empty_folder, "nothing*.jpg",
        "--weights", red_weights, "--json", tmp_path / "f.json", "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 6
    content = json.loads((tmp_path / "f.json").read_text())
    assert len(content["images"]) == 1
    assert len(content["errors"]) == 6


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 20)])
@pytest.mark.parametrize("size", [0, 640])
def test_extreme_shapes(
    tmp_path: Path, red_weights: Path, width: int, height: int, size: int
) -> None:
    Image.new("RGB", (width, height)).save(tmp_path / "x.png")
    result = featherface_command(
        "detect", tmp_path / "x.png", "--size", size, "--weights", red_weights,
        "--out", tmp_path / "out", "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"no faces, {width}x{height}" in result.output


def test_corrupt_weights_are_one_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x07 torn")
    for weights in (tmp_path / "torn.onnx", tmp_path / "absent.onnx"):
        completed = subprocess.run(
            [sys.executable, "-m", "featherface", "detect", photos / "a",
             "--weights", weights, "--json", tmp_path / "f.json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert completed.returncode == 1
        assert completed.stdout == ""
        assert len(completed.stderr.strip().splitlines()) == 1
        assert weights.name in completed.stderr
        assert completed.stderr.startswith("Error: ")
        assert not (tmp_path / "f.json").exists()


def test_unwritable_result(photos: Path, red_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should go")
    result = featherface_command(
        "detect", photos / "a" / "one.png", "--weights", red_weights, "--threads", 1,
        "--json", tmp_path / "blocked" / "f.json",
    )  # fmt: skip
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(not PACKAGED_WEIGHTS.is_file(), reason="the weights are not there yet")
def test_demo_finds_the_face(tmp_path: Path) -> None:
    result = featherface_command("demo", "--out", tmp_path / "demo.jpg")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("1 face in astronaut.jpg")
    assert read_image(tmp_path / "demo.jpg").shape == (512, 512, 3)
