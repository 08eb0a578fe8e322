"""``featherface blur`` end to end: photos and videos, metadata, layout, and what goes wrong."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import PaintRed
from PIL import Image, ImageCms
from test_cli_detect import featherface_command
from video_files import read_video, write_video

from featherface.images import read_image, write_image
from featherface.photo_files import encode_photo, read_tags

EXAMPLE = Path(__file__).parents[1] / "featherface" / "examples" / "astronaut.jpg"


@pytest.fixture
def photos(tmp_path: Path, paint_red: PaintRed) -> Path:
    """A folder with a subfolder; each photo has one face."""
    folder = tmp_path / "in"
    write_image(folder / "one.png", paint_red(96, 64, (40, 24, 8)))
    write_image(folder / "deep" / "one.png", paint_red(64, 64, (8, 8, 8)))
    write_image(folder / "deep" / "two.gif", paint_red(64, 64, (8, 8, 8)))
    return folder


def exif_with_thumbnail(orientation: int) -> bytes:
    """An EXIF block by hand: maker, orientation, maker's note, GPS, and a thumbnail."""
    thumbnail = encode_photo(np.full((12, 16, 3), 200, np.uint8), ".jpg")

    def directory(entries: list[tuple[int, int, int, bytes]], following: int) -> bytes:
        rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
        return struct.pack("<H", len(entries)) + rows + struct.pack("<I", following)

    def number(value: int) -> bytes:
        return struct.pack("<I", value)

    first = [
        (0x010F, 2, 4, b"Acm\0"),
        (0x0112, 3, 1, number(orientation)),
        (0x8769, 4, 1, number(100)),
        (0x8825, 4, 1, number(150)),
    ]
    blocks = {
        8: directory(first, 200),
        100: directory([(0x927C, 7, 4, b"NOTE"), (0x9208, 3, 1, number(4))], 0),
        150: directory([(0x0001, 2, 2, b"N\0\0\0")], 0),
        200: directory([(0x0201, 4, 1, number(300)), (0x0202, 4, 1, number(len(thumbnail)))], 0),
        300: thumbnail,
    }
    block = bytearray(b"II*\0" + number(8)).ljust(300, b"\0")
    for place, content in blocks.items():
        block[place : place + len(content)] = content
    return b"Exif\0\0" + bytes(block)


def test_example_photo(tmp_path: Path) -> None:
    result = featherface_command("blur", EXAMPLE, "--out", tmp_path, "--threads", 1)
    assert result.exit_code == 0, result.output
    before, after = read_image(EXAMPLE), read_image(tmp_path / EXAMPLE.name)
    assert after.shape == before.shape
    face = slice(70, 160), slice(180, 260)
    detail = [np.abs(np.diff(image[face].astype(int), axis=1)).mean() for image in (before, after)]
    assert detail[1] < 0.5 * detail[0]


