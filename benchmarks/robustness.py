"""What each detector loses on spoiled photos: light, blur, grain, turned and hidden faces, writing.

    python -m benchmarks.robustness --data data/train model.onnx peers/yunet_n.onnx

Every held-out photo is spoiled in one way at a time, the same for every detector, and AP at IoU 0.5
is measured against its labels. An ONNX file that is named like a detector of ``benchmarks.peers``
is run as that, any other as one of ours. Writes ``robustness.json`` and ``robustness.md``. Three
minutes a detector with ``--every 4``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.comparison import (
    Cache,
    Data,
    Out,
    Weights,
    detector_name,
    detector_table,
    open_detector,
    write_comparison,
)
from featherface.data.crop_geometry import Labels, rotate, stretch
from featherface.data.labelled_photo import FACE_SCORE
from featherface.data.pixel_changes import store_jpeg
from featherface.data.shards import PhotoStore
from featherface.evaluation.validation import held_out_photos, score_validation
from featherface.evaluation.views import detect_in_views

Image = NDArray[np.uint8]
Spoil = Callable[[Image, Labels, np.random.Generator], tuple[Image, Labels]]


def nothing(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """The photo as it is."""
    return image, labels


def enlarged(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Stored small as a JPEG of quality 85, and enlarged again."""
    height, width = image.shape[:2]
    small = (max(1, int(width * 0.45)), max(1, int(height * 0.6)))
    shrunk = store_jpeg(cv2.resize(image, small, interpolation=cv2.INTER_AREA), 85)
    return np.asarray(cv2.resize(shrunk, (width, height)), np.uint8), labels


def blurred(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Out of focus, sigma 2 pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 2.0), np.uint8), labels


