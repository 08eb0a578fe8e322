"""One uploaded file to RGB pixels, or to the error that names it. Nothing is trusted."""

from __future__ import annotations

from pathlib import PurePosixPath

from featherface.errors import ImageError, ImageKindError, ImageSizeError
from featherface.images import ByteImage, decode_image, read_header
from featherface.serving.mixed_content import find_mixed_content
from featherface.serving.problems import ApiError
from featherface.serving.settings import MEBIBYTE, ServeSettings

# TIFF is left out: its tiles and samples can be made to ask for much more memory than its size says
ACCEPTED = ("JPEG", "PNG", "WebP", "BMP", "GIF")
MAX_SCANS = 200  # a progressive JPEG has about ten; each is a pass over the whole picture


def display_name(filename: str | None) -> str:
    """The name to call an upload by: no folders, no control characters, not too long."""
    name = PurePosixPath((filename or "").replace("\\", "/")).name
    name = "".join(letter for letter in name if letter.isprintable())
    return name[-100:] or "image"


def check_length(size: int, name: str, settings: ServeSettings) -> None:
    """Raise ``ApiError`` (413, 422) for a file of ``size`` bytes that is too large or empty."""
    if size > settings.max_file_bytes:
        raise ApiError(
            413,
            "file_too_large",
            f"{name}: {size / MEBIBYTE:,.1f} MiB are more than the limit of "
            f"{settings.max_file_bytes / MEBIBYTE:,.1f}; send a smaller file",
            file=name,
        )
    if size == 0:
        raise ApiError(422, "damaged_picture", f"{name}: the file is empty", file=name)


def read_upload(data: bytes, name: str, settings: ServeSettings) -> ByteImage:
    """The pixels of an uploaded picture, uint8 RGB ``[H, W, 3]``, upright.

    Raises ``ApiError``: 413 for too many bytes or pixels, 415 for what is no picture, not an
    accepted kind, or a picture and something else, 422 for a damaged one.
    """
    check_length(len(data), name, settings)
    try:
        header = read_header(data, name)
        if header.format not in ACCEPTED:
            raise ImageKindError(f"{name}: {header.format} is not accepted here")
        if header.width * header.height > settings.max_pixels:
            raise ImageSizeError(
                f"{name}: {header.width}x{header.height} pixels are more than the limit of "
                f"{settings.max_pixels / 1e6:,.0f} megapixels; shrink the picture first"
            )
        if other := find_mixed_content(data, header.format):
            raise ApiError(
                415,
                "mixed_content",
                f"{name}: a {header.format} picture that is {other} as well; save it anew as a "
                "plain picture",
                file=name,
            )
        if header.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
            raise ImageError(f"{name}: a JPEG of more than {MAX_SCANS} scans; save it anew")
        return decode_image(data, name)
    except ImageSizeError as error:
        raise ApiError(413, "too_many_pixels", str(error), file=name) from error
    except ImageKindError as error:
        what = str(error).partition(";")[0]
        message = f"{what}; send {', '.join(ACCEPTED)}"
        raise ApiError(415, "not_a_picture", message, file=name) from error
    except ImageError as error:
        raise ApiError(422, "damaged_picture", str(error), file=name) from error
