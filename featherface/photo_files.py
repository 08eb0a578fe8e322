"""A changed photo back to a file: bare, with its colour profile, or with its EXIF tags too.

What EXIF hides is a danger to who wants a face gone: a thumbnail of the untouched photo, and a
maker's note that may hold a larger one. Neither is ever kept.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.errors import ImageError, MissingExtraError

ByteImage = NDArray[np.uint8]

WRITABLE: dict[str, str] = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
    ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
QUALITY = 93

ORIENTATION, EXIF_IFD = 0x0112, 0x8769
# Thumbnails, sub-images, XMP, Photoshop's resources and layers: each may hold the old pixels.
HIDDEN_PICTURES = (0x0201, 0x0202, 0x014A, 0x02BC, 0x8649, 0x935C, 0x501B)
MAKER_NOTE, STORED_WIDTH, STORED_HEIGHT = 0x927C, 0xA002, 0xA003
PICTURE_TAGS = range(0x0100, 0x011D)  # size, compression, strips: true of the old file only
KEPT_OF_THEM = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B)  # description, make, model, resolution


@dataclass(frozen=True)
class PhotoTags:
    """``exif``: a block for the upright photo; ``profile``: ICC. Empty where there is none."""

    exif: bytes = b""
    profile: bytes = b""


def read_tags(path: Path, exif: bool = True) -> PhotoTags:
    """The colour profile of a photo and, with ``exif``, its EXIF tags.

    Orientation, thumbnail, maker's note and everything else that may hold the old pixels are left
    out. XMP is not read. Raises ``ImageError`` if Pillow cannot read the file.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Keeping metadata needs Pillow: pip install 'featherface[photo]'"
        ) from error
    try:
        with Image.open(path) as photo:
            block = _safe_exif(photo.getexif()) if exif else b""
            return PhotoTags(block, photo.info.get("icc_profile") or b"")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: its metadata cannot be read ({error})") from error


def encode_photo(
    image: ByteImage, suffix: str, quality: int = QUALITY, tags: PhotoTags | None = None
) -> bytes:
    """``image`` (uint8 RGB ``[H, W, 3]``, upright) as the bytes of a file; see ``WRITABLE``.

    ``quality`` of JPEG and WebP, 1 to 100. Without ``tags`` the file holds pixels only. Raises
    ``ImageError`` for another suffix.
    """
    kind = WRITABLE.get(suffix.lower())
    if kind is None:
        raise ImageError(f"A photo cannot be written as {suffix!r}; one of {', '.join(WRITABLE)}")
    if tags is not None and (tags.exif or tags.profile):
        from PIL import Image

        options: dict[str, Any] = {"quality": quality} if kind in ("JPEG", "WEBP") else {}
        if tags.exif:
            options["exif"] = tags.exif
        if tags.profile:
            options["icc_profile"] = tags.profile
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **options)
        return file.getvalue()
    settings = {
        "JPEG": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "WEBP": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }
    encoded, data = cv2.imencode(suffix.lower(), image[:, :, ::-1], settings.get(kind, []))
    if not encoded:
        raise ImageError(f"A photo of {image.shape[1]}x{image.shape[0]} pixels is no {kind}")
    return data.tobytes()


def _safe_exif(exif: Any) -> bytes:
    """The block of PIL's ``Exif`` without anything that could show the old pixels."""
    if not len(exif):
        return b""
    details = exif.get_ifd(EXIF_IFD)
    for tag in (MAKER_NOTE, STORED_WIDTH, STORED_HEIGHT):
        details.pop(tag, None)
    for tag in list(exif):
        stale = tag in PICTURE_TAGS and tag not in KEPT_OF_THEM
        if stale or tag in HIDDEN_PICTURES:
            del exif[tag]
    return bytes(exif.tobytes())  # the first directory and EXIF, GPS; never that of the thumbnail
