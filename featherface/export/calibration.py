"""Photos to calibrate with: a folder of pictures, or training shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featherface.errors import DataError, ImageError
from featherface.images import ByteImage, fitted_size, padded_size, read_image, resize_image

FloatArray = NDArray[np.float32]

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
LONG_SIDE = 640
SHARD_STEP = 5  # of a shard's photos one in so many, as neighbours are alike


def calibration_images(folder: Path, count: int, long_side: int = LONG_SIDE) -> list[FloatArray]:
    """Up to ``count`` inputs float32 ``[1, 3, H, W]``, RGB 0..255, padded as the detector does.

    ``folder``: pictures, at any depth, or ``*.tar`` shards (or one of them). They are taken evenly
    over the folder. Raises ``DataError`` if there is none; unreadable pictures are left out.
    """
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; give one of photos, or of *.tar shards")
    shards = _shards(folder)
    photos = _from_shards(shards, count) if shards else _from_pictures(folder, count)
    images = [_network_input(photo, long_side) for photo in photos]
    if not images:
        raise DataError(
            f"{folder}: no readable photo to calibrate with; give a folder of a dozen photos "
            f"({', '.join(PICTURES)}) or of *.tar shards"
        )
    return images


def has_shards(folder: Path) -> bool:
    """Whether ``folder`` is read as shards, which needs ``webdataset``."""
    return bool(_shards(folder))


def _shards(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else sorted(folder.glob("*.tar"))


def _from_pictures(folder: Path, count: int) -> Iterator[ByteImage]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    step = max(1.0, len(paths) / count)
    chosen = [paths[int(place)] for place in np.arange(0, len(paths), step)]
    for path in chosen[:count]:
        try:
            yield read_image(path)
        except ImageError:
            continue


def _from_shards(shards: list[Path], count: int) -> Iterator[ByteImage]:
    from featherface.data.shards import parse_sample, raw_samples

    for number, shard in enumerate(shards):
        wanted = count * (number + 1) // len(shards) - count * number // len(shards)
        for position, sample in enumerate(raw_samples([shard])):
            if wanted == 0:
                break
            if position % SHARD_STEP:
                continue
            try:
                photo = parse_sample(sample)
            except DataError:
                continue
            if (photo.scores >= 0.5).any():
                wanted -= 1
                yield photo.image


def _network_input(image: ByteImage, long_side: int) -> FloatArray:
    height, width = image.shape[:2]
    fitted = fitted_size(width, height, long_side)
    columns, rows = padded_size(*fitted)
    blob = np.zeros((1, 3, rows, columns), np.float32)
    blob[0, :, : fitted[1], : fitted[0]] = resize_image(image, *fitted).transpose(2, 0, 1)
    return blob
