"""Write labelled photos to WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.shards import CROP_MARK
from featherface.errors import DataError


def pack(
    photos: Iterable[LabelledPhoto],
    folder: Path | str,
    shard_megabytes: float = 50.0,
    quality: int = 90,
    prefix: str = "photos",
) -> list[Path]:
    """Write ``photos`` to ``folder/PREFIX-000.tar`` and on, WebP and JSON side by side.

    A shard gets its name when it is whole.

    Args:
        shard_megabytes: a shard is closed when it reaches this size.
        quality: of the WebP pictures, 1 to 100.

    Returns:
        The shards, in order.

    Raises:
        DataError: no photo given, a photo cannot be encoded, or shards are already there.
    """
    folder = Path(folder)
    if any(folder.glob(f"{prefix}-*.tar")):
        raise DataError(f"{folder}: holds {prefix}-*.tar already; give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    waiting = iter(photos)
    photo = next(waiting, None)
    shards: list[Path] = []
    part = folder / f"{prefix}.partial"
    try:
        number = 0
        while photo:
            with tarfile.open(part, "w") as shard:
                while photo and shard.offset < shard_megabytes * 2**20:
                    add(shard, photo, number, quality)
                    photo, number = next(waiting, None), number + 1
            shards.append(part.replace(folder / f"{prefix}-{len(shards):03d}.tar"))
    finally:
        part.unlink(missing_ok=True)
    if not shards:
        raise DataError(f"{folder}: there was no photo to pack")
    return shards


def add(shard: tarfile.TarFile, photo: LabelledPhoto, number: int, quality: int) -> None:
    """Append one photo; its key is made unique by ``number`` and free of dots and slashes.

    A crop keeps its key, which tells its photo and is unique already.
    """
    if CROP_MARK in photo.key:
        key = photo.key.replace(".", "_").replace("/", "_")
    else:
        key = f"{number:06d}-{Path(photo.key).stem.replace('.', '_')}"
    write_sample(shard, key, photo, quality)


def write_sample(shard: tarfile.TarFile, key: str, photo: LabelledPhoto, quality: int) -> None:
    """Append ``KEY.webp`` and ``KEY.json``; ``key`` holds neither dot nor slash."""
    bgr = cv2.cvtColor(photo.image, cv2.COLOR_RGB2BGR)
    try:
        encoded = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
    except cv2.error as error:
        raise DataError(f"{photo.key}: cannot be encoded as WebP ({error.err})") from error
    labels = json.dumps(labels_of(photo)).encode()
    add_file(shard, f"{key}.webp", encoded)
    add_file(shard, f"{key}.json", labels)


def add_file(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append one file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def labels_of(photo: LabelledPhoto) -> dict[str, Any]:
    """What a shard's JSON says of a photo."""
    height, width = photo.image.shape[:2]
    faces = [
        {
            "box": [round(float(value), 1) for value in box],
            "score": round(float(score), 3),
            "landmarks": [round(float(value), 1) for value in points.ravel()]
            if np.isfinite(points).all()
            else None,
        }
        for box, score, points in zip(photo.boxes, photo.scores, photo.landmarks, strict=True)
    ]
    return {"source": photo.source, "width": width, "height": height, "faces": faces}
