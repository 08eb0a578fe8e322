"""WIDER FACE as it is published: a tree of JPEG photos and one text file of faces.

Two label files are read. ``label.txt`` of the RetinaFace authors names a photo in a line
``# PATH`` and then gives one face a line: x, y, width, height, five landmarks as x, y, visibility
(all -1 where absent) and a blur score; files without landmarks hold the four box numbers only.
``wider_face_train_bbx_gt.txt`` (official) gives PATH, the number of faces, then one face a line:
x, y, width, height, blur, expression, illumination, invalid, occlusion, pose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.data.labelled_photo import IGNORED_SCORE, LabelledPhoto
from featherface.data.shards import split_by_key, to_rgb
from featherface.errors import DataError

LABEL_FILES = ("label.txt", "wider_face_train_bbx_gt.txt", "wider_face_val_bbx_gt.txt")
SOURCE = "wider"
BOX_NUMBERS = 4
RETINAFACE_NUMBERS = (BOX_NUMBERS, 19, 20)
OFFICIAL_NUMBERS = 10
INVALID_COLUMN = 7


@dataclass(frozen=True)
class PhotoLabels:
    """The faces of one photo, fields as in :class:`LabelledPhoto`; ``path`` is relative."""

    path: str
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]


class WiderFacePhotos:
    """Random access over a WIDER FACE tree, decoded on demand; stands in for a ``PhotoStore``.

    Attributes:
        keys: str [P], path of each photo below ``images/``.
        sources: str [P], all "wider".
    """

    def __init__(self, folder: Path | str, labels: Path | str | None = None) -> None:
        """Read the labels of ``folder``, which holds ``images/`` and a label file.

        Args:
            labels: the label file; by default the first of ``LABEL_FILES`` in ``folder`` or above.

        Raises:
            DataError: no such folder or label file, or a malformed line.
        """
        self.folder = Path(folder)
        self.images = self.folder / "images"
        if not self.images.is_dir():
            raise DataError(f"{self.folder}: no folder images/ in it; give the one that holds it")
        self.labels = read_labels(find_labels(self.folder) if labels is None else Path(labels))
        self.keys = np.array([photo.path for photo in self.labels], np.str_)
        self.sources = np.full(len(self.labels), SOURCE)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledPhoto:
        """Photo ``index``.

        Raises:
            DataError: the photo is missing or cannot be decoded.
        """
        labels = self.labels[int(index)]
        path = self.images / labels.path
        try:
            encoded = np.fromfile(path, np.uint8)
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        except (OSError, cv2.error):
            image = None
        if image is None:
            raise DataError(f"{path}: missing or not a readable picture; unpack WIDER FACE anew")
        return LabelledPhoto(
            labels.path, SOURCE, to_rgb(image), labels.boxes, labels.scores, labels.landmarks
        )

    def __iter__(self) -> Iterator[LabelledPhoto]:
        return (self[index] for index in range(len(self)))

    def split(
        self, validation_fraction: float = 0.04, seed: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the training and of the validation photos, by a hash of each path."""
        return split_by_key(self.keys, validation_fraction, seed)


def find_labels(folder: Path) -> Path:
    """The label file of a WIDER FACE folder, in it or beside it.

    Raises:
        DataError: there is none.
    """
    for place in (folder, folder.parent, folder.parent / "wider_face_split"):
        for name in LABEL_FILES:
            if (place / name).is_file():
                return place / name
    raise DataError(f"{folder}: no label file; put {' or '.join(LABEL_FILES[:2])} beside images/")