def dark(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Night: gamma 2.5, half as bright, noise of 6 levels."""
    night = 255 * (image / 255.0) ** 2.5 * 0.5 + rng.normal(0, 6, image.shape)
    return np.clip(night, 0, 255).astype(np.uint8), labels


def hazy(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Contrast of 0.3 about a light grey."""
    return np.clip(image * 0.3 + 130, 0, 255).astype(np.uint8), labels


def over_exposed(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Half as bright again and 50 levels more, cut at white."""
    return np.clip(image * 1.5 + 50, 0, 255).astype(np.uint8), labels


def hard(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Contrast of 2.5 about the middle grey."""
    return np.clip((image - 127.5) * 2.5 + 127.5, 0, 255).astype(np.uint8), labels


def blue(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Stage light: 0.3 of the red and 0.4 of the green."""
    return np.clip(image * np.array([0.3, 0.4, 1.0]), 0, 255).astype(np.uint8), labels


def half_lit(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """A quarter of the light right of the first face's middle."""
    lit = image.copy()
    middle = int(labels.boxes[0, [0, 2]].mean()) if len(labels.boxes) else image.shape[1] // 2
    lit[:, max(middle, 0) :] //= 4
    return lit, labels


def grainy(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Noise of 30 levels in each channel."""
    grain = rng.normal(0, 30, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8), labels


def shaken(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Moved by 9 pixels to the side while it was exposed."""
    return np.asarray(cv2.blur(image, (9, 1)), np.uint8), labels


def wide(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """1.5 times as wide as it was, as a film squeezed onto a screen."""
    return stretch(image, labels, round(image.shape[1] * 1.5), image.shape[0])


def lettered(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Twelve words of capitals across it."""
    height, width = image.shape[:2]
    written = image.copy()
    for _ in range(12):
        word = "".join(map(chr, rng.integers(65, 91, 10)))
        place = int(rng.integers(width)) - width // 4, int(rng.integers(20, height))
        colour = rng.integers(0, 256, 3).tolist()
        size = height / 500
        thick = max(1, round(2 * size))
        cv2.putText(written, word, place, cv2.FONT_HERSHEY_COMPLEX, size, colour, thick)
    return written, labels


def on_its_side(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Turned by 90 degrees, as a phone writes it and a program forgets to turn it back."""
    height, width = image.shape[:2]
    return rotate(image, labels, -90.0, height, width)


def turned(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """Turned by 35 degrees, on a canvas that holds all of it."""
    height, width = image.shape[:2]
    side = int(np.ceil(np.hypot(height, width)))
    top, left = (side - height) // 2, (side - width) // 2
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[top : top + height, left : left + width] = image
    shift = np.array([left, top], np.float32)
    moved = Labels(labels.boxes + np.tile(shift, 2), labels.scores, labels.landmarks + shift)
    return rotate(canvas, moved, 35.0, side, side)


def hidden(image: Image, labels: Labels, rng: np.random.Generator) -> tuple[Image, Labels]:
    """The lower or the upper half of every face of 12 pixels and more under a patch of a colour."""
    covered = image.copy()
    for box in labels.boxes[(labels.boxes[:, 2:] - labels.boxes[:, :2]).min(1) >= 12]:
        x1, y1, x2, y2 = np.rint(box).astype(int)
        middle = (y1 + y2) // 2
        y1, y2 = (middle, y2) if rng.random() < 0.7 else (y1, middle - (y2 - y1) // 8)
        covered[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = rng.integers(0, 256, 3)
    return covered, labels


SPOILED: dict[str, Spoil] = {
    "as it is": nothing,
    "small JPEG enlarged": enlarged,
    "blurred": blurred,
    "dark": dark,
    "hazy": hazy,
    "over-exposed": over_exposed,
    "hard contrast": hard,
    "blue light": blue,
    "half lit": half_lit,
    "grainy": grainy,
    "shaken": shaken,
    "stretched": wide,
    "with writing": lettered,
    "turned by 35 degrees": turned,
    "on its side": on_its_side,
    "half hidden": hidden,
}


def main(
    weights: Weights,
    data: Data,
    cache: Cache = Path("cache"),
    out: Out = Path("results"),
    every: Annotated[int, typer.Option(min=1, help="take one held-out photo of so many")] = 1,
) -> None:
    """Measure and write."""
    store = PhotoStore(data, cache)
    indices = list(held_out_photos(store))[::every]
    figures: dict[str, dict[str, dict[str, float]]] = {}
    faces = 0
    for path in weights:
        detect = open_detector(path)
        rows = figures[detector_name(path)] = {}
        for way, spoil in SPOILED.items():
            rng = np.random.default_rng(zlib.crc32(way.encode()))
            found, boxes, doubtful = [], [], []
            for index in indices:
                photo = store[index]
                labels = Labels(photo.boxes, photo.scores, photo.landmarks)
                image, labels = spoil(photo.image, labels, rng)
                found.append(detect_in_views(detect, np.ascontiguousarray(image)).rows())
                boxes.append(labels.boxes.astype(np.float64))
                doubtful.append(labels.scores < FACE_SCORE)
            result = score_validation(found, boxes, doubtful)
            faces = result.faces
            rows[way] = {"all": result.ap, **{k: v.ap for k, v in result.by_size.items()}}
            print(path, way, {k: round(100 * v, 1) for k, v in rows[way].items()}, flush=True)
    written = {"photos": len(indices), "faces": faces, "ap50": figures}
    write_comparison(out, "robustness", written, markdown(written))


def markdown(result: dict[str, Any]) -> str:
    """The table: all faces, and in brackets those of 16 to 32 pixels."""
    ways = list(SPOILED)
    rows = {
        name: [f"{100 * row[way]['all']:.1f} ({100 * row[way]['16-32']:.1f})" for way in ways]
        for name, row in result["ap50"].items()
    }
    note = (
        f"AP at IoU 0.5 in percent on {result['photos']} held-out photos with {result['faces']} "
        "faces, in brackets on faces of 16 to 32 pixels."
    )
    return detector_table(ways, rows, note)


if __name__ == "__main__":
    typer.run(main)
