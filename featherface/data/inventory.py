"""What a collection of photos holds: photos and faces by source, faces by size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featherface.data.labelled_photo import FACE_SCORE, Photos

SIZE_EDGES = (0, 8, 16, 32, 64, 128, 256, 100_000)


@dataclass(frozen=True)
class SourceCount:
    """One source's photos, faces, doubtful boxes, and faces by size in photo pixels.

    ``sizes[k]`` counts the faces whose root of the area lies in SIZE_EDGES[k] to SIZE_EDGES[k + 1].
    """

    source: str
    photos: int
    faces: int
    doubtful: int
    sizes: tuple[int, ...]


def take_inventory(photos: Photos) -> list[SourceCount]:
    """Count the photos of each source, in order of its name, and of all together ("all")."""
    names = sorted({str(name) for name in photos.sources})
    counts = {name: np.zeros(3, int) for name in names}
    sizes = {name: np.zeros(len(SIZE_EDGES) - 1, int) for name in names}
    for index in range(len(photos)):
        photo = photos[index]
        certain = photo.scores >= FACE_SCORE
        extent = photo.boxes[certain, 2:] - photo.boxes[certain, :2]
        counts[photo.source] += 1, int(certain.sum()), int((~certain).sum())
        sizes[photo.source] += np.histogram(np.sqrt(extent.prod(1)), SIZE_EDGES)[0]
    if len(names) > 1:
        counts["all"], sizes["all"] = sum_of(counts), sum_of(sizes)
        names.append("all")
    rows = []
    for name in names:
        photo_count, faces, doubtful = (int(count) for count in counts[name])
        rows.append(SourceCount(name, photo_count, faces, doubtful, tuple(sizes[name].tolist())))
    return rows


def sum_of(rows: dict[str, np.ndarray]) -> np.ndarray:
    """The rows' sum."""
    return np.sum(list(rows.values()), axis=0)
