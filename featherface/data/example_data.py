"""A small data set to try everything on: one face, pasted many times onto drawn grounds.

It has the folders of the real thing, so that whatever runs on it runs on the real thing too:

    FOLDER/train/photos-000.tar                        shards to train on
    FOLDER/wider_mini/images, ground_truth.json        a subset in WIDER FACE's protocol
    FOLDER/labelled/images, ground_truth.json          a labelled folder

The face is the one in the package's example photo (NASA, public domain), flipped, scaled and
brightened; its box and landmarks were set by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.pack import pack
from featherface.images import read_image

PORTRAIT = Path(__file__).parents[1] / "examples" / "astronaut.jpg"
BOX = np.array([176, 54, 266, 178], np.float32)  # of the face in the portrait, pixels
LANDMARKS = np.array(
    [[194, 97], [243, 98], [220, 125], [201, 147], [239, 147]], np.float32
)  # fmt: skip
CUT = (146, 14, 296, 214)  # face and hair: left, top, right, bottom
FLIPPED = (1, 0, 2, 4, 3)
SIDE = 256


@dataclass(frozen=True, eq=False)
class Patch:
    """The face with hair: uint8 RGB ``[H, W, 3]``, opacity ``[H, W, 1]``, box and landmarks."""

    image: NDArray[np.uint8]
    opacity: NDArray[np.float32]
    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]


def make_example_data(folder: Path, photos: int = 32, measured: int = 6, seed: int = 0) -> Path:
    """Draw the set into ``folder`` (nothing is drawn where it is there already) and return it.

    Args:
        photos: to train on. measured: in each of the two measuring sets.
    """
    if (folder / "labelled" / "ground_truth.json").is_file():
        return folder
    rng = np.random.default_rng(seed)
    patch = read_patch()
    pack([draw_photo(patch, n, rng) for n in range(photos)], folder / "train")
    for part in ("wider_mini", "labelled"):
        drawn = [draw_photo(patch, n, rng) for n in range(measured)]
        write_measuring_set(drawn, folder / part)
    return folder


def read_patch() -> Patch:
    """The face of the portrait, cut out along an ellipse with a soft edge."""
    left, top, right, bottom = CUT
    image = read_image(PORTRAIT)[top:bottom, left:right]
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot((columns - width / 2) / (width / 2), (rows - height / 2) / (height / 2))
    opacity = np.clip((1.0 - distance) / 0.12, 0, 1)[..., None].astype(np.float32)
    corner = np.array([left, top], np.float32)
    return Patch(image, opacity, BOX - np.tile(corner, 2), LANDMARKS - corner)


def draw_photo(patch: Patch, number: int, rng: np.random.Generator) -> LabelledPhoto:
    """A ground with one large face, several, or a small crowd; every eighth has none."""
    image = draw_ground(rng)
    kind = number % 8
    source, count, scales = (
        ("crowd", 24, (0.14, 0.4)) if kind in (1, 4) else ("flickr", 3, (0.3, 0.7))
    )
    if kind in (2, 6):
        source, count, scales = "portraits", 1, (0.8, 1.2)
    if kind == 7:
        count = 0
    boxes: list[NDArray[np.float32]] = []
    landmarks = []
    taken: list[tuple[int, int, int, int]] = []
    for _ in range(count):
        for _ in range(20):
            scale = float(np.exp(rng.uniform(*np.log(scales))))
            height, width = (round(side * scale) for side in patch.image.shape[:2])
            x, y = (int(rng.integers(0, max(1, SIDE - side))) for side in (width, height))
            place = (x, y, x + width, y + height)
            if not any(_touch(place, other) for other in taken):
                break
        else:
            continue
        taken.append(place)
        box, points = paste(image, patch, place, flip=bool(rng.random() < 0.5), rng=rng)
        boxes.append(box)
        landmarks.append(points)
    noise = rng.normal(0, 4, image.shape)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    return LabelledPhoto(
        f"drawn-{number:03d}",
        source,
        noisy,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.ones(len(boxes), np.float32),
        np.array(landmarks, np.float32).reshape(-1, 5, 2),
    )


def draw_ground(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A slope of colour with soft shapes on it, uint8 RGB ``[256, 256, 3]``."""
    corners = rng.integers(40, 200, (2, 2, 3)).astype(np.uint8)
    ground = cv2.resize(corners, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    for _ in range(12):
        colour = tuple(int(value) for value in rng.integers(20, 235, 3))
        x, y, a, b = (int(value) for value in rng.integers(0, SIDE, 4))
        if rng.random() < 0.5:
            cv2.rectangle(ground, (x, y), (a, b), colour, 3)
        else:
            cv2.ellipse(ground, (x, y), (a // 6 + 4, b // 6 + 4), a, 0, 360, colour, -1)
    return np.asarray(cv2.GaussianBlur(ground, (0, 0), 1.5), np.uint8)


def paste(
    image: NDArray[np.uint8],
    patch: Patch,
    place: tuple[int, int, int, int],
    flip: bool,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Blend the face into ``image`` at ``place``; its box ``[4]`` and landmarks ``[5, 2]``."""
    left, top, right, bottom = place
    size = (right - left, bottom - top)
    face = cv2.resize(patch.image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    opacity = cv2.resize(patch.opacity, size, interpolation=cv2.INTER_AREA)[..., None]
    scale = np.array(size, np.float32) / np.array(patch.image.shape[1::-1], np.float32)
    box, points = patch.box * np.tile(scale, 2), patch.landmarks * scale
    if flip:
        face, opacity = face[:, ::-1], opacity[:, ::-1]
        box = np.array([size[0] - box[2], box[1], size[0] - box[0], box[3]], np.float32)
        points = (points * [-1, 1] + [size[0], 0])[list(FLIPPED)]
    face = np.clip(face * rng.uniform(0.6, 1.25), 0, 255)
    region = image[top:bottom, left:right]
    region[:] = (region * (1 - opacity) + face * opacity).astype(np.uint8)
    corner = np.array([left, top], np.float32)
    return (box + np.tile(corner, 2)).astype(np.float32), (points + corner).astype(np.float32)


def write_measuring_set(photos: list[LabelledPhoto], folder: Path) -> None:
    """``images/NAME.jpg`` and a ``ground_truth.json`` that both evaluations read."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = {}
    for photo in photos:
        bgr = cv2.cvtColor(photo.image, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / "images" / f"{photo.key}.jpg"), bgr)
        heights = photo.boxes[:, 3] - photo.boxes[:, 1]
        counted = {"easy": 50, "medium": 30, "hard": 10}  # WIDER FACE's smallest heights, about
        entries[photo.key] = {
            "event": f"0--{photo.source}",
            "width": photo.image.shape[1],
            "height": photo.image.shape[0],
            "boxes": photo.boxes.tolist(),
            "landmarks": photo.landmarks.tolist(),
            **{name: np.flatnonzero(heights > low).tolist() for name, low in counted.items()},
        }
    part = folder / "ground_truth.json.partial"
    part.write_text(json.dumps(entries), encoding="utf-8")
    part.replace(folder / "ground_truth.json")


def _touch(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )
