"""The WIDER FACE validation ground truth: the official ``.mat`` files and the JSON subset.

Source: Yang et al., "WIDER FACE: A Face Detection Benchmark", CVPR 2016, and its evaluation files
``wider_face_val.mat``, ``wider_easy_val.mat``, ``wider_medium_val.mat``, ``wider_hard_val.mat``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.errors import DataError, MissingExtraError

DIFFICULTIES: tuple[str, ...] = ("easy", "medium", "hard")
MAT_FILES: tuple[str, ...] = (
    "wider_face_val.mat", "wider_easy_val.mat", "wider_medium_val.mat", "wider_hard_val.mat",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class WiderPhoto:
    """One photo and its faces.

    ``boxes`` float64 ``[N, 4]`` as x1, y1, x2, y2 in original pixels; ``counted`` maps each
    difficulty to bool ``[N]``: True where the face counts, False where it is ignored.
    ``size`` is (width, height) where the source tells it.
    """

    event: str
    name: str
    boxes: NDArray[np.float64]
    counted: Mapping[str, NDArray[np.bool_]]
    size: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """``event/name``, by which predictions are looked up."""
        return f"{self.event}/{self.name}"


def read_official_ground_truth(folder: str | Path) -> list[WiderPhoto]:
    """Read the four official ``.mat`` files of ``folder``; 3,226 photos in the files' order.

    Raises ``DataError`` for a missing or unreadable file and for files that do not belong
    together, ``MissingExtraError`` without SciPy.
    """
    folder = Path(folder)
    faces = _load_mat(folder / MAT_FILES[0], ("event_list", "file_list", "face_bbx_list"))
    events = [str(cell[0][0]) for cell in faces["event_list"]]
    difficulty_lists = {}
    for difficulty, file_name in zip(DIFFICULTIES, MAT_FILES[1:], strict=True):
        lists = _load_mat(folder / file_name, ("gt_list",))["gt_list"]
        if len(lists) != len(events):
            raise DataError(
                f"{folder / file_name} lists {len(lists)} events and {MAT_FILES[0]} "
                f"{len(events)}: take all four files from one release of WIDER FACE"
            )
        difficulty_lists[difficulty] = lists

    photos = []
    for event_index, event in enumerate(events):
        names = [str(cell[0][0]) for cell in faces["file_list"][event_index][0]]
        boxes_of_event = faces["face_bbx_list"][event_index][0]
        keep_of_event = {d: lists[event_index][0] for d, lists in difficulty_lists.items()}
        for lists in (boxes_of_event, *keep_of_event.values()):
            if len(lists) != len(names):
                raise DataError(
                    f"{folder}: event {event} has {len(names)} photos but {len(lists)} entries "
                    "in a ground truth list: take all four files from one release of WIDER FACE"
                )
        for photo_index, name in enumerate(names):
            corner_and_size = boxes_of_event[photo_index][0].astype(np.float64).reshape(-1, 4)
            boxes = corner_and_size.copy()
            boxes[:, 2:] += boxes[:, :2]
            counted = {
                difficulty: _mask(
                    keep[photo_index][0].astype(np.int64).reshape(-1) - 1,
                    len(boxes),
                    f"{folder}: {difficulty} list of {event}/{name}",
                )
                for difficulty, keep in keep_of_event.items()
            }
            photos.append(WiderPhoto(event, name, boxes, counted))
    return photos


def read_subset_ground_truth(folder: str | Path) -> list[WiderPhoto]:
    """Read ``ground_truth.json`` of a subset folder, whose copies lie in ``images/NAME.jpg``.

    The JSON maps a photo's name to ``event``, ``width``, ``height`` (of the original), ``boxes``
    (x1, y1, x2, y2 in original pixels) and for each difficulty the indices of counted faces.
    Raises ``DataError`` where the file is missing or does not have this form.
    """
    path = Path(folder) / "ground_truth.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: a subset folder holds ground_truth.json") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{path} names no photos: expected an object of photo name to faces")
    return [_subset_photo(path, name, entry) for name, entry in entries.items()]


def _subset_photo(path: Path, name: str, entry: Any) -> WiderPhoto:
    where = f"{path}: photo {name}"
    try:
        boxes = np.asarray(entry["boxes"], np.float64).reshape(-1, 4)
        size = (int(entry["width"]), int(entry["height"]))
        event = str(entry["event"])
        kept = {d: np.asarray(entry[d], np.int64).reshape(-1) for d in DIFFICULTIES}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} needs event, width, height, boxes [N, 4], easy, medium and hard "
            f"({type(error).__name__}: {error})"
        ) from error
    if not np.isfinite(boxes).all():
        raise DataError(f"{where} has a box that is not finite: correct the ground truth")
    if min(size) < 1:
        raise DataError(f"{where} has the impossible size {size[0]}x{size[1]}")
    counted = {d: _mask(kept[d], len(boxes), f"{where}, {d}") for d in DIFFICULTIES}
    return WiderPhoto(event, name, boxes, counted, size)


def _mask(indices: NDArray[np.int64], faces: int, where: str) -> NDArray[np.bool_]:
    if len(indices) and (indices.min() < 0 or indices.max() >= faces):
        raise DataError(
            f"{where} names a face that is not among the {faces} boxes: "
            "the ground truth files do not belong together"
        )
    mask = np.zeros(faces, bool)
    mask[indices] = True
    return mask


def _load_mat(path: Path, variables: tuple[str, ...]) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise MissingExtraError(
            "Reading .mat files needs SciPy: pip install 'featherface[evaluate]'"
        ) from None
    if not path.is_file():
        raise DataError(f"{path} is missing: the ground truth folder holds {', '.join(MAT_FILES)}")
    try:
        content: dict[str, Any] = loadmat(str(path), variable_names=list(variables))
    except Exception as error:  # SciPy raises many kinds for a broken file
        raise DataError(f"{path} cannot be read as a MATLAB file: {error}") from error
    missing = [name for name in variables if name not in content]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: is it the official file?")
    return content
