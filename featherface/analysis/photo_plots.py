"""Photos with labels and detections drawn in, and how large their faces are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featherface.analysis.figures import COLOURS, SOFT, new_figure, picture_grid
from featherface.anchors import ANCHOR_SIZES
from featherface.data.labelled_photo import FACE_SCORE, LabelledPhoto, Photos
from featherface.evaluation.labelled_folder import FolderResult, read_labelled_photo
from featherface.evaluation.report import WorstError

LABEL, DOUBTFUL, POINT = (60, 220, 60), (255, 150, 0), (80, 160, 255)
FOUND, WRONG = (80, 190, 80), (230, 60, 60)


def photo_grid(photos: Sequence[LabelledPhoto], columns: int = 4) -> Figure:
    """Labelled photos: faces green, doubtful ones orange, landmarks blue."""
    drawn = [draw_labels(photo) for photo in photos]
    counts = [int((photo.scores >= FACE_SCORE).sum()) for photo in photos]
    titles = [
        f"{photo.source} · {count} face{'s' * (count != 1)}"
        for photo, count in zip(photos, counts, strict=True)
    ]
    return picture_grid(drawn, titles, columns)


def draw_labels(photo: LabelledPhoto) -> NDArray[np.uint8]:
    """A copy of the photo, uint8 RGB ``[H, W, 3]``, with its labels."""
    image = photo.image.copy()
    line = max(1, round(max(image.shape[:2]) / 250))
    for box, score, points in zip(photo.boxes, photo.scores, photo.landmarks, strict=True):
        sure = score >= FACE_SCORE
        draw_box(image, box, LABEL if sure else DOUBTFUL, line)
        if sure and box[2] - box[0] > 20 and np.isfinite(points).all():
            for x, y in points:
                cv2.circle(image, (round(float(x)), round(float(y))), line, POINT, -1)
    return image


def draw_box(
    image: NDArray[np.uint8], box: NDArray[np.floating], colour: tuple[int, int, int], line: int
) -> None:
    """A rectangle around ``box`` (x1, y1, x2, y2), in place."""
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, line, cv2.LINE_AA)


def varied_photos(photos: Photos, count: int) -> list[LabelledPhoto]:
    """``count`` photos, source by source in turn, those with faces."""
    by_source: dict[str, list[int]] = {}
    for index, source in enumerate(photos.sources):
        by_source.setdefault(str(source), []).append(index)
    chosen: list[LabelledPhoto] = []
    step = 0
    while len(chosen) < count and step < len(photos):
        for indices in by_source.values():
            if step >= len(indices) or len(chosen) == count:
                continue
            photo = photos[indices[step]]
            if (photo.scores >= FACE_SCORE).any():
                chosen.append(photo)
        step += 1
    return chosen


def widest_range(photos: Sequence[LabelledPhoto]) -> LabelledPhoto:
    """The photo whose largest face exceeds its smallest by the largest factor."""

    def ratio(photo: LabelledPhoto) -> float:
        sure = photo.boxes[photo.scores >= FACE_SCORE]
        areas = (sure[:, 2:] - sure[:, :2]).prod(1)
        return float(areas.max() / areas.min()) if len(areas) else 0.0

    return max(photos, key=ratio)


def face_sizes_by_source(photos: Photos, at_most: int = 3000) -> dict[str, NDArray[np.float32]]:
    """Root of the area of each face in pixels, by source, from at most so many photos."""
    sizes: dict[str, list[NDArray[np.float32]]] = {}
    for index in range(0, len(photos), max(1, len(photos) // at_most)):
        photo = photos[index]
        extent = (
            photo.boxes[photo.scores >= FACE_SCORE, 2:]
            - photo.boxes[photo.scores >= FACE_SCORE, :2]
        )
        sizes.setdefault(photo.source, []).append(np.sqrt(extent.prod(1)))
    return {source: np.concatenate(parts) for source, parts in sizes.items()}


def face_size_plot(sizes: dict[str, NDArray[np.float32]]) -> Figure:
    """Faces by size on a logarithmic axis, stacked by source; dashes mark the anchor sizes."""
    figure, axes = new_figure(width=8.5, height=3.8)
    plot = axes[0, 0]
    filled = {source: values for source, values in sizes.items() if len(values)}
    edges = np.geomspace(4, 600, 34)
    plot.hist(
        list(filled.values()),
        edges.tolist(),
        stacked=True,
        label=list(filled),
        color=[COLOURS[i % len(COLOURS)] for i in range(len(filled))],
    )
    for size in (size for sizes_ in ANCHOR_SIZES for size in sizes_):
        plot.axvline(size, color=SOFT, lw=1, ls="--")
    plot.set_xscale("log", base=2)
    plot.set(xlabel="face size, pixels (dashed: anchors)", ylabel="faces")
    plot.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    plot.legend(frameon=False)
    return figure


def detection_grid(
    result: FolderResult, photos: Sequence[int], columns: int = 3, size: float = 3.6
) -> Figure:
    """Photos of an evaluated folder: labels orange below, what was found green on top."""
    pictures, titles = [], []
    for index in photos:
        photo, found = result.photos[index], result.found[index]
        image = np.ascontiguousarray(read_labelled_photo(photo))
        line = max(1, round(max(image.shape[:2]) / 250))
        sure = found.scores >= result.operating_score
        for box in photo.boxes:
            draw_box(image, box, DOUBTFUL, line + 1)
        for box in found.boxes[sure]:
            draw_box(image, box, FOUND, line)
        pictures.append(image)
        titles.append(f"{Path(photo.path).stem}: {len(photo.boxes)} labelled, {sure.sum()} found")
    return picture_grid(pictures, titles, columns, size)


def easiest_and_hardest(result: FolderResult, count: int = 3) -> list[int]:
    """Indices of photos with faces: ``count`` of the best recall, then ``count`` of the worst."""
    shares = []
    for index, (photo, found) in enumerate(zip(result.photos, result.found, strict=True)):
        if len(photo.boxes):
            sure = int((found.scores >= result.operating_score).sum())
            shares.append((min(sure, len(photo.boxes)) / len(photo.boxes), index))
    shares.sort(reverse=True)
    indices = [index for _, index in shares]
    return indices[:count] + indices[max(count, len(indices) - count) :]


def error_grid(result: FolderResult, errors: Sequence[WorstError], columns: int = 4) -> Figure:
    """The surroundings of misses or false alarms (red), labels orange, detections green."""
    pictures, titles = [], []
    for error in errors:
        photo, found = result.photos[error.photo], result.found[error.photo]
        image = np.ascontiguousarray(read_labelled_photo(photo))
        height, width = image.shape[:2]
        side = float(max(error.box[2] - error.box[0], error.box[3] - error.box[1], 24))
        centre = (error.box[:2] + error.box[2:]) / 2
        left, top = np.clip(centre - 1.5 * side, 0, [width - 1, height - 1]).astype(int)
        right, bottom = np.clip(centre + 1.5 * side, [left + 1, top + 1], [width, height]).astype(
            int
        )
        zoom = 240 / max(right - left, bottom - top)
        cut = cv2.resize(image[top:bottom, left:right], None, fx=zoom, fy=zoom)
        picture = np.asarray(cut, np.uint8)
        shift = np.array([left, top, left, top])
        for box in photo.boxes:
            draw_box(picture, (box - shift) * zoom, DOUBTFUL, 1)
        for box in found.boxes[found.scores >= result.operating_score]:
            draw_box(picture, (box - shift) * zoom, FOUND, 1)
        draw_box(picture, (error.box - shift) * zoom, WRONG, 2)
        pictures.append(picture)
        titles.append(error.caption.split(": ", 1)[1])
    return picture_grid(pictures, titles, columns)
