"""Average precision as the area under the envelope of precision, and PASCAL VOC's AP50 with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.boxes import box_iou
from featherface.errors import DataError


def envelope_average_precision(
    recall: NDArray[np.floating], precision: NDArray[np.floating]
) -> float:
    """Area under precision's envelope, all points; ``[K]`` each, recall rising; 0..1.

    Source: the PASCAL VOC 2010 development kit (Everingham et al., IJCV 2010).
    """
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


@dataclass(frozen=True, eq=False)
class VocMatches:
    """Every detection of a set, best score first, matched by PASCAL VOC's rules.

    ``scores`` float64 ``[D]``; ``hit`` bool ``[D]``; ``photo`` int ``[D]``, the photo's place in
    the set; ``index`` int ``[D]``, the detection's place in its photo; ``face`` int ``[D]``, the
    face's place in its photo, -1 unless hit. Detections on ignored faces are left out.
    ``faces`` is the number of counted faces.
    """

    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    photo: NDArray[np.int64]
    index: NDArray[np.int64]
    face: NDArray[np.int64]
    faces: int

    @property
    def precision(self) -> NDArray[np.float64]:
        """Precision ``[D]`` after each detection, best score first."""
        return np.cumsum(self.hit) / np.arange(1, len(self.hit) + 1)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Recall ``[D]`` after each detection, best score first."""
        return np.cumsum(self.hit) / max(self.faces, 1)

    @property
    def average_precision(self) -> float:
        """Area under the envelope of precision, a fraction 0..1."""
        return envelope_average_precision(self.recall, self.precision)


def match_voc(
    predictions: Sequence[NDArray[np.floating]],
    faces: Sequence[NDArray[np.floating]],
    ignored: Sequence[NDArray[np.bool_]] | None = None,
    iou_threshold: float = 0.5,
) -> VocMatches:
    """Match the predictions of a set of photos with its faces.

    Per photo, ``predictions`` is ``[N, 5]`` (x1, y1, x2, y2, score) and ``faces`` ``[M, 4]``.

    PASCAL VOC: in score order over the whole set, a detection looks at the face it overlaps most
    (IoU with the +1 pixel convention) and is a hit if that is at least ``iou_threshold`` and the
    face is still free. ``ignored`` (per photo bool ``[M]``) marks difficult faces, which neither
    count nor make a detection false. Equal scores keep their order. Raises ``DataError`` for
    lengths that differ and for values that are not finite.
    """
    if len(predictions) != len(faces):
        raise DataError(f"{len(predictions)} predictions for {len(faces)} photos: give one each")
    if ignored is None:
        ignored = [np.zeros(len(boxes), bool) for boxes in faces]
    columns: list[tuple[NDArray[Any], ...]] = []
    for photo, (found, boxes, skip) in enumerate(zip(predictions, faces, ignored, strict=True)):
        found = np.asarray(found, np.float64).reshape(-1, 5)
        if not np.isfinite(found).all():
            raise DataError(f"A prediction for photo {photo} of the set is not finite")
        if not len(found):
            continue
        order = np.argsort(-found[:, 4], kind="stable")
        face = np.full(len(found), -1)
        left_out = np.zeros(len(found), bool)
        if len(boxes):
            labelled: NDArray[Any] = np.asarray(boxes, np.float64)
            ranked: NDArray[Any] = found[order, :4]
            overlaps = box_iou(ranked, labelled, plus_one=True)
            best = overlaps.argmax(axis=1)
            enough = overlaps.max(axis=1) >= iou_threshold
            left_out = enough & skip[best]
            claims = np.flatnonzero(enough & ~left_out)
            first = claims[np.unique(best[claims], return_index=True)[1]]
            face[first] = best[first]
        kept = ~left_out
        columns.append((found[order, 4][kept], face[kept], np.full(kept.sum(), photo), order[kept]))
    total = int(sum((~skip).sum() for skip in ignored))
    if not columns:
        none = np.empty(0, np.int64)
        return VocMatches(np.empty(0), np.empty(0, bool), none, none, none, total)
    scores, face, photo_of, index = (np.concatenate(c) for c in zip(*columns, strict=True))
    order = np.argsort(-scores, kind="stable")
    face = face[order]
    return VocMatches(scores[order], face >= 0, photo_of[order], index[order], face, total)
