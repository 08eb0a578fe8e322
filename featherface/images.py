"""Pictures in and out: any path, bytes, PIL image or array becomes RGB uint8; fitting to a size.

Files are checked before they are decoded: format and size from the header, and whether the end of
the file is there. A decoder that fills a torn JPEG with grey, or unpacks a small file to gigabytes,
is never asked.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.errors import ImageError, ImageKindError, ImageSizeError

ByteImage = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".pgm", ".ppm",
)  # fmt: skip
READABLE = "JPEG, PNG, WebP, BMP, GIF, TIFF, PGM or PPM"


class PilImage(Protocol):
    """What is used of a ``PIL.Image.Image``; PIL itself is never imported."""

    mode: str

    @property
    def size(self) -> tuple[int, int]: ...

    def load(self) -> Any: ...

    def getexif(self) -> Any: ...

    def convert(self, mode: str) -> Any: ...


ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | NDArray[Any] | PilImage"


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of itself: format by name, size in pixels as stored, EXIF orientation."""

    format: str
    width: int
    height: int
    orientation: int = 1


def read_image(
    source: ImageSource, *, bgr: bool = False, max_pixels: int = MAX_PIXELS
) -> ByteImage:
    """Any picture as uint8 RGB ``[H, W, 3]``, upright.

    ``source`` is a path, the bytes of a file, a PIL image, or an array: ``[H, W]`` or
    ``[H, W, 1]`` grey, ``[H, W, 2]`` grey and alpha, ``[H, W, 3]`` or ``[H, W, 4]`` colour, of
    uint8, uint16 (the high byte is taken) or bool. ``bgr`` says that a colour array has its
    channels in OpenCV's order; it means nothing for other sources. EXIF rotation is applied to
    files and PIL images; of an animation, the first frame is read. Transparent parts show white.

    Raises ``ImageError`` if the picture is missing, empty, truncated, of an unknown format or
    type, or larger than ``max_pixels``.
    """
    if isinstance(source, np.ndarray):
        return array_to_rgb(source, bgr=bgr)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(bytes(source), "image bytes", max_pixels=max_pixels)
    if isinstance(source, str | os.PathLike):
        return decode_image(_read_bytes(Path(source)), str(source), max_pixels=max_pixels)
    if hasattr(source, "convert") and hasattr(source, "size") and hasattr(source, "mode"):
        return _from_pil(source, max_pixels)
    raise ImageError(
        f"An image of type {type(source).__name__}: give a path, bytes, a PIL image or an array"
    )


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> ByteImage:
    """The bytes of a picture file as uint8 RGB ``[H, W, 3]``; ``name`` is for the messages."""
    header = read_header(data, name)
    if header.width < 1 or header.height < 1:
        raise ImageError(f"{name}: {header.width}x{header.height} pixels; the file is damaged")
    _check_size(header.width, header.height, name, max_pixels)
    if _is_truncated(data, header.format):
        raise ImageError(f"{name}: the {header.format} file ends too early; fetch it again")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError):
        pixels = None
    if pixels is None or pixels.size == 0:
        raise ImageError(f"{name}: the {header.format} file is damaged and cannot be decoded")
    return _upright(array_to_rgb(pixels, bgr=True, name=name), header.orientation)


def array_to_rgb(array: NDArray[Any], *, bgr: bool = False, name: str = "array") -> ByteImage:
    """An array of 1 to 4 channels as contiguous uint8 RGB ``[H, W, 3]``; see ``read_image``."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ImageError(
            f"{name}: shape {list(array.shape)}; an image is [H, W] or [H, W, C], C from 1 to 4"
        )
    if array.size == 0:
        raise ImageError(f"{name}: shape {list(array.shape)} holds no pixels")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: {array.dtype} samples; convert them to uint8, 0 to 255")
    channels = array.shape[2]
    colour = array[:, :, : 1 if channels <= 2 else 3]
    if channels <= 2:
        colour = np.repeat(colour, 3, axis=2)
    elif bgr:
        colour = colour[:, :, ::-1]
    if channels in (2, 4):
        colour = _on_white(colour, array[:, :, -1:])
    return np.ascontiguousarray(colour)


def resize_image(image: ByteImage, width: int, height: int) -> ByteImage:
    """``image`` at another size: averaged when it shrinks, bilinear when it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return np.asarray(resized, np.uint8)