def read_labels(path: Path) -> list[PhotoLabels]:
    """Read either kind of label file; a first line that begins with ``#`` tells which it is.

    Raises:
        DataError: the file is missing, empty or malformed; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise DataError(f"{path}: empty; a label file of WIDER FACE is expected")
    return read_retinaface(path, lines) if first.startswith("#") else read_official(path, lines)


def read_retinaface(path: Path, lines: list[str]) -> list[PhotoLabels]:
    """Photos of a ``label.txt`` with ``# PATH`` headers; arguments as in :func:`read_official`."""
    photos: list[tuple[str, list[list[float]]]] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            name = line[1:].strip()
            if not name:
                raise DataError(f"{path}:{number}: no path after #")
            photos.append((name, []))
        elif line.strip():
            if not photos:
                raise DataError(f"{path}:{number}: a face before the first # PATH")
            photos[-1][1].append(read_numbers(path, number, line, RETINAFACE_NUMBERS))
    return [from_retinaface(name, rows) for name, rows in photos]


def from_retinaface(name: str, rows: list[list[float]]) -> PhotoLabels:
    """Labels from rows of 4, 19 or 20 numbers."""
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    landmarks = np.full((len(rows), 5, 2), np.nan, np.float32)
    for place, row in enumerate(rows):
        if len(row) > BOX_NUMBERS:
            points = np.array(row[4:19], np.float32).reshape(5, 3)[:, :2]
            if (points >= 0).all():
                landmarks[place] = points
    return with_corners(name, boxes, np.zeros(len(rows), bool), landmarks)


def read_official(path: Path, lines: list[str]) -> list[PhotoLabels]:
    """Photos of a ``wider_face_*_bbx_gt.txt``.

    Args:
        path: named in errors.
        lines: the file's lines.
    """
    photos: list[PhotoLabels] = []
    at = 0
    while at < len(lines):
        name = lines[at].strip()
        if not name:
            at += 1
            continue
        if "." not in Path(name).name or at + 1 >= len(lines):
            raise DataError(f"{path}:{at + 1}: the path of a photo is expected, not {name[:60]!r}")
        count_text = lines[at + 1].strip()
        if not count_text.isdecimal():
            raise DataError(f"{path}:{at + 2}: a number of faces is expected, not {count_text!r}")
        # A photo without faces still has one line of zeros.
        count = int(count_text)
        begin = at + 2
        end = begin + max(count, 1)
        if begin + count > len(lines):
            raise DataError(f"{path}:{len(lines)}: ends within the {count} faces of {name}")
        faces = [
            read_numbers(path, begin + row + 1, lines[begin + row], (OFFICIAL_NUMBERS,))
            for row in range(count)
        ]
        table = np.array(faces, np.float32).reshape(-1, OFFICIAL_NUMBERS)
        invalid = table[:, INVALID_COLUMN] == 1
        landmarks = np.full((count, 5, 2), np.nan, np.float32)
        photos.append(with_corners(name, table[:, :4], invalid, landmarks))
        if count == 0 and not (begin < len(lines) and set(lines[begin].split()) == {"0"}):
            end = begin
        at = end
    return photos


def read_numbers(path: Path, line_number: int, line: str, counts: tuple[int, ...]) -> list[float]:
    """The numbers of a face's line, which has to hold one of ``counts`` of them."""
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        raise DataError(f"{path}:{line_number}: not numbers: {line.strip()[:60]!r}") from None
    if len(numbers) not in counts or not np.isfinite(numbers).all():
        expected = " or ".join(str(count) for count in counts)
        raise DataError(
            f"{path}:{line_number}: {expected} finite numbers a face expected, {len(numbers)} found"
        )
    return numbers


def with_corners(
    name: str,
    boxes: NDArray[np.float32],
    invalid: NDArray[np.bool_],
    landmarks: NDArray[np.float32],
) -> PhotoLabels:
    """Labels from boxes as x, y, width, height [N, 4].

    Faces that are flagged invalid get an ignored score; boxes without area are left out.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    scores = np.where(invalid, np.float32(IGNORED_SCORE), np.float32(1))
    real = (boxes[:, 2:] > 0).all(1)
    return PhotoLabels(name, corners[real], scores[real].astype(np.float32), landmarks[real])
