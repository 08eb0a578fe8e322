"""WebDataset shards of labelled photos: read in order, or at random from a decoded cache.

A shard is a tar of ``KEY.webp`` (or ``.jpg``, ``.png``) and ``KEY.json`` side by side; the JSON is
``{"source", "width", "height", "faces": [{"box": [x1, y1, x2, y2], "score", "landmarks"}]}`` with
ten landmark coordinates or null.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import webdataset
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from featherface.data.labelled_photo import LabelledPhoto
from featherface.errors import DataError

PICTURES = ("webp", "jpg", "jpeg", "png")
NO_PIXELS = np.empty((0, 0, 3), np.uint8)
CACHE_FORMAT = 1
FIRST_BYTES = 1 << 16
CROP_MARK = "#"  # in a key: what follows tells the crops of a photo apart
ABANDONED_SECONDS = 3600.0

log = logging.getLogger(__name__)


def find_shards(folder: Path | str) -> list[Path]:
    """The ``*.tar`` files of a folder, sorted by name; a single tar is taken as it is.

    Raises:
        DataError: no such folder, or no shard in it.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the *.tar shards")
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise DataError(f"{folder}: no *.tar shard in it; see `featherface data pack` to make some")
    return shards


def raw_samples(shards: list[Path]) -> Iterator[dict[str, Any]]:
    """The undecoded samples of the shards, in order: ``__key__``, ``json`` and picture as bytes.

    Raises:
        DataError: a shard is not a readable tar.
    """
    for shard in shards:
        try:
            yield from webdataset.WebDataset(
                [str(shard)],
                shardshuffle=False,
                empty_check=False,
                nodesplitter=None,
                workersplitter=None,
            )
        except Exception as error:
            raise DataError(
                f"{shard}: not a readable shard ({error}); copy or make it anew"
            ) from error


