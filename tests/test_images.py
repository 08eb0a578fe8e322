"""Every kind of picture that people have, and every kind of file that is none."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from featherface.errors import ImageError
from featherface.images import (
    array_to_rgb,
    decode_image,
    fitted_size,
    padded_size,
    read_header,
    read_image,
    resize_image,
    write_image,
)

WIDTH, HEIGHT = 48, 32


def corners_image() -> np.ndarray:
    """Four flat quarters: red, green / blue, grey, so that every turn and swap shows."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:16, :24], image[:16, 24:] = (220, 20, 20), (20, 220, 20)
    image[16:, :24], image[16:, 24:] = (20, 20, 220), (128, 128, 128)
    return image


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def close(first: np.ndarray, second: np.ndarray, tolerance: float = 6) -> bool:
    return first.shape == second.shape and bool(
        np.abs(first.astype(int) - second).mean() < tolerance
    )


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_formats(image_format: str) -> None:
    data = encoded(Image.fromarray(corners_image()), image_format)
    header = read_header(data, "x")
    assert (header.width, header.height) == (WIDTH, HEIGHT)
    assert header.format.upper() == image_format
    image = read_image(data)
    assert image.dtype == np.uint8
    assert close(image, corners_image())


def test_path_string_bytes_and_pil_agree(tmp_path: Path) -> None:
    path = tmp_path / "ä picture.png"
    Image.fromarray(corners_image()).save(path)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        np.testing.assert_array_equal(read_image(source), corners_image())
    np.testing.assert_array_equal(read_image(Image.open(path)), corners_image())


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(image_format: str, orientation: int) -> None:
    upright = Image.fromarray(corners_image())
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, image_format, exif=exif)
    assert close(read_image(data), corners_image())
    assert close(read_image(Image.open(io.BytesIO(data))), corners_image())


def test_grey_palette_and_one_bit() -> None:
    grey = Image.fromarray(corners_image()).convert("L")
    for picture in (grey, grey.convert("P")):
        image = read_image(encoded(picture, "PNG"))
        assert close(image, np.repeat(np.asarray(grey)[:, :, None], 3, axis=2), 2)
    ones = read_image(encoded(grey.convert("1"), "PNG"))
    assert set(np.unique(ones)) <= {0, 255}
    np.testing.assert_array_equal(read_image(np.asarray(grey)), read_image(grey))


def test_alpha_shows_white() -> None:
    image = Image.fromarray(corners_image()).convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[0, 255]], HEIGHT, 0).repeat(24, 1).astype(np.uint8)))
    for source in (encoded(image, "PNG"), image, np.asarray(image)):
        pixels = read_image(source)
        assert (pixels[:, :24] == 255).all()
        np.testing.assert_array_equal(pixels[:, 24:], corners_image()[:, 24:])
    grey_alpha = np.dstack([np.full((4, 4), 9), np.full((4, 4), 255)]).astype(np.uint8)
    assert (read_image(grey_alpha) == 9).all()


def test_sixteen_bit() -> None:
    deep = corners_image().astype(np.uint16) * 257
    _, data = cv2.imencode(".png", deep[:, :, ::-1])
    np.testing.assert_array_equal(read_image(data.tobytes()), corners_image())
    np.testing.assert_array_equal(read_image(deep), corners_image())
    grey = np.ascontiguousarray(deep[:, :, 0])
    _, data = cv2.imencode(".png", grey)
    expected = np.repeat(corners_image()[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(read_image(data.tobytes()), expected)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(data.tobytes()))), expected)


def test_cmyk_jpeg() -> None:
    picture = Image.fromarray(corners_image()).convert("CMYK")
    assert close(read_image(encoded(picture, "JPEG")), corners_image(), 10)
    assert close(read_image(picture), corners_image(), 10)


def test_bgr_arrays() -> None:
    swapped = np.ascontiguousarray(corners_image()[:, :, ::-1])
    np.testing.assert_array_equal(read_image(swapped, bgr=True), corners_image())


def test_strange_arrays_are_refused() -> None:
    for array, what in (
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((3, 40, 40), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros(4, np.uint8), "shape"),
    ):
        with pytest.raises(ImageError, match=what):
            array_to_rgb(array)
    with pytest.raises(ImageError, match="type int"):
        read_image(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_truncated_anywhere(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), image_format)
    for part in range(1, 20):
        with pytest.raises(ImageError):
            read_image(data[: len(data) * part // 20])


def test_truncated_jpeg_with_a_whole_thumbnail() -> None:
    inner = encoded(Image.fromarray(corners_image()), "JPEG")
    outer = encoded(Image.fromarray(corners_image()).resize((480, 320)), "JPEG", comment=inner)
    assert read_image(outer).shape == (320, 480, 3)
    with pytest.raises(ImageError, match="ends too early"):
        read_image(outer[:-40])


def test_progressive_and_restarted_jpeg() -> None:
    picture = Image.fromarray(corners_image())
    assert close(read_image(encoded(picture, "JPEG", progressive=True)), corners_image())
    restarted = encoded(picture, "JPEG", restart_marker_blocks=1)
    assert b"\xff\xd0" in restarted
    assert close(read_image(restarted), corners_image())


@pytest.mark.parametrize("name", ["empty.jpg", "text.jpg", "noise.jpg", "absent.jpg", "folder"])
def test_what_is_no_picture(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("Dear reader, this is no picture.\n")
    (tmp_path / "noise.jpg").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "folder").mkdir()
    reasons = {
        "empty.jpg": "empty", "text.jpg": "text", "noise.jpg": "not a known",
        "absent.jpg": "no such file", "folder": "a folder",
    }  # fmt: skip
    with pytest.raises(ImageError, match=reasons[name]) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        checked = name + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_decompression_bomb_is_not_decoded() -> None:
    with pytest.raises(ImageError, match="megapixels"):
        read_image(png_claiming(60_000, 60_000))
    with pytest.raises(ImageError, match="megapixels"):
        decode_image(encoded(Image.new("L", (64, 64)), "JPEG"), "x", max_pixels=4095)
    with pytest.raises(ImageError, match="megapixels"):
        read_image(Image.new("1", (20_000, 20_000)))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 20), (20, 20_000)])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_extreme_shapes(image_format: str, width: int, height: int) -> None:
    if image_format == "WEBP" and max(width, height) > 16383:
        pytest.skip("WebP ends at 16,383 pixels")
    image = read_image(encoded(Image.new("RGB", (width, height), (9, 9, 9)), image_format))
    assert image.shape == (height, width, 3)


def test_fitting() -> None:
    assert fitted_size(1280, 720, 640) == (640, 360)
    assert fitted_size(100, 50, 640) == (640, 320)
    assert fitted_size(20_000, 20, 640) == (640, 1)
    assert fitted_size(33, 7, None) == (33, 7)
    assert padded_size(640, 1) == (640, 32)
    assert padded_size(33, 64) == (64, 64)
    image = corners_image()
    assert resize_image(image, WIDTH, HEIGHT) is image
    assert resize_image(image, 24, 16).shape == (16, 24, 3)
    assert resize_image(image, 96, 16).shape == (16, 96, 3)


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    write_image(path, corners_image())
    np.testing.assert_array_equal(read_image(path), corners_image())
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "new" / "picture.xyz", corners_image())
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "new" / "picture", corners_image())
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]
