"""Files that are a picture and something else as well: an archive, a web page, a script.

Such a polyglot is a picture to one program and a program to another. The API only answers numbers
about a picture, but a caller may keep what the API has called good, so these are refused.

What cameras append is let through: a second JPEG (several pictures in one file), a video (a moving
photo) and the maker's own data.
"""

from __future__ import annotations

import io
import re
import zipfile

PDF_START = 1024  # readers of PDF look for its mark up to here
MARKUP = re.compile(rb"<(?:!doctype\s+html|html[\s>]|script[\s>]|iframe[\s>]|\?php\s)", re.I)
ARCHIVES = ((b"Rar!\x1a\x07", "a RAR archive"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"))
JPEG_START = re.compile(rb"\xff\xd8\xff[\xe0\xe1]..(?:JFIF|Exif)\0", re.S)


def find_mixed_content(data: bytes, image_format: str) -> str | None:
    """What else a picture file of ``image_format`` (as in ``ImageHeader``) holds; None: nothing.

    Each mark is so long that a compressed picture of 20 MB has it by chance less than once in
    100,000.
    """
    if _is_archive(data):
        return "a ZIP archive"
    if MARKUP.search(data):
        return "a web page or script"
    if b"%PDF-" in data[:PDF_START]:
        return "a PDF document"
    for mark, name in ARCHIVES:
        if mark in data:
            return name
    if image_format == "GIF" and JPEG_START.search(data):
        return "a JPEG picture"
    return None


def _is_archive(data: bytes) -> bool:
    """Whether a ZIP's directory can be read from the end of ``data``; nothing is unpacked."""
    if b"PK\5\6" not in data[-66_000:]:
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)):
            return True
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError):
        return False
