"""A page of drawn labels, to look at before anything is trained on them."""

from __future__ import annotations

import base64
import html
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.data.labelled_photo import FACE_SCORE
from featherface.errors import DataError

THUMBNAIL = 480  # pixels, long side
GREEN, ORANGE, YELLOW = (80, 200, 80), (0, 140, 255), (0, 230, 255)  # BGR, as OpenCV draws

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:1rem}
figure{margin:0}img{width:100%}figcaption{font-size:13px;overflow-wrap:anywhere}
dt{float:left;clear:left;width:11rem;color:#555}dd{margin-left:11.5rem}
.face{color:#287a28}.doubtful{color:#b35900}@media(prefers-color-scheme:dark){
body{background:#16181d;color:#e6e6e6}dt{color:#aaa}.face{color:#6cd06c}.doubtful{color:#ff9d3c}}"""


@dataclass(frozen=True)
class ShardedPhoto:
    """Where a photo lies, and its labels as stored."""

    shard: Path
    picture: str
    labels: dict[str, Any]

    @property
    def faces(self) -> int:
        return sum(face["score"] >= FACE_SCORE for face in self.labels["faces"])

    @property
    def doubtful(self) -> int:
        return len(self.labels["faces"]) - self.faces


def list_photos(shards: Sequence[Path]) -> list[ShardedPhoto]:
    """Every photo of the shards with its labels, pixels unread."""
    photos = []
    for shard in shards:
        try:
            with tarfile.open(shard) as members:
                for member in members:
                    file = members.extractfile(member) if member.name.endswith(".json") else None
                    if file is not None:
                        picture = f"{member.name.removesuffix('.json')}.webp"
                        photos.append(ShardedPhoto(shard, picture, json.load(file)))
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(f"{shard}: not a readable shard ({error})") from error
    return photos


def label_page(
    photos: Sequence[ShardedPhoto], facts: dict[str, str], problems: Sequence[str], count: int
) -> str:
    """One HTML file: ``facts`` and ``problems``, and about ``count`` photos with their labels.

    Half of them are spread evenly over the shards, half have the most doubtful labels.
    """
    spread = np.unique(np.linspace(0, len(photos) - 1, min(-(-count // 2), len(photos))).round())
    sample = [photos[int(place)] for place in spread]
    doubted = sorted((one for one in photos if one.doubtful), key=lambda one: -one.doubtful)
    rows = "".join(f"<dt>{html.escape(name)}<dd>{html.escape(facts[name])}" for name in facts)
    skipped = "".join(f"<li>{html.escape(problem)}" for problem in problems)
    return "\n".join([
        "<!doctype html><html lang=en><meta charset=utf-8><title>Pseudo-labels</title>",
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>",
        f"<h1>Pseudo-labels</h1><dl>{rows}</dl>",
        f"<p><b class=face>Green</b>: score {FACE_SCORE:g} and more, used as faces. "
        "<b class=doubtful>Orange</b>: doubtful, left out of the loss by training.</p>",
        f"<h2>A sample</h2>{_grid(sample)}",
        f"<h2>Most doubtful</h2>{_grid(doubted[: count // 2])}",
        f"<h2>Left out</h2><ul>{skipped}</ul>" if problems else "",
        "</html>\n",
    ])  # fmt: skip


def _grid(photos: Sequence[ShardedPhoto]) -> str:
    return f"<div class=grid>{''.join(map(_figure, photos))}</div>" if photos else "<p>None.</p>"


def _figure(photo: ShardedPhoto) -> str:
    with tarfile.open(photo.shard) as members:
        file = members.extractfile(photo.picture)
        content = file.read() if file is not None else b""
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise DataError(f"{photo.shard}: {photo.picture} cannot be decoded")
    drawn = _drawn(np.asarray(decoded, np.uint8), photo.labels["faces"])
    encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()
    source = f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"
    name = html.escape(photo.picture.removesuffix(".webp"))
    caption = f"{name}: {photo.faces} faces, {photo.doubtful} doubtful"
    return f"<figure><img alt='' src='{source}'><figcaption>{caption}</figcaption></figure>"


def _drawn(image: NDArray[np.uint8], faces: Sequence[dict[str, Any]]) -> NDArray[np.uint8]:
    """The photo (BGR) at thumbnail size with its labels."""
    scale = THUMBNAIL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    for face in sorted(faces, key=lambda one: one["score"]):
        x1, y1, x2, y2 = (round(value * scale) for value in face["box"])
        colour = GREEN if face["score"] >= FACE_SCORE else ORANGE
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, 2 if x2 - x1 > 40 else 1, cv2.LINE_AA)
        if x2 - x1 > 60:
            text, font = f"{face['score']:.2f}", cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(canvas, text, (x1, max(12, y1 - 4)), font, 0.45, colour, 1, cv2.LINE_AA)
        if face["landmarks"] and x2 - x1 > 24:
            for x, y in np.reshape(face["landmarks"], (5, 2)) * scale:
                cv2.circle(canvas, (round(x), round(y)), 2, YELLOW, -1, cv2.LINE_AA)
    return np.asarray(canvas, np.uint8)
