"""Photos with the labels that a function gives them, to shards; goes on where it was stopped.

Each photo's labels are appended to ``labels.jsonl`` as soon as they are there, and a shard gets its
name when it is whole. A run that is killed loses at most the photo at hand: the next start packs
what ``labels.jsonl`` knows without asking for its labels again.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.pack import write_sample
from featherface.data.pseudo_labels import View
from featherface.errors import ConfigError, DataError, FeatherFaceError
from featherface.images import fitted_size, read_image, resize_image, write_file

ByteImage = NDArray[np.uint8]
Label = Callable[[ByteImage, Path], View]

JOURNAL = "labels.jsonl"
PREFIX = "pseudo"


@dataclass(frozen=True)
class UnlabelledPhoto:
    """A photo's path, and its name relative to the folder it was found in."""

    path: Path
    name: Path

    @property
    def key(self) -> str:
        """Unique in the shards, the same in every run, free of dots and slashes."""
        name = self.name.as_posix()
        words = re.sub(r"[^A-Za-z0-9]+", "_", str(self.name.with_suffix("")))[-60:].strip("_")
        return f"{words}-{hashlib.sha1(name.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class Storage:
    """How photos are stored. ``long_side``: larger ones are shrunk to it, pixels; 0: never.

    ``source``: the name under which they will be known; ``quality`` of WebP, 1 to 100;
    ``megabytes``: a shard is closed when it reaches them.
    """

    source: str = "photos"
    long_side: int = 1280
    quality: int = 90
    megabytes: float = 50.0


class LabellingRun:
    """Labels ``photos`` into shards in ``folder``.

    >>> run = LabellingRun(folder, photos, label, Storage(), {"teacher": "..."})
    >>> for photo, problem in run:
    ...     print(photo.path, problem or "done")

    ``settings`` is all that the labels depend on, as JSON: a folder whose labels were made with
    others is refused by ``ConfigError``. Iterating gives each photo, with None or one line on why
    it was left out; the others go on.
    """

    def __init__(
        self,
        folder: Path,
        photos: Sequence[UnlabelledPhoto],
        label: Label,
        storage: Storage,
        settings: dict[str, Any],
    ) -> None:
        self.folder = folder
        self.photos = photos
        self._label = label
        self._storage = storage
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = folder / JOURNAL
        self._known = self._read_journal(json.loads(json.dumps(settings)))
        self._packed = {key for shard in shards_of(folder) for key in keys_of(shard)}

    @property
    def already_packed(self) -> int:
        """How many of the photos lie in finished shards from before."""
        return sum(photo.key in self._packed for photo in self.photos)

    def __iter__(self) -> Iterator[tuple[UnlabelledPhoto, str | None]]:
        packer = _Packer(self.folder, self._storage)
        with packer, self._journal.open("a", encoding="utf-8") as journal:
            for photo in self.photos:
                problem = None
                if photo.key not in self._packed:
                    try:
                        packer.add(self._labelled(photo, journal))
                        self._packed.add(photo.key)
                    except FeatherFaceError as error:
                        problem = " ".join(str(error).split())
                yield photo, problem

    def _labelled(self, photo: UnlabelledPhoto, journal: Any) -> LabelledPhoto:
        image = read_image(photo.path)
        stamp = photo.path.stat().st_size
        row = self._known.get(photo.key)
        if row is None or row["bytes"] != stamp:
            faces = self._label(image, photo.path)
            row = {"key": photo.key, "photo": photo.name.as_posix(), "bytes": stamp}
            row["boxes"] = np.round(faces.boxes.astype(float), 2).tolist()
            row["scores"] = np.round(faces.scores.astype(float), 4).tolist()
            row["landmarks"] = [
                np.round(points.astype(float), 2).tolist() if np.isfinite(points).all() else None
                for points in faces.landmarks
            ]
            journal.write(json.dumps(row) + "\n")
            journal.flush()
        return self._stored(photo, image, row)

    def _stored(
        self, photo: UnlabelledPhoto, image: ByteImage, row: dict[str, Any]
    ) -> LabelledPhoto:
        """The photo and its labels at the size at which they are stored."""
        height, width = image.shape[:2]
        limit = self._storage.long_side
        if limit and max(height, width) > limit:
            image = resize_image(image, *fitted_size(width, height, limit))
        scale = np.array([image.shape[1] / width, image.shape[0] / height], np.float32)
        nowhere = [[np.nan, np.nan]] * 5
        points = np.array([one or nowhere for one in row["landmarks"]], np.float32)
        return LabelledPhoto(
            photo.key,
            self._storage.source,
            image,
            np.array(row["boxes"], np.float32).reshape(-1, 4) * np.tile(scale, 2),
            np.array(row["scores"], np.float32),
            points.reshape(-1, 5, 2) * scale,
        )

    def _read_journal(self, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What is labelled already, by key. Begins the file if there is none."""
        head = json.dumps({"settings": settings}) + "\n"
        if not self._journal.exists():
            if shards_of(self.folder):
                raise ConfigError(
                    f"{self.folder}: holds shards without {JOURNAL}; give another folder"
                )
            self._journal.write_text(head, encoding="utf-8")
            return {}
        lines = self._journal.read_text(encoding="utf-8").split("\n")
        if lines.pop() != "":  # the last line of a killed run: without it, the file goes on
            whole = "".join(line + "\n" for line in lines)
            write_file(self._journal, (whole or head).encode())
        if lines and json.loads(lines[0]).get("settings") != settings:
            raise ConfigError(
                f"{self.folder}: its labels were made with other settings; give another folder, "
                f"or delete it (what they were: the first line of {self._journal})"
            )
        try:
            rows = [json.loads(line) for line in lines[1:]]
            return {row["key"]: row for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._journal}: damaged ({error}); delete the folder") from error


class _Packer:
    """Shards one after the other, each under a temporary name until it is whole."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self._folder = folder
        self._storage = storage
        self._number = len(shards_of(folder))
        self._part = folder / f"{PREFIX}.partial"
        self._shard: tarfile.TarFile | None = None

    def __enter__(self) -> _Packer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
        elif self._shard is not None:
            self._shard.close()
            self._part.unlink(missing_ok=True)

    def add(self, photo: LabelledPhoto) -> None:
        if self._shard is None:
            self._shard = tarfile.open(self._part, "w")  # noqa: SIM115 - open until it is full
        write_sample(self._shard, photo.key, photo, self._storage.quality)
        if self._shard.offset >= self._storage.megabytes * 2**20:
            self._close()

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            self._part.replace(self._folder / f"{PREFIX}-{self._number:05d}.tar")
            self._number += 1


def shards_of(folder: Path) -> list[Path]:
    """The finished shards, in order."""
    return sorted(folder.glob(f"{PREFIX}-*.tar"))


def keys_of(shard: Path) -> list[str]:
    """The keys of a shard's photos, in order; ``DataError`` if it is not a readable tar."""
    try:
        with tarfile.open(shard) as members:
            return [Path(name).stem for name in members.getnames() if name.endswith(".json")]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard}: not a readable shard ({error}); delete it") from error
