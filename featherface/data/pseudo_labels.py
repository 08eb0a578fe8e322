"""Labels for photos that nobody has labelled: what one or more detectors see, by vote.

Each detector sees a photo at several sizes, mirrored too. Boxes of one face become their
score-weighted mean; a face's score is the mean over the views that could see it, so that what only
one of them believes ends up doubtful.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.boxes import box_iou, non_maximum_suppression
from featherface.errors import DataError
from featherface.faces import MIRRORED_LANDMARKS, Detect
from featherface.images import resize_image

ByteImage = NDArray[np.uint8]
FloatArray = NDArray[np.float32]

SAME_FACE_IOU = 0.45
VOTING_IOU = 0.5
SMALLEST_SEEN = 8.0  # pixels of a view: the longer side of the smallest face it can show
PAIRS = 10_000_000  # of boxes that are compared at once
LANDMARK_SCORE = 0.3  # faces under it get no landmarks


@dataclass(frozen=True, eq=False)
class View:
    """Faces that one view shows, in pixels of the photo.

    ``boxes`` float32 ``[N, 4]``; ``scores`` ``[N]``; ``landmarks`` ``[N, 5, 2]``, NaN where absent.
    ``scale``: pixels of the view for one of the photo.
    """

    boxes: FloatArray
    scores: FloatArray
    landmarks: FloatArray
    scale: float = 1.0


def look(
    detect: Detect,
    image: ByteImage,
    long_sides: Sequence[int],
    mirror: bool = True,
) -> Iterator[View]:
    """The views of ``image`` (uint8 RGB ``[H, W, 3]``) by a detector that does not resize.

    ``long_sides`` in pixels, 0 for the photo's own; each is looked at mirrored too. Landmarks of a
    detector that gives none are NaN.
    """
    height, width = image.shape[:2]
    for side in dict.fromkeys(side or max(height, width) for side in long_sides):
        scale = side / max(height, width)
        shown = resize_image(image, max(1, round(width * scale)), max(1, round(height * scale)))
        size = np.array([shown.shape[1], shown.shape[0]], np.float32)
        back = np.array([width, height], np.float32) / size
        for mirrored in (False, True)[: 1 + mirror]:
            faces = detect(np.ascontiguousarray(shown[:, ::-1]) if mirrored else shown)
            boxes = np.array(faces.boxes, np.float32)
            landmarks = np.full((len(boxes), 5, 2), np.nan, np.float32)
            if faces.landmarks is not None:
                landmarks[:] = faces.landmarks
            if mirrored:
                boxes[:, [0, 2]] = size[0] - boxes[:, [2, 0]]
                landmarks = landmarks[:, MIRRORED_LANDMARKS]
                landmarks[..., 0] = size[0] - landmarks[..., 0]
            yield View(
                boxes * np.tile(back, 2),
                np.array(faces.scores, np.float32),
                landmarks * back,
                scale,
            )


def vote(views: Sequence[View], lowest_score: float) -> View:
    """The faces of a photo, best first, from all its views; those under ``lowest_score`` go."""
    boxes = np.concatenate([view.boxes for view in views])
    scores = np.concatenate([view.scores for view in views])
    landmarks = np.concatenate([view.landmarks for view in views])
    seen_in = np.repeat(np.arange(len(views)), [len(view.scores) for view in views])
    kept = non_maximum_suppression(boxes, scores, SAME_FACE_IOU)
    if len(kept) == 0:
        return View(boxes[:0], scores[:0], landmarks[:0])
    face_of = _face_of_each(boxes, kept)
    scales = np.array([view.scale for view in views])
    voted = []
    for face in range(len(kept)):
        members = np.flatnonzero(face_of == face)
        weights = np.maximum(scores[members], 1e-6)
        box = weights @ boxes[members] / weights.sum()
        heard = np.zeros(len(views))
        np.maximum.at(heard, seen_in[members], scores[members])
        longer_side = float(max(box[2] - box[0], box[3] - box[1]))
        could_see = (heard > 0) | (scales * longer_side >= SMALLEST_SEEN)
        score = float(heard.sum() / max(1, could_see.sum()))
        points = _mean_landmarks(landmarks[members], weights)
        if score < LANDMARK_SCORE:
            points = np.full((5, 2), np.nan, np.float32)
        voted.append((score, box, points))
    voted = sorted((one for one in voted if one[0] >= lowest_score), key=lambda one: -one[0])
    return View(
        np.array([one[1] for one in voted], np.float32).reshape(-1, 4),
        np.array([one[0] for one in voted], np.float32),
        np.array([one[2] for one in voted], np.float32).reshape(-1, 5, 2),
    )


def _face_of_each(boxes: FloatArray, kept: NDArray[np.intp]) -> NDArray[np.intp]:
    """The place in ``kept`` of the face that each of ``boxes`` ``[N, 4]`` votes for, -1 for none.

    In parts: the views of a dense crowd have tens of thousands of boxes for thousands of faces.
    """
    face_of = np.full(len(boxes), -1)
    best = np.full(len(boxes), np.nextafter(VOTING_IOU, 0))  # VOTING_IOU itself is enough
    rows = max(1, PAIRS // len(boxes))
    for start in range(0, len(kept), rows):
        part = kept[start : start + rows]
        overlaps = box_iou(boxes[part], boxes)
        overlaps[np.arange(len(part)), part] = np.inf
        place, most = overlaps.argmax(axis=0), overlaps.max(axis=0)
        closer = most > best
        face_of[closer], best[closer] = start + place[closer], most[closer]
    return face_of


def read_detections(path: Path, width: int, height: int) -> View:
    """What another detector found in a photo of ``width`` x ``height`` pixels, from JSON.

    ``{"faces": [{"box": [x1, y1, x2, y2], "score": 0.9, "landmarks": [[x, y]] * 5}]}``; the score
    is 1 and the landmarks are absent where they are not given. ``width`` and ``height`` in the
    file, if given, are the size of the photo that the coordinates mean.

    Raises ``DataError`` if the file is missing or malformed.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        faces = content["faces"]
        count = len(faces)
        boxes = np.array([face["box"] for face in faces], np.float32).reshape(count, 4)
        scores = np.array([face.get("score", 1.0) for face in faces], np.float32).reshape(count)
        nowhere = [[np.nan, np.nan]] * 5
        points = [np.reshape(face.get("landmarks") or nowhere, (5, 2)) for face in faces]
        landmarks = np.array(points, np.float32).reshape(count, 5, 2)
        own = float(content.get("width", width)), float(content.get("height", height))
        scale = np.array([width / own[0], height / own[1]], np.float32)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give one JSON file a photo") from error
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise DataError(f"{path}: malformed labels ({type(error).__name__}: {error})") from error
    sound = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1) & np.isfinite(scores)
    boxes, landmarks = boxes * np.tile(scale, 2), np.asarray(landmarks * scale, np.float32)
    return View(boxes[sound], scores[sound], landmarks[sound])


def _mean_landmarks(landmarks: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted mean ``[5, 2]`` of those of ``[M, 5, 2]`` that are there; NaN if none is."""
    there = np.isfinite(landmarks).all(axis=(1, 2))
    if not there.any():
        return np.full((5, 2), np.nan, np.float32)
    mean = np.tensordot(weights[there], landmarks[there], axes=1) / weights[there].sum()
    return np.asarray(mean, np.float32)
