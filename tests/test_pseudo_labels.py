"""``featherface pseudo-label``: the vote, shards that training reads, going on after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import PaintRed
from test_cli_detect import featherface_command

from featherface.data.labelling_run import LabellingRun, Storage, UnlabelledPhoto, keys_of
from featherface.data.pseudo_labels import View, look, read_detections, vote
from featherface.errors import ConfigError, DataError
from featherface.faces import Faces
from featherface.images import write_image

EXAMPLE = Path(__file__).parents[1] / "featherface" / "examples" / "astronaut.jpg"
POINTS = np.array([[1, 1], [3, 1], [2, 2], [1, 3], [3, 3]], np.float32)


def view(*faces: tuple[list[float], float], scale: float = 1.0) -> View:
    boxes = np.array([box for box, _ in faces], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in faces], np.float32)
    return View(boxes, scores, np.repeat(POINTS[None], len(faces), axis=0), scale)


def test_vote_weighs_boxes_and_averages_scores() -> None:
    voted = vote([view(([0, 0, 20, 20], 0.9)), view(([2, 0, 22, 20], 0.3)), view()], 0.1)
    assert voted.boxes[0] == pytest.approx([0.5, 0, 20.5, 20])
    assert voted.scores[0] == pytest.approx(0.4)
    assert voted.landmarks[0] == pytest.approx(POINTS)


def test_views_that_cannot_see_a_face_have_no_vote() -> None:
    small = view(([0, 0, 12, 12], 0.8), scale=1.0)
    assert vote([small, view(scale=0.5)], 0.1).scores[0] == pytest.approx(0.8)
    assert vote([small, view(scale=0.8)], 0.1).scores[0] == pytest.approx(0.4)


def test_faces_stay_apart_and_the_doubtful_get_no_landmarks() -> None:
    voted = vote(
        [view(([0, 0, 20, 20], 0.25), ([40, 0, 60, 20], 0.9), ([90, 0, 95, 5], 0.05))], 0.1
    )
    assert voted.scores == pytest.approx([0.9, 0.25])
    assert np.isfinite(voted.landmarks[0]).all()
    assert np.isnan(voted.landmarks[1]).all()
    assert len(vote([view(), view()], 0.1).scores) == 0


def test_a_view_counts_once() -> None:
    double = view(([0, 0, 20, 20], 0.9), ([1, 0, 21, 20], 0.8))
    assert vote([double, view(([0, 0, 20, 20], 0.5))], 0.1).scores == pytest.approx([0.7])


def test_looking_turns_everything_back() -> None:
    image = np.zeros((50, 100, 3), np.uint8)
    image[10:20, 60:80] = 255

    def detect(shown: np.ndarray) -> Faces:
        y, x = np.nonzero(shown[..., 0] > 127)
        x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
        points = [[x1, y1], [x2, y1], [x1, y1], [x1, y2], [x2, y2]]
        return Faces(np.float32([[x1, y1, x2, y2]]), np.float32([1]), np.float32([points]))

    views = list(look(detect, image, [0, 200, 100]))
    assert [one.scale for one in views] == [1, 1, 2, 2]
    for one in views:
        assert one.boxes[0] == pytest.approx([60, 10, 80, 20], abs=0.6)
        assert one.landmarks[0, 0] == pytest.approx([60, 10], abs=0.6)
        assert one.landmarks[0, 4] == pytest.approx([80, 20], abs=0.6)


def test_detections_of_others(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    face = {"box": [1, 2, 3, 4], "landmarks": POINTS.ravel().tolist()}
    file.write_text(
        json.dumps({"width": 50, "height": 100, "faces": [face, {"box": [5, 5, 4, 4]}]})
    )
    found = read_detections(file, 100, 200)
    assert found.boxes.tolist() == [[2, 4, 6, 8]]
    assert found.scores.tolist() == [1]
    assert found.landmarks[0] == pytest.approx(2 * POINTS)
    for content in ("", "[]", '{"faces": 3}', '{"faces": [{"box": [1]}]}'):
        file.write_text(content)
        with pytest.raises(DataError, match="malformed"):
            read_detections(file, 100, 200)
    with pytest.raises(DataError, match=r"two\.json: No such file"):
        read_detections(tmp_path / "two.json", 100, 200)


def test_keys_are_unique_and_plain() -> None:
    names = ["a/b.jpg", "a_b.jpg", "a/b.png", "ä ö.x.jpg", f"{'x' * 300}.jpg"]
    keys = [UnlabelledPhoto(Path(name), Path(name)).key for name in names]
    assert len(set(keys)) == len(names)
    assert all(key.isascii() and not set("./ ") & set(key) and len(key) < 80 for key in keys)


@pytest.fixture
def photos(tmp_path: Path, paint_red: PaintRed) -> Path:
    """Six photos in two folders, one face each, and two files that are none."""
    folder = tmp_path / "photos"
    for number in range(6):
        name = folder / ("deep" if number % 2 else ".") / f"{number}.png"
        write_image(name, paint_red(96, 64, (8 * number, 24, 8)))
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.jpg").write_bytes(EXAMPLE.read_bytes()[:5000])
    return folder


def test_end_to_end(photos: Path, red_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        "pseudo-label", photos, "--out", out, "--teacher", red_weights, "--long-side", 0,
        "--store", 48, "--threads", 1,
    )  # fmt: skip
    result = featherface_command(*command)
    assert result.exit_code == 1
    assert "6 photos, 6 faces" in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2
    assert json.loads((out / "report.json").read_text())["photos"] == 6
    page = (out / "preview.html").read_text()
    assert page.count("<figure>") == 6
    assert "text.jpg" in page
    assert not (out / "pseudo.partial").exists()

    shards = pytest.importorskip("featherface.data.shards")
    labelled = list(shards.read_shards(out))
    assert len(labelled) == 6
    for photo in labelled:
        assert photo.image.shape == (32, 48, 3)
        assert photo.source == "photos"
        x1, y1, x2, y2 = photo.boxes[0] * 2
        number = int(photo.key.split("-")[0].removeprefix("deep_"))
        centre = 8 * number + 4
        assert (x1 + x2) / 2 == pytest.approx(centre, abs=5)
        assert (y1 + y2) / 2 == pytest.approx(28, abs=5)
        assert np.isfinite(photo.landmarks[0]).all()

    again = featherface_command(*command)
    assert "6 of 8 photos are in shards already" in again.output
    assert len(list(out.glob("*.tar"))) == 1
    other = featherface_command(*command, "--no-mirror")
    assert other.exit_code == 1
    assert "other settings" in other.output


def test_labels_of_another_detector(photos: Path, tmp_path: Path) -> None:
    labels, out = tmp_path / "labels", tmp_path / "out"
    for number in range(5):  # the sixth has none
        folder = labels / ("deep" if number % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{number}.json" if number else f"{number}.png.json"
        face = {"box": [10, 10, 30, 30], "score": 0.9}
        (folder / name).write_text(json.dumps({"faces": [face]}))
    result = featherface_command("pseudo-label", photos, "--out", out, "--labels", labels)
    assert result.exit_code == 1
    assert "5 photos, 5 faces, 0 doubtful" in result.output
    assert "5.json: No such file" in result.output


def test_example_photo_with_our_own_weights(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / EXAMPLE.name).write_bytes(EXAMPLE.read_bytes())
    result = featherface_command(
        "pseudo-label", tmp_path / "in", "--out", tmp_path / "out", "--long-side", 320,
        "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    row = json.loads((tmp_path / "out" / "labels.jsonl").read_text().splitlines()[1])
    assert row["boxes"][0] == pytest.approx([177, 53, 266, 175], abs=20)


def test_nothing_to_label(tmp_path: Path) -> None:
    result = featherface_command("pseudo-label", tmp_path / "no", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    result = featherface_command("pseudo-label", tmp_path, "--out", tmp_path / "out")
    assert "no pictures" in result.output


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from featherface.data.labelling_run import LabellingRun, Storage, UnlabelledPhoto
from featherface.data.pseudo_labels import View

def label(image, path):
    with open(sys.argv[3], "a") as asked:
        print(path.name, file=asked)
    time.sleep(float(sys.argv[4]))
    return View(np.float32([[1, 1, 9, 9]]), np.float32([0.9]), np.full((1, 5, 2), np.nan, "f4"))

folder = Path(sys.argv[1])
photos = [UnlabelledPhoto(path, path.relative_to(folder)) for path in sorted(folder.glob("*.png"))]
for _ in LabellingRun(Path(sys.argv[2]), photos, label, Storage(megabytes=0.01), {}):
    pass
"""


