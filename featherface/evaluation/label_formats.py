"""Labelled photos from a folder: our JSON, COCO, YOLO or Pascal VOC, found by what lies there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.errors import DataError

FORMATS: tuple[str, ...] = ("json", "coco", "yolo", "voc")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class LabelledPhoto:
    """One photo and its labelled faces, in pixels of a photo of ``size`` = (width, height).

    ``boxes`` float64 ``[N, 4]`` as x1, y1, x2, y2; ``ignored`` bool ``[N]`` marks difficult faces
    and crowds; ``landmarks`` float64 ``[N, 5, 2]``, NaN where a face has none.
    """

    path: Path
    size: tuple[int, int]
    boxes: NDArray[np.float64]
    ignored: NDArray[np.bool_]
    landmarks: NDArray[np.float64]


def find_format(folder: str | Path) -> str:
    """``json``, ``coco``, ``yolo`` or ``voc``, by what lies there; ``DataError`` if nothing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give a folder of photos and labels")
    if (folder / "ground_truth.json").is_file():
        return "json"
    if _coco_file(folder):
        return "coco"
    if (folder / "Annotations").is_dir() or next(folder.glob("*.xml"), None):
        return "voc"
    if (folder / "labels").is_dir():
        return "yolo"
    raise DataError(
        f"{folder} holds no labels that are known: ground_truth.json, a COCO JSON, labels/*.txt "
        "(YOLO) or Annotations/*.xml (Pascal VOC)"
    )


def read_labelled_folder(
    folder: str | Path, label_format: str | None = None
) -> list[LabelledPhoto]:
    """Read every labelled photo of ``folder``, sorted by path. ``label_format`` None finds it.

    Raises ``DataError`` for an unknown format, a photo that is missing, and malformed labels, each
    with its file.
    """
    folder = Path(folder)
    label_format = label_format or find_format(folder)
    readers = {"json": _read_json, "coco": _read_coco, "yolo": _read_yolo, "voc": _read_voc}
    if label_format not in readers:
        raise DataError(f"Unknown label format {label_format!r}: one of {', '.join(FORMATS)}")
    photos = sorted(readers[label_format](folder), key=lambda photo: photo.path)
    if not photos:
        raise DataError(f"{folder} holds no labelled photos in the {label_format} format")
    return photos


def _read_json(folder: Path) -> Iterable[LabelledPhoto]:
    path = folder / "ground_truth.json"
    entries = _load_json(path)
    if not isinstance(entries, dict):
        raise DataError(f"{path} should be an object of photo name to faces")
    pictures = _Pictures(folder)
    for name, entry in entries.items():
        where = f"{path}: photo {name}"
        try:
            size = (int(entry["width"]), int(entry["height"]))
            boxes = entry["boxes"]
            landmarks = entry.get("landmarks")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where} needs width, height and boxes ({error!r})") from error
        yield _photo(where, pictures.find(name), size, boxes, None, landmarks)


def _coco_file(folder: Path) -> Path | None:
    places = (folder / "annotations", folder)
    for place in places:
        for path in sorted(place.glob("*.json")):
            if "coco" in path.name or "instances" in path.name or place.name == "annotations":
                return path
            if path.name == "annotations.json":
                return path
    return None