def fitted_size(width: int, height: int, long_side: int | None) -> tuple[int, int]:
    """Width and height with the aspect kept and the long side at ``long_side`` (None: unchanged).

    No side becomes shorter than one pixel.
    """
    if long_side is None:
        return width, height
    scale = long_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def padded_size(width: int, height: int, multiple: int = 32) -> tuple[int, int]:
    """Width and height rounded up to a multiple; the padding goes right and below, black."""
    return -(-width // multiple) * multiple, -(-height // multiple) * multiple


def write_image(path: str | os.PathLike[str], image: ByteImage) -> None:
    """Write uint8 RGB ``[H, W, 3]``; the suffix says the format. The file appears whole or not.

    Makes the folder. Raises ``ImageError`` for a suffix that cannot be written.
    """
    target = Path(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, 93] if _is_jpeg_name(target) else []
    try:
        encoded, data = cv2.imencode(target.suffix, image[:, :, ::-1], options)
    except cv2.error:
        encoded = False
    if not encoded:
        raise ImageError(f"{target}: cannot be written as {target.suffix or 'nothing'!r}; try .jpg")
    write_file(target, data.tobytes())


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name beside ``path``, then rename. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def read_header(data: bytes, name: str) -> ImageHeader:
    """Format, stored size and orientation of a picture file, without decoding it.

    Raises ``ImageError`` for an empty file and for anything that is not a known picture.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        header = _find_header(data)
    except (struct.error, IndexError, ValueError):
        raise ImageError(f"{name}: the file ends or breaks in its header; fetch it again") from None
    if header is None:
        what = "text, not a picture" if _looks_like_text(data) else "not a known kind of picture"
        raise ImageKindError(f"{name}: {what}; give {READABLE}")
    return header


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path}: a folder, not a picture")
        if not path.exists():
            raise ImageError(f"{path}: no such file")
        if not path.is_file():
            raise ImageError(f"{path}: not a regular file")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: cannot be read: {reason}") from error


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageSizeError(
            f"{name}: {width}x{height} pixels are {width * height / 1e6:,.0f} megapixels, "
            f"more than the limit of {max_pixels / 1e6:,.0f}; shrink the picture first"
        )


def _from_pil(image: Any, max_pixels: int) -> ByteImage:
    width, height = image.size
    _check_size(width, height, "PIL image", max_pixels)
    try:
        image.load()  # turns TIFF upright, and then says so
        orientation = image.getexif().get(0x0112, 1)
        if image.mode.startswith("I;16"):
            pixels = np.asarray(image).astype(np.uint16)
        elif image.mode == "I":  # 32 bits wide, but what PIL makes of a 16-bit grey PNG
            pixels = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        elif image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
            pixels = np.asarray(image.convert("RGBA"))
        else:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"PIL image: cannot be decoded: {error}") from error
    return _upright(array_to_rgb(pixels, name="PIL image"), orientation)


def _on_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> ByteImage:
    weight = alpha.astype(np.uint16)
    return ((colour * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def _upright(image: ByteImage, orientation: int) -> ByteImage:
    """Undo an EXIF orientation of 1 to 8 (5 and up are transposed); anything else is ignored."""
    if not 2 <= orientation <= 8:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _is_jpeg_name(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")


def _looks_like_text(data: bytes) -> bool:
    start = data[:512]
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in start) and b"\x7f" not in start


# What the formats say in their first bytes. Each reader may run off the end of ``data``.


def _find_header(data: bytes) -> ImageHeader | None:
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_header(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", data, 16)
        chunks = _png_chunks(data)
        return ImageHeader("PNG", width, height, _exif_orientation(chunks.get(b"eXIf", b"")))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_header(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return ImageHeader("GIF", *struct.unpack_from("<HH", data, 6))
    if data.startswith(b"BM"):
        if struct.unpack_from("<I", data, 14)[0] == 12:
            return ImageHeader("BMP", *struct.unpack_from("<HH", data, 18))
        width, height = struct.unpack_from("<ii", data, 18)
        return ImageHeader("BMP", abs(width), abs(height))
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        tags = _tiff_tags(data)
        return ImageHeader("TIFF", tags[256], tags[257])  # the decoder turns TIFF upright itself
    if match := re.match(rb"P[2356](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s", data):
        return ImageHeader("PGM" if data[1:2] in b"25" else "PPM", int(match[1]), int(match[2]))
    return None


def _jpeg_header(data: bytes) -> ImageHeader:
    """Walk the segments to the first start of frame (SOF), noting EXIF on the way."""
    position, orientation = 2, 1
    while True:
        while data[position] == 0xFF and data[position + 1] == 0xFF:
            position += 1
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0xD9, 0xDA):
            raise ValueError("no frame before the scan")
        (length,) = struct.unpack_from(">H", data, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return ImageHeader("JPEG", width, height, orientation)
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length


def _webp_header(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        orientation, position = 1, 12
        while position + 8 <= len(data):
            (size,) = struct.unpack_from("<I", data, position + 4)
            if data[position : position + 4] == b"EXIF":
                body = data[position + 8 : position + 8 + size]
                orientation = _exif_orientation(body.removeprefix(b"Exif\0\0"))
            position += 8 + size + size % 2
        return ImageHeader("WebP", width, height, orientation)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader("WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    width, height = struct.unpack_from("<HH", data, 26)
    return ImageHeader("WebP", width & 0x3FFF, height & 0x3FFF)


def _png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The small chunks of a PNG by name; ``IEND`` is among them if the file is whole."""
    chunks: dict[bytes, bytes] = {}
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        name = data[position + 4 : position + 8]
        chunks[name] = data[position + 8 : position + 8 + length] if length < 1 << 16 else b""
        if name == b"IEND":
            break
        position += 12 + length
    return chunks


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Numbers in the first directory of a TIFF or BigTIFF, by tag."""
    order = "<" if data[:1] == b"I" else ">"
    big = 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if count > 4096:
        raise ValueError("a directory of absurd length")
    first, step, value_at = (start + 8, 20, 12) if big else (start + 2, 12, 8)
    formats = {3: "H", 4: "I", 16: "Q"}
    tags: dict[int, int] = {}
    for entry in range(first, first + count * step, step):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if kind in formats:
            (tags[tag],) = struct.unpack_from(order + formats[kind], data, entry + value_at)
    if 256 not in tags or 257 not in tags:
        raise ValueError("a TIFF without a size")
    return tags


def _exif_orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block; 1 if there is none or the block is damaged."""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == 0x0112 and kind == 3:
                return int(struct.unpack_from(order + "H", exif, entry + 8)[0])
    except (KeyError, struct.error):
        pass
    return 1


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _is_truncated(data: bytes, image_format: str) -> bool:
    if image_format == "JPEG":
        return not _jpeg_has_end(data)
    if image_format == "PNG":
        return b"IEND" not in _png_chunks(data)
    if image_format == "WebP":
        return int(struct.unpack_from("<I", data, 4)[0]) + 8 > len(data)
    return False


def _jpeg_has_end(data: bytes) -> bool:
    """Whether the main picture of a JPEG reaches its end marker.

    Segments are skipped by their length, so that the end marker of a thumbnail does not count.
    """
    position = 2
    while True:
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            return False
        marker = data[found.start() + 1]
        if marker == 0xD9:
            return True
        if marker == 0x01:
            position = found.end()
            continue
        if found.end() + 2 > len(data):
            return False
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
