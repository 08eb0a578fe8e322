"""``featherface video`` end to end: video, JSON Lines, tracks, sound, and files that break off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import PaintRed
from test_cli_detect import featherface_command
from video_files import read_video, write_video

pytest.importorskip("av")
pytest.importorskip("supervision")

from featherface.errors import VideoError
from featherface.faces import Faces
from featherface.tracking import FaceTracker
from featherface.video_source import VideoFile

EXAMPLE = Path(__file__).parents[1] / "featherface" / "examples" / "astronaut.jpg"


@pytest.fixture
def clip(tmp_path: Path, paint_red: PaintRed) -> Path:
    """12 frames with sound: a face that moves and is hidden once, and one that comes later."""
    frames = []
    for number in range(12):
        squares = [] if number == 5 else [(8 + 8 * number, 24, 8)]
        squares += [(136, 40, 8)] if number >= 6 else []
        frames.append(paint_red(160, 64, *squares))
    return write_video(tmp_path / "clip.mp4", frames, sound_rate=44100)


def test_video_and_lines(clip: Path, red_weights: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "out.mp4", tmp_path / "deep" / "faces.jsonl"
    result = featherface_command(
        "video", clip, "--out", out, "--json", lines, "--weights", red_weights, "--size", 0,
        "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "12 frames, 17 faces, 2 tracks" in result.output
    images, times, about = read_video(out)
    assert times == pytest.approx([number / 10 for number in range(12)])
    assert about["codecs"] == {"video": "h264", "audio": "aac"}
    assert (np.abs(images[0].astype(int) - (0, 214, 143)).max(axis=2) < 60).any()  # a drawn box
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(12))
    assert [row["time"] for row in rows] == pytest.approx(times)
    assert rows[5]["faces"] == []
    first = {face["track"] for row in rows for face in row["faces"] if face["box"][0] < 110}
    second = {face["track"] for row in rows for face in row["faces"] if face["box"][0] > 110}
    assert first == {1}
    assert 2 in second
    assert first.isdisjoint(second)
    assert not list(tmp_path.rglob(".*"))


def test_webm_without_tracks_and_a_limit(clip: Path, red_weights: Path, tmp_path: Path) -> None:
    result = featherface_command(
        "video", clip, "--out", tmp_path / "out.webm", "--no-track", "--seconds", 0.5,
        "--weights", red_weights, "--size", 0, "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    images, _, about = read_video(tmp_path / "out.webm")
    assert len(images) == 5
    assert about["codecs"] == {"video": "vp9", "audio": "opus"}


def test_example_photo_as_a_video(tmp_path: Path) -> None:
    from featherface.images import read_image

    image = read_image(EXAMPLE)
    clip = write_video(tmp_path / "in.mkv", [np.roll(image, 3 * step, axis=1) for step in range(4)])
    lines = tmp_path / "faces.jsonl"
    result = featherface_command("video", clip, "--json", lines, "--threads", 1, "--size", 320)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    for row in rows:
        face = min(row["faces"], key=lambda one: abs(one["box"][0] - 175 - 3 * row["frame"]))
        assert face["track"] == rows[0]["faces"][0]["track"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cut_short(tmp_path: Path, red_weights: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 96, 3), dtype=np.uint8)
    clip = write_video(tmp_path / f"in{suffix}", list(noise))
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    out, lines = tmp_path / "out.mp4", tmp_path / "faces.jsonl"
    result = featherface_command(
        "video", clip, "--out", out, "--json", lines, "--weights", red_weights, "--threads", 1
    )
    assert result.exit_code == 1
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "what was read is kept" in errors[0]
    assert "of 3." in errors[0]
    images, _, _ = read_video(out)
    assert 5 < len(images) < 30
    assert len(lines.read_text().splitlines()) == len(images)


def test_bad_inputs(tmp_path: Path, clip: Path, red_weights: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    whole = write_video(tmp_path / "late.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    (tmp_path / "index.mp4").write_bytes(whole.read_bytes()[:200])
    for name, words in {
        "text.mp4": "not a video",
        "empty.mp4": "empty",
        "index.mp4": "cut short",
        "nowhere.mp4": "no such file",
        ".": "a folder",
        str(EXAMPLE): "a picture, not a video",
        "77": "camera 77",
    }.items():
        source = name if name == "77" else tmp_path / name
        result = featherface_command(
            "video", source, "--out", tmp_path / "o.mp4", "--weights", red_weights
        )
        assert result.exit_code == 1, name
        assert result.output.count("\n") == 1, result.output
        assert words in result.output
        assert not (tmp_path / "o.mp4").exists()
    for options in ([], ["--out", clip], ["--out", tmp_path / "o.txt"]):
        result = featherface_command("video", clip, *options, "--weights", red_weights)
        assert result.exit_code == 1
        assert result.output.count("\n") == 1, result.output


def test_large_frames_are_refused(clip: Path) -> None:
    with pytest.raises(VideoError, match="160x64 pixels, more than the limit"):
        VideoFile(clip, max_pixels=1000)


def test_rotated_videos_stand_upright(tmp_path: Path) -> None:
    import av

    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48] = 220
    clip = write_video(tmp_path / "in.mp4", [image] * 3, rotation=90)
    with VideoFile(clip) as video:
        frame = next(video.frames())
    assert frame.image.shape == (96, 64, 3)
    assert frame.image[60:].mean() > 200  # turned counter-clockwise: the left is below
    assert frame.image[:36].mean() < 20


def test_the_tracker_believes_faint_faces_that_it_follows() -> None:
    box = np.array([[10, 10, 50, 50], [80, 10, 120, 50]], np.float32)
    points = np.zeros((2, 5, 2), np.float32)
    tracker = FaceTracker(rate=10)
    tracks = []
    for score in (0.9, 0.9, 0.3, 0.9):
        tracked = tracker(Faces(box, np.array([score, 0.3], np.float32), points))
        assert len(tracked.faces) == 1
        tracks.append(int(tracked.tracks[0]))
    assert tracks == [1, 1, 1, 1]
    assert len(tracker(Faces.none()).faces) == 0


def test_faces_become_supervision_detections() -> None:
    import supervision

    faces = Faces(
        np.array([[10, 10, 50, 50]], np.float32),
        np.array([0.9], np.float32),
        np.ones((1, 5, 2), np.float32),
    )
    detections = faces.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[10, 10, 50, 50]]
    assert detections.data["landmarks"].shape == (1, 5, 2)
    assert len(Faces.none().to_supervision()) == 0
    drawn = supervision.BoxAnnotator().annotate(np.zeros((64, 64, 3), np.uint8), detections)
    assert drawn.any()