def _read_coco(folder: Path) -> Iterable[LabelledPhoto]:
    path = _coco_file(folder)
    if path is None:
        raise DataError(f"{folder} holds no COCO file: annotations/*.json or annotations.json")
    content = _load_json(path)
    pictures = _Pictures(folder)
    try:
        faces_of: dict[Any, list[dict[str, Any]]] = {i["id"]: [] for i in content["images"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in faces_of:
                raise DataError(
                    f"{path}: annotation {annotation.get('id')} is for image "
                    f"{annotation['image_id']}, which the file does not list"
                )
            faces_of[annotation["image_id"]].append(annotation)
        for image in content["images"]:
            faces = faces_of[image["id"]]
            boxes = [[x, y, x + w, y + h] for x, y, w, h in (face["bbox"] for face in faces)]
            yield _photo(
                f"{path}: image {image['file_name']}",
                pictures.find(image["file_name"]),
                (int(image["width"]), int(image["height"])),
                boxes,
                [bool(face.get("iscrowd", 0)) for face in faces],
                [_coco_keypoints(face.get("keypoints")) for face in faces],
            )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no COCO detection file ({error!r})") from error


def _coco_keypoints(values: list[float] | None) -> list[float] | None:
    if values is None or len(values) != 15:
        return None
    points = np.asarray(values, np.float64).reshape(5, 3)
    return None if (points[:, 2] <= 0).any() else points[:, :2].reshape(-1).tolist()


def _read_yolo(folder: Path) -> Iterable[LabelledPhoto]:
    for picture in _Pictures(folder).all():
        labels = picture.with_suffix(".txt")
        if "images" in picture.parts[:-1]:
            parts = list(picture.parts)
            parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
            labels = Path(*parts).with_suffix(".txt")
        elif (folder / "labels").is_dir():
            labels = folder / "labels" / f"{picture.stem}.txt"
        width, height = _picture_size(picture)
        boxes, landmarks = [], []
        # By YOLO's custom a photo without a label file is a photo without faces.
        lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = [float(value) for value in line.split()]
            except ValueError:
                values = []
            if len(values) not in (5, 15, 20):
                raise DataError(
                    f"{labels}:{number}: expected 'class x y width height' and at most five "
                    f"landmarks, found {line[:60]!r}"
                )
            x, y, w, h = values[1:5]
            boxes.append(
                [
                    (x - w / 2) * width,
                    (y - h / 2) * height,
                    (x + w / 2) * width,
                    (y + h / 2) * height,
                ]
            )
            landmarks.append(_yolo_keypoints(values[5:], width, height))
        yield _photo(str(labels), picture, (width, height), boxes, None, landmarks)


def _yolo_keypoints(values: list[float], width: int, height: int) -> list[float] | None:
    if not values:
        return None
    points = np.asarray(values).reshape(5, -1)
    if (points.shape[1] == 3 and (points[:, 2] <= 0).any()) or (points[:, :2] < 0).any():
        return None
    return (points[:, :2] * [width, height]).reshape(-1).tolist()


def _read_voc(folder: Path) -> Iterable[LabelledPhoto]:
    labels = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    pictures = _Pictures(folder)
    for path in sorted(labels.glob("*.xml")):
        try:
            root = ElementTree.parse(path).getroot()
            size = (int(_text(root, "size/width")), int(_text(root, "size/height")))
            faces = root.findall("object")
            boxes = [
                [float(_text(face, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
                for face in faces
            ]
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError(f"{path} is no Pascal VOC annotation: {error}") from error
        difficult = [(face.findtext("difficult") or "0").strip() == "1" for face in faces]
        name = (root.findtext("filename") or "").strip() or path.stem
        yield _photo(str(path), pictures.find(name, path.stem), size, boxes, difficult, None)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"{path} is missing")
    return text


class _Pictures:
    """The pictures under a folder, found by name with or without folder and suffix."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES
        )
        self._by_name = {path.name: path for path in self._paths}
        self._by_stem = {path.stem: path for path in self._paths}

    def all(self) -> list[Path]:
        return self._paths

    def find(self, *names: str) -> Path:
        for name in names:
            exact = self._folder / name
            if exact.suffix.lower() in PICTURE_SUFFIXES and exact.is_file():
                return exact
            base = Path(name).name
            path = self._by_name.get(base) or self._by_stem.get(base)
            path = path or self._by_stem.get(Path(name).stem)
            if path:
                return path
        raise DataError(f"{self._folder} lacks the labelled photo {names[0]}")


def _picture_size(path: Path) -> tuple[int, int]:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise DataError(f"{path} is no picture that OpenCV can read: repair or remove it")
    return picture.shape[1], picture.shape[0]


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error


def _photo(
    where: str,
    path: Path,
    size: tuple[int, int],
    boxes: Any,
    ignored: list[bool] | None,
    landmarks: Any,
) -> LabelledPhoto:
    try:
        box_array = np.asarray(boxes, np.float64).reshape(-1, 4)
        points = np.full((len(box_array), 5, 2), math.nan)
        for row, values in enumerate(landmarks or []):
            if values is not None:
                points[row] = np.asarray(values, np.float64).reshape(5, 2)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{where} has malformed boxes or landmarks: {error}") from error
    if not np.isfinite(box_array).all():
        raise DataError(f"{where} has a box that is not finite: correct the labels")
    if (box_array[:, 2:] < box_array[:, :2]).any():
        raise DataError(f"{where} has a box whose right or bottom lies before its left or top")
    if min(size) < 1:
        raise DataError(f"{where} has the impossible size {size[0]}x{size[1]}")
    skip = np.zeros(len(box_array), bool) if ignored is None else np.asarray(ignored, bool)
    return LabelledPhoto(path, size, box_array, skip, points)
