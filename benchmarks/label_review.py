"""Draw labels of the training shards at random, by how sure they are, for a person to judge.

    python -m benchmarks.label_review --data data/train --out runs/label_review

writes one contact sheet for each band of the label's score: fifty faces, each in the middle of its
surroundings, with its box and the number to note it by. Photos are chosen first, then a face in
each, so that no crowd fills a sheet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.shards import PhotoStore

BANDS = ((0.15, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 1.01))
TILE = 128
COLUMNS = 10


def main(
    data: Annotated[Path, typer.Option(help="folder of shards")],
    out: Annotated[Path, typer.Option(help="folder for the sheets")] = Path("runs/label_review"),
    cache: Annotated[Path, typer.Option(help="where decoded photos are kept")] = Path("cache"),
    number: Annotated[int, typer.Option(help="faces a sheet")] = 50,
    seed: Annotated[int, typer.Option(help="another seed draws others")] = 0,
) -> None:
    """Write ``score_LOW_HIGH.png`` for each band of scores."""
    store = PhotoStore(data, cache)
    out.mkdir(parents=True, exist_ok=True)
    for low, high in BANDS:
        rng = np.random.default_rng(seed)
        tiles: list[NDArray[np.uint8]] = []
        for index in rng.permutation(len(store)):
            photo = store[int(index)]
            faces = np.flatnonzero((photo.scores >= low) & (photo.scores < high))
            if len(faces):
                tiles.append(draw_tile(photo, int(rng.choice(faces)), len(tiles)))
            if len(tiles) == number:
                break
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
        rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
        path = out / f"score_{low:g}_{high:.1g}.png"
        cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])
        typer.echo(f"{path}: {number} faces labelled {low:g} to {high:.1g}")


def draw_tile(photo: LabelledPhoto, face: int, number: int) -> NDArray[np.uint8]:
    """The face at three times its size around it, box and ``number`` drawn; uint8 RGB."""
    x1, y1, x2, y2 = (float(value) for value in photo.boxes[face])
    scale = TILE / max(3 * max(x2 - x1, y2 - y1), 24)
    centre = np.array([x1 + x2, y1 + y2]) / 2
    shift = TILE / 2 - scale * centre
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    tile = cv2.warpAffine(photo.image, matrix, (TILE, TILE), flags=cv2.INTER_LINEAR)
    corners = [round(scale * v + shift[i % 2]) for i, v in enumerate((x1, y1, x2, y2))]
    cv2.rectangle(tile, corners[:2], corners[2:], (60, 220, 60), 1)
    label = f"{number} {photo.source}"
    cv2.putText(tile, label, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 0), 1, cv2.LINE_AA)
    cv2.rectangle(tile, (0, 0), (TILE - 1, TILE - 1), (0, 0, 0), 1)
    return np.asarray(tile, np.uint8)


if __name__ == "__main__":
    typer.run(main)