def parse_sample(sample: Mapping[str, Any]) -> LabelledPhoto:
    """Decode one sample of a shard.

    Raises:
        DataError: picture or labels are missing or malformed.
    """
    key = sample["__key__"]
    encoded = next((sample[kind] for kind in PICTURES if kind in sample), None)
    if encoded is None:
        raise DataError(f"{key}: no picture ({', '.join(PICTURES)}) beside the labels")
    if "json" not in sample:
        raise DataError(f"{key}: no labels (.json) beside the picture")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{key}: the picture cannot be decoded")
    try:
        labels = json.loads(sample["json"])
        faces = labels["faces"]
        boxes = np.array([face["box"] for face in faces], np.float32).reshape(len(faces), 4)
        scores = np.array([face["score"] for face in faces], np.float32).reshape(len(faces))
        landmarks = np.array(
            [face.get("landmarks") or [np.nan] * 10 for face in faces], np.float32
        ).reshape(len(faces), 5, 2)
        source = str(labels.get("source", "unknown"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{key}: malformed labels ({type(error).__name__}: {error})") from error
    sound = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1) & np.isfinite(scores)
    return LabelledPhoto(key, source, to_rgb(image), boxes[sound], scores[sound], landmarks[sound])


def parse_samples(
    samples: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[int, LabelledPhoto | DataError]]:
    """:func:`parse_sample` on all cores, in order: a sample's bytes, its photo or what is wrong."""

    def parse(sample: Mapping[str, Any]) -> tuple[int, LabelledPhoto | DataError]:
        encoded = sum(len(value) for value in sample.values() if isinstance(value, bytes))
        try:
            return encoded, parse_sample(sample)
        except DataError as error:
            return encoded, error

    cores = os.cpu_count() or 1
    waiting: deque[Future[tuple[int, LabelledPhoto | DataError]]] = deque()
    # Threads are enough, as OpenCV decodes outside Python's lock.
    with ThreadPoolExecutor(cores) as pool:
        for sample in samples:
            waiting.append(pool.submit(parse, sample))
            if len(waiting) > 4 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def to_rgb(image: cv2.typing.MatLike) -> NDArray[np.uint8]:
    """OpenCV's BGR uint8 [H, W, 3] as RGB."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_shards(folder: Path | str) -> Iterator[LabelledPhoto]:
    """The photos of a folder of shards, in order; a corrupt one is skipped and logged."""
    for sample in raw_samples(find_shards(folder)):
        try:
            yield parse_sample(sample)
        except DataError as error:
            log.warning("skipped %s", error)


class PhotoStore:
    """Random access over all photos of one or several folders of shards, decoded once.

    The first start decodes every photo into one flat file in ``cache`` (a few GB) with an index
    beside it; later starts only map it. The name of the cache holds a hash of the shards, so
    other shards get another cache. Processes share the mapped pages.

    Example:
        >>> store = PhotoStore("data/train", cache="cache")        # doctest: +SKIP
        >>> train, validation = store.split()                      # doctest: +SKIP
        >>> store[train[0]].boxes.shape                            # doctest: +SKIP
        (3, 4)

    Attributes:
        keys, sources: str [P], name and source of each photo.
        skipped: what was wrong with each photo that was left out, one line each.
    """

    def __init__(
        self,
        shards: Path | str | Sequence[Path | str],
        cache: Path | str = "cache",
        progress: bool = True,
    ) -> None:
        """Map the cache of ``shards``, one folder or several, building it where it is missing.

        Raises:
            DataError: no shards, no readable photo, or no room for the cache.
        """
        folders = [shards] if isinstance(shards, Path | str) else shards
        paths = [path for folder in folders for path in find_shards(folder)]
        digest = digest_of(paths)
        self._pixels_path = Path(cache) / f"photos-{digest}.bin"
        index_path = Path(cache) / f"photos-{digest}.npz"
        if not (index_path.is_file() and self._pixels_path.is_file()):
            build_cache(paths, self._pixels_path, index_path, progress)
        with np.load(index_path) as index:
            self.keys: NDArray[np.str_] = index["keys"]
            self.sources: NDArray[np.str_] = index["sources"]
            self.skipped: list[str] = [str(line) for line in index["skipped"]]
            self._sizes: NDArray[np.int64] = index["sizes"]
            self._first_face: NDArray[np.int64] = index["first_face"]
            self._boxes: NDArray[np.float32] = index["boxes"]
            self._scores: NDArray[np.float32] = index["scores"]
            self._landmarks: NDArray[np.float32] = index["landmarks"]
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes.prod(1) * 3)])
        if self._pixels_path.stat().st_size != self._offsets[-1]:
            raise DataError(f"{self._pixels_path}: cut short; delete it, it will be built anew")
        self._map()

    def _map(self) -> None:
        self._pixels = np.memmap(self._pixels_path, np.uint8, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> LabelledPhoto:
        """Photo ``index``; its image is a read-only view of the cache."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"photo {index} of {len(self)}")
        index = int(index) % len(self)
        height, width = self._sizes[index]
        pixels = self._pixels[self._offsets[index] : self._offsets[index + 1]]
        faces = slice(self._first_face[index], self._first_face[index + 1])
        return LabelledPhoto(
            str(self.keys[index]),
            str(self.sources[index]),
            np.asarray(pixels).reshape(height, width, 3),
            self._boxes[faces],
            self._scores[faces],
            self._landmarks[faces],
        )

    def split(
        self, validation_fraction: float = 0.04, seed: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the training and of the validation photos, see :func:`split_by_key`."""
        return split_by_key(self.keys, validation_fraction, seed)


def digest_of(shards: list[Path]) -> str:
    """16 hexadecimal digits that other shards do not share: by names, sizes and first bytes.

    Sizes alone do not tell: a tar is filled up to whole blocks.
    """
    digest = hashlib.sha256(str(CACHE_FORMAT).encode())
    for path in shards:
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(FIRST_BYTES))
    return digest.hexdigest()[:16]


def split_by_key(
    keys: NDArray[np.str_], validation_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and validation indices, int64, by a hash of each key.

    A photo stays on its side when others come or go, and its crops are where it is.
    """
    photos = [str(key).partition(CROP_MARK)[0] for key in keys]
    words = [hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8] for key in photos]
    shares = np.array([int.from_bytes(word, "big") / 2**64 for word in words])
    held_out = shares < validation_fraction
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def build_cache(shards: list[Path], pixels_path: Path, index_path: Path, progress: bool) -> None:
    """Decode ``shards`` into a flat pixel file and an index.

    Both are written under temporary names; the index is renamed last and so marks a whole cache.

    Raises:
        DataError: no readable photo, or the cache cannot be written.
    """
    folder = pixels_path.parent
    keys: list[str] = []
    sources: list[str] = []
    sizes: list[tuple[int, int]] = []
    faces: list[LabelledPhoto] = []
    skipped: list[str] = []
    pixels_part = pixels_path.with_suffix(f".{os.getpid()}.partial")
    index_part = index_path.with_suffix(f".{os.getpid()}.index.partial")
    columns = ("Decoding photos", BarColumn(), MofNCompleteColumn(), "MB", TimeRemainingColumn())
    megabytes = sum(shard.stat().st_size for shard in shards) // 2**20
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        read = 0
        with pixels_part.open("wb") as pixels, Progress(*columns, disable=not progress) as bar:
            task = bar.add_task("", total=megabytes)
            for encoded, photo in parse_samples(raw_samples(shards)):
                read += encoded
                bar.update(task, completed=read // 2**20)
                if isinstance(photo, DataError):
                    skipped.append(str(photo))
                    continue
                pixels.write(np.ascontiguousarray(photo.image).data)
                keys.append(photo.key)
                sources.append(photo.source)
                sizes.append(photo.image.shape[:2])
                faces.append(replace(photo, image=NO_PIXELS))
            bar.update(task, completed=megabytes)
        if not keys:
            raise DataError(f"{shards[0].parent}: no readable photo in its {len(shards)} shard(s)")
        counts = [len(photo.scores) for photo in faces]
        with index_part.open("wb") as index:
            np.savez(
                index,
                keys=np.array(keys),
                sources=np.array(sources),
                skipped=np.array(skipped, dtype=np.str_),
                sizes=np.array(sizes, np.int64),
                first_face=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
                boxes=np.concatenate([photo.boxes for photo in faces]),
                scores=np.concatenate([photo.scores for photo in faces]),
                landmarks=np.concatenate([photo.landmarks for photo in faces]),
            )
        pixels_part.replace(pixels_path)
        index_part.replace(index_path)
    except OSError as error:
        raise DataError(
            f"{folder}: the cache cannot be written ({error}); free some room"
        ) from error
    finally:
        pixels_part.unlink(missing_ok=True)
        index_part.unlink(missing_ok=True)
    for line in skipped:
        log.warning("skipped %s", line)


def remove_abandoned(folder: Path) -> None:
    """Remove what builds that were killed have left, an hour after their last write."""
    for part in folder.glob("photos-*.partial"):
        if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
            part.unlink(missing_ok=True)