def test_layout_is_kept(photos: Path, red_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = featherface_command(
        "blur", photos, "--recursive", "--out", out, "--style", "box", "--padding", 0,
        "--weights", red_weights, "--size", 0, "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 faces hidden in 3 files" in result.output
    results = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert results == ["deep/one.png", "deep/two.png", "one.png"]
    hidden = read_image(out / "one.png")
    assert (hidden[20:36, 36:52] == 0).all()
    assert (hidden == 60).all(axis=2).sum() == 96 * 64 - 16 * 16


def test_results_are_not_overwritten_unless_asked(
    photos: Path, red_weights: Path, tmp_path: Path
) -> None:
    command = ("blur", photos, "--weights", red_weights, "--size", 0, "--threads", 1)
    into = ("--out", photos / "hidden", "--recursive")
    assert featherface_command(*command, *into).exit_code == 0
    written = {path: path.read_bytes() for path in photos.rglob("*.*")}
    again = featherface_command(*command, *into)
    assert again.exit_code == 1
    assert again.output.count("exists") == 3
    skipped = featherface_command(*command, *into, "--existing", "skip")
    assert skipped.exit_code == 0
    assert "3 were there already" in skipped.output
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == written
    assert featherface_command(*command, *into, "--existing", "replace").exit_code == 0
    assert "the sources" in featherface_command(*command, "--out", photos).output
    assert featherface_command(*command).exit_code == 1


def test_in_place(photos: Path, red_weights: Path) -> None:
    before = read_image(photos / "one.png")
    result = featherface_command(
        "blur", photos / "one.png", "--in-place", "--weights", red_weights, "--threads", 1
    )
    assert result.exit_code == 0, result.output
    assert (read_image(photos / "one.png") != before).any()
    assert [path.name for path in photos.iterdir() if path.is_file()] == ["one.png"]


def test_metadata(tmp_path: Path, paint_red: PaintRed, red_weights: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "phone.jpg"
    upright = paint_red(96, 64, (40, 24, 8))
    stored = Image.fromarray(np.rot90(upright))  # orientation 6: shown turned clockwise
    stored.save(source, exif=exif_with_thumbnail(6), icc_profile=profile, quality=95)
    assert b"NOTE" in source.read_bytes()
    assert source.read_bytes().count(b"\xff\xd8\xff") == 2

    kept: dict[str, tuple[bytes, dict[int, object], object]] = {}
    for choice in ("strip", "colour", "keep"):
        out = tmp_path / choice
        result = featherface_command(
            "blur", source, "--out", out, "--metadata", choice, "--weights", red_weights,
            "--size", 0, "--threads", 1, "--style", "box",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        image = read_image(out / "phone.jpg")
        assert image.shape == upright.shape
        assert (image[24:32, 40:48] < 40).all()
        assert np.abs(image[:10].astype(int) - 60).max() < 12
        with Image.open(out / "phone.jpg") as photo:
            tags = {**photo.getexif(), **photo.getexif().get_ifd(0x8769)}
            content = (out / "phone.jpg").read_bytes()
            kept[choice] = content, tags, photo.info.get("icc_profile")
            gps = photo.getexif().get_ifd(0x8825)
            assert bool(gps) == (choice == "keep")
    assert kept["strip"][1:] == ({}, None)
    assert kept["colour"][1:] == ({}, profile)
    content, tags, found = kept["keep"]
    assert found == profile
    assert tags[0x010F] == "Acm"
    assert tags[0x9208] == 4
    assert not {0x0112, 0x927C, 0x0201} & set(tags)
    assert b"NOTE" not in content
    assert content.count(b"\xff\xd8\xff") == 1


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
def test_tags_survive_in_every_format(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Acme"
    path = tmp_path / f"photo{suffix}"
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    tags = read_tags(path)
    image = np.full((10, 20, 3), 7, np.uint8)
    with Image.open(io.BytesIO(encode_photo(image, suffix, tags=tags))) as photo:
        assert photo.size == (20, 10)
        assert photo.getexif()[0x010F] == "Acme"


def test_what_cannot_be_read_is_named_and_the_rest_done(
    photos: Path, red_weights: Path, tmp_path: Path
) -> None:
    (photos / "text.jpg").write_text("no picture")
    (photos / "cut.jpg").write_bytes(EXAMPLE.read_bytes()[:5000])
    bomb = struct.pack(">4sIIBBBBB", b"IHDR", 60000, 60000, 8, 2, 0, 0, 0)
    (photos / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + bomb + b"\0" * 99)
    result = featherface_command(
        "blur", photos, photos / "nowhere.jpg", "--out", tmp_path / "out",
        "--weights", red_weights, "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 4
    for word in ("text, not a picture", "ends too early", "3,600 megapixels", "no such file"):
        assert sum(word in line for line in lines) == 1, word
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one.png"]


def test_video(tmp_path: Path, paint_red: PaintRed, red_weights: Path) -> None:
    pytest.importorskip("av")
    frames = [paint_red(96, 64, (40, 24, 8)) for _ in range(12)]
    frames[5] = paint_red(96, 64)  # the detector sees nothing here
    source = write_video(tmp_path / "in.mp4", frames, sound_rate=44100, title="secret")
    result = featherface_command(
        "blur", source, "--out", tmp_path / "out", "--weights", red_weights, "--size", 0,
        "--threads", 1, "--style", "box", "--threshold", 0.5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    images, times, about = read_video(tmp_path / "out" / "in.mp4")
    assert times == pytest.approx([number / 10 for number in range(12)])
    assert about["codecs"] == {"video": "h264", "audio": "aac"}
    assert about["seconds"] == pytest.approx(1.2, abs=0.1)
    assert "secret" not in str(about["tags"])
    for image in images:
        assert image[26:34, 40:48].max() < 40
        assert np.abs(image[:10].astype(int) - 60).max() < 12


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mov"])
def test_video_containers(
    tmp_path: Path, paint_red: PaintRed, red_weights: Path, suffix: str
) -> None:
    pytest.importorskip("av")
    frames = [paint_red(65, 63, (40, 24, 8))[:62, :64] for _ in range(6)]
    source = write_video(tmp_path / f"in{suffix}", frames)
    result = featherface_command(
        "blur", source, "--out", tmp_path / "out", "--weights", red_weights, "--threads", 1
    )
    assert result.exit_code == 0, result.output
    images, times, _ = read_video(tmp_path / "out" / f"in{suffix}")
    assert len(images) == 6
    assert times[-1] - times[0] == pytest.approx(0.5, abs=0.01)


def test_a_cut_video_is_not_replaced_in_place(
    tmp_path: Path, paint_red: PaintRed, red_weights: Path
) -> None:
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 96, 3), dtype=np.uint8)
    source = write_video(tmp_path / "in.mp4", list(noise))
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    before = source.read_bytes()
    command = ("blur", source, "--weights", red_weights, "--threads", 1)
    result = featherface_command(*command, "--in-place")
    assert result.exit_code == 1
    assert "left as it is" in result.output
    assert source.read_bytes() == before
    result = featherface_command(*command, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "cut short" in result.output
    images, _, _ = read_video(tmp_path / "out" / "in.mp4")
    assert 5 < len(images) < 30