def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 60, 3), dtype=np.uint8)
    for number, image in enumerate(noise):
        write_image(tmp_path / "in" / f"{number:02d}.png", image)
    out, asked = tmp_path / "out", tmp_path / "asked"
    command = [sys.executable, "-c", SLOW, str(tmp_path / "in"), str(out), str(asked)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([*command, "0.3"], env=environment)
    deadline = time.monotonic() + 120
    while not (asked.exists() and len(asked.read_text().splitlines()) >= 6):
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    with (out / "labels.jsonl").open("a") as journal:
        journal.write('{"key": "torn')  # as a kill in the middle of a line leaves it
    subprocess.run([*command, "0"], check=True, env=environment)
    keys = [key for shard in sorted(out.glob("*.tar")) for key in keys_of(shard)]
    assert sorted(key[:2] for key in keys) == [f"{number:02d}" for number in range(12)]
    assert len(list(out.glob("*.tar"))) > 2
    assert not (out / "pseudo.partial").exists()
    assert len(asked.read_text().splitlines()) in (12, 13)  # the photo at hand is asked for twice


def test_new_photos_and_other_settings(tmp_path: Path, paint_red: PaintRed) -> None:
    asked = []

    def label(image: np.ndarray, path: Path) -> View:
        asked.append(path.name)
        return view(([1, 1, 9, 9], 0.9))

    def photo(name: str) -> UnlabelledPhoto:
        write_image(tmp_path / name, paint_red(20, 20))
        return UnlabelledPhoto(tmp_path / name, Path(name))

    out = tmp_path / "out"
    first, second = photo("b.png"), photo("a.png")
    assert list(LabellingRun(out, [first], label, Storage(), {"a": 1})) == [(first, None)]
    assert len(list(LabellingRun(out, [second, first], label, Storage(), {"a": 1}))) == 2
    assert asked == ["b.png", "a.png"]
    with pytest.raises(ConfigError, match="other settings"):
        LabellingRun(out, [first], label, Storage(), {"a": 2})
    (out / "labels.jsonl").unlink()
    with pytest.raises(ConfigError, match="without"):
        LabellingRun(out, [first], label, Storage(), {"a": 1})
