"""A detector measured on any labelled folder.

evaluate_voc(detect, "masks")              # AP50 alone, a float
result = evaluate_folder(detect, "masks")  # everything, see FolderResult
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.errors import DataError
from featherface.evaluation.average_precision import VocMatches, match_voc
from featherface.evaluation.coco_metrics import CocoAp, coco_average_precision
from featherface.evaluation.label_formats import LabelledPhoto, read_labelled_folder
from featherface.evaluation.views import (
    FoundFaces,
    Image,
    Views,
    detect_in_views,
    read_rgb,
    resize_bilinear,
)
from featherface.faces import Detect

Progress = Callable[[Sequence[LabelledPhoto]], Iterable[LabelledPhoto]]

OPERATING_SCORE = 0.5
SIZE_EDGES: tuple[float, ...] = (0, 8, 16, 32, 64, 128, 256, float("inf"))


@dataclass(frozen=True)
class SizeRecall:
    """Recall of the faces whose size, sqrt(width * height), is in ``low`` to ``high`` pixels.

    ``recall`` counts the faces found at the operating score, ``recall_any_score`` all that were
    found; both are NaN where ``faces`` is 0.
    """

    low: float
    high: float
    faces: int
    recall: float
    recall_any_score: float

    @property
    def name(self) -> str:
        """Such as ``16-32`` or ``256+``."""
        return f"{self.low:g}+" if np.isinf(self.high) else f"{self.low:g}-{self.high:g}"


@dataclass(frozen=True, eq=False)
class FolderResult:
    """What a detector does on a labelled folder; fractions 0..1, NaN where nothing can be said.

    ``precision``, ``recall`` and ``false_positives_per_photo`` are taken at ``operating_score``.
    ``nme``: mean distance of the five landmarks to the labelled ones, over sqrt(width * height) of
    the labelled box, over the ``nme_faces`` faces that have landmarks and are found at
    ``operating_score``.
    """

    views: Views
    operating_score: float
    voc_ap50: float
    coco: CocoAp
    precision: float
    recall: float
    false_positives_per_photo: float
    recall_by_size: tuple[SizeRecall, ...]
    nme: float
    nme_faces: int
    photos: Sequence[LabelledPhoto]
    found: Sequence[FoundFaces]
    matches: VocMatches

    def as_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "photos": len(self.photos),
            "faces": self.matches.faces,
            "views": self.views.describe(),
            "ap50_voc": self.voc_ap50,
            "ap50_coco": self.coco.ap50,
            "ap50_95_coco": self.coco.ap50_95,
            "operating_score": self.operating_score,
            "precision": self.precision,
            "recall": self.recall,
            "false_positives_per_photo": self.false_positives_per_photo,
            "nme": self.nme,
            "nme_faces": self.nme_faces,
            "recall_by_size": {
                part.name: {
                    "faces": part.faces,
                    "recall": part.recall,
                    "recall_any_score": part.recall_any_score,
                }
                for part in self.recall_by_size
            },
        }

    def as_markdown(self) -> str:
        """Two Markdown tables: the figures, and recall by face size."""
        at = f"at score {self.operating_score:g}"
        rows = [
            ("photos / faces", f"{len(self.photos)} / {self.matches.faces}"),
            ("shown as", self.views.describe()),
            ("AP50, PASCAL VOC", _percent(self.voc_ap50)),
            ("AP50, COCO", _percent(self.coco.ap50)),
            ("AP50:95, COCO", _percent(self.coco.ap50_95)),
            (f"precision {at}", _percent(self.precision)),
            (f"recall {at}", _percent(self.recall)),
            (f"false positives a photo {at}", f"{self.false_positives_per_photo:.2f}"),
        ]
        if self.nme_faces:
            rows.append((f"landmark error (NME, {self.nme_faces} faces)", _percent(self.nme)))
        lines = ["| figure | value |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), ""]
        lines += [f"| face size, pixels | faces | recall {at} | recall, any score |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| {part.name} | {part.faces} | {_percent(part.recall)} | "
            f"{_percent(part.recall_any_score)} |"
            for part in self.recall_by_size
        ]
        return "\n".join(lines) + "\n"


def evaluate_folder(
    detect: Detect,
    folder: str | Path,
    views: Views | None = None,
    label_format: str | None = None,
    operating_score: float = OPERATING_SCORE,
    progress: Progress | None = None,
) -> FolderResult:
    """Measure ``detect`` on ``folder``; ``views`` defaults to a long side of 640 pixels.

    ``detect`` takes uint8 RGB ``[H, W, 3]`` and should return faces down to a score of 0.02.
    Raises ``DataError`` for bad labels, ``MissingExtraError`` without pycocotools.
    """
    views = views or Views((640,))
    photos = read_labelled_folder(folder, label_format)
    return score_photos(
        photos, detect_photos(detect, photos, views, progress), views, operating_score
    )


def score_photos(
    photos: Sequence[LabelledPhoto],
    found: Sequence[FoundFaces],
    views: Views,
    operating_score: float = OPERATING_SCORE,
) -> FolderResult:
    """All figures for faces already ``found`` in ``photos`` (one entry each)."""
    rows = [faces.rows() for faces in found]
    boxes = [photo.boxes for photo in photos]
    ignored = [photo.ignored for photo in photos]
    matches = match_voc(rows, boxes, ignored)
    admitted = int(np.searchsorted(-matches.scores, -operating_score, side="right"))
    hits = int(matches.hit[:admitted].sum())
    nme, nme_faces = _landmark_error(photos, found, matches, admitted)
    return FolderResult(
        views=views,
        operating_score=operating_score,
        voc_ap50=matches.average_precision,
        coco=coco_average_precision(rows, boxes, ignored),
        precision=hits / admitted if admitted else float("nan"),
        recall=hits / matches.faces if matches.faces else float("nan"),
        false_positives_per_photo=(admitted - hits) / len(photos),
        recall_by_size=_recall_by_size(photos, matches, admitted),
        nme=nme,
        nme_faces=nme_faces,
        photos=photos,
        found=found,
        matches=matches,
    )


def found_faces(
    photos: Sequence[LabelledPhoto], matches: VocMatches, admitted: int
) -> list[NDArray[np.bool_]]:
    """Which faces of each photo (bool ``[M]``) the ``admitted`` best detections of the set find."""
    marks = [np.zeros(len(photo.boxes), bool) for photo in photos]
    for row in np.flatnonzero(matches.hit[:admitted]):
        marks[matches.photo[row]][matches.face[row]] = True
    return marks


def face_sizes(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """sqrt(width * height) ``[N]`` of boxes ``[N, 4]``, pixels."""
    return np.sqrt(np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1))


def _recall_by_size(
    photos: Sequence[LabelledPhoto], matches: VocMatches, admitted: int
) -> tuple[SizeRecall, ...]:
    counted = ~np.concatenate([photo.ignored for photo in photos])
    sizes = np.concatenate([face_sizes(photo.boxes) for photo in photos])[counted]
    operating = np.concatenate(found_faces(photos, matches, admitted))[counted]
    any_score = np.concatenate(found_faces(photos, matches, len(matches.hit)))[counted]
    parts = []
    for low, high in itertools.pairwise(SIZE_EDGES):
        inside = (sizes >= low) & (sizes < high)
        total = int(inside.sum())
        recalls = (
            (float(marks[inside].mean()) if total else float("nan"))
            for marks in (operating, any_score)
        )
        parts.append(SizeRecall(low, high, total, *recalls))
    return tuple(parts)


def _landmark_error(
    photos: Sequence[LabelledPhoto],
    found: Sequence[FoundFaces],
    matches: VocMatches,
    admitted: int,
) -> tuple[float, int]:
    errors = []
    for row in np.flatnonzero(matches.hit[:admitted]):
        photo, face = matches.photo[row], matches.face[row]
        landmarks = found[photo].landmarks
        truth = photos[photo].landmarks[face]
        size = face_sizes(photos[photo].boxes[face : face + 1])[0]
        if landmarks is None or not np.isfinite(truth).all() or size == 0:
            continue
        distances = np.linalg.norm(landmarks[matches.index[row]] - truth, axis=1)
        errors.append(distances.mean() / size)
    return (float(np.mean(errors)) if errors else float("nan")), len(errors)


def _percent(fraction: float) -> str:
    return "n/a" if np.isnan(fraction) else f"{100 * fraction:.1f} %"


def evaluate_voc(
    detect: Detect,
    folder: str | Path,
    long_side: int | None = 640,
    label_format: str | None = None,
    progress: Progress | None = None,
) -> float:
    """AP at IoU 0.5 by PASCAL VOC (all points, +1 pixel convention), a fraction 0..1.

    Each photo is resized (bilinear) so that its long side has ``long_side`` pixels; None keeps its
    size. ``detect`` should return faces down to a score of 0.02.
    """
    photos = read_labelled_folder(folder, label_format)
    found = detect_photos(detect, photos, Views((long_side,)), progress)
    return match_voc(
        [faces.rows() for faces in found],
        [photo.boxes for photo in photos],
        [photo.ignored for photo in photos],
    ).average_precision


def detect_photos(
    detect: Detect,
    photos: Sequence[LabelledPhoto],
    views: Views,
    progress: Progress | None = None,
) -> list[FoundFaces]:
    """Detect each photo in ``views``; faces in pixels of the labels."""
    return [
        detect_in_views(detect, read_labelled_photo(photo), views)
        for photo in (progress(photos) if progress else photos)
    ]


def read_labelled_photo(photo: LabelledPhoto) -> Image:
    """Read a photo as uint8 RGB at the size its labels tell; ``DataError`` for another shape."""
    image = read_rgb(photo.path)
    height, width = image.shape[:2]
    if (width, height) == photo.size:
        return image
    if not np.isclose(width / height, photo.size[0] / photo.size[1], rtol=0.02):
        raise DataError(
            f"{photo.path} has {width}x{height} pixels and its labels say "
            f"{photo.size[0]}x{photo.size[1]}: label and photo do not belong together"
        )
    return resize_bilinear(image, photo.size)
