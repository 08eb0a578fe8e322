"""A folder evaluation on disk: JSON, Markdown, two plots, and a page of the worst errors."""

from __future__ import annotations

import base64
import html
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.boxes import box_iou
from featherface.evaluation.labelled_folder import (
    FolderResult,
    face_sizes,
    found_faces,
    read_labelled_photo,
)
from featherface.evaluation.plots import precision_recall_plot, recall_by_size_plot
from featherface.evaluation.result_files import write_result_json, write_result_text

RED, GREEN, YELLOW = (60, 60, 230), (80, 190, 80), (60, 200, 240)  # BGR, as OpenCV draws
PICTURE_SIDE = 320
CONTEXT = 3.0  # side of the shown square over the longer side of the box

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.25rem .6rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:1rem}
figure{margin:0}figure img{width:100%}figcaption{font-size:13px;overflow-wrap:anywhere}
.plots img{max-width:49%}"""


@dataclass(frozen=True, eq=False)
class WorstError:
    """A face that was missed, or a detection that is no labelled face: what to show, and a line."""

    photo: int
    box: NDArray[np.float64]
    caption: str


def write_report(
    result: FolderResult, out: str | Path, title: str = "Evaluation", worst: int = 24
) -> None:
    """Write ``result.json``, ``result.md``, two ``.png`` plots and ``report.html`` into ``out``.

    The page is one file: it carries its plots and its pictures of the ``worst`` errors a kind.
    """
    out = Path(out)
    write_result_json(out / "result.json", {"title": title, **result.as_dict()})
    write_result_text(out / "result.md", f"# {title}\n\n{result.as_markdown()}")
    plots = {
        "precision_recall": precision_recall_plot(result),
        "recall_by_size": recall_by_size_plot(result),
    }
    for name, content in plots.items():
        unfinished = out / f".{name}.{os.getpid()}.part"
        unfinished.write_bytes(content)
        os.replace(unfinished, out / f"{name}.png")
    misses, alarms = worst_misses(result, worst), worst_false_alarms(result, worst)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        _html_tables(result.as_markdown()),
        "<div class=plots>",
        *(_html_picture(content, "png", name) for name, content in plots.items()),
        "</div>",
        f"<h2>Worst misses</h2><p>The largest labelled faces (red) that no detection finds at "
        f"score {result.operating_score:g}. Detections are green, other labels yellow.</p>",
        _html_grid(result, misses),
        "<h2>Worst false alarms</h2><p>The most certain detections (red) that match no free "
        "label. Labels are yellow: a face without one is the labels' error, not the detector's."
        "</p>",
        _html_grid(result, alarms),
        "</html>",
    ]
    write_result_text(out / "report.html", "\n".join(parts))


def worst_misses(result: FolderResult, count: int) -> list[WorstError]:
    """The largest counted faces that are not found at the operating score, largest first."""
    admitted = int((result.matches.scores >= result.operating_score).sum())
    marks = found_faces(result.photos, result.matches, admitted)
    misses = []
    for place, (photo, found) in enumerate(zip(result.photos, marks, strict=True)):
        sizes = face_sizes(photo.boxes)
        for face in np.flatnonzero(~found & ~photo.ignored):
            caption = f"{photo.path.name}: {sizes[face]:.0f} pixels"
            misses.append((sizes[face], WorstError(place, photo.boxes[face], caption)))
    misses.sort(key=lambda miss: -miss[0])
    return [miss for _, miss in misses[:count]]


def worst_false_alarms(result: FolderResult, count: int) -> list[WorstError]:
    """The detections with the highest scores that are no hit, best score first."""
    matches = result.matches
    alarms = []
    for row in np.flatnonzero(~matches.hit)[:count]:
        place = int(matches.photo[row])
        photo = result.photos[place]
        box = result.found[place].boxes[matches.index[row]]
        alarm: NDArray[Any] = box[None]
        labelled: NDArray[Any] = photo.boxes
        nearest = box_iou(alarm, labelled, plus_one=True).max(initial=0.0)
        kind = ", a second time" if nearest >= 0.5 else f", IoU {nearest:.2f}" if nearest else ""
        caption = f"{photo.path.name}: score {matches.scores[row]:.2f}{kind}"
        alarms.append(WorstError(place, box, caption))
    return alarms


def _html_grid(result: FolderResult, errors: list[WorstError]) -> str:
    if not errors:
        return "<p>None.</p>"
    figures = []
    for error in errors:
        encoded = cv2.imencode(".jpg", _picture(result, error))[1].tobytes()
        caption = html.escape(error.caption)
        figures.append(
            f"<figure>{_html_picture(encoded, 'jpeg', error.caption)}"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f"<div class=grid>{''.join(figures)}</div>"


def _picture(result: FolderResult, error: WorstError) -> NDArray[np.uint8]:
    """The surroundings of the error, uint8 BGR ``[H, W, 3]``, boxes drawn."""
    photo, found = result.photos[error.photo], result.found[error.photo]
    image = read_labelled_photo(photo)
    height, width = image.shape[:2]
    centre = (error.box[:2] + error.box[2:]) / 2
    half = max(CONTEXT * float((error.box[2:] - error.box[:2]).max()) / 2, 40.0)
    left, top = np.clip(np.floor(centre - half), 0, [width - 1, height - 1]).astype(int)
    right, bottom = np.clip(np.ceil(centre + half), [left + 1, top + 1], [width, height]).astype(
        int
    )
    factor = PICTURE_SIDE / max(right - left, bottom - top)
    size = (max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor)))
    crop = np.ascontiguousarray(image[top:bottom, left:right, ::-1])
    picture = cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)

    def draw(box: NDArray[np.float64], colour: tuple[int, int, int], thickness: int) -> None:
        corners = np.round((box.reshape(2, 2) - [left, top]) * factor).astype(int)
        first, second = (tuple(int(value) for value in corner) for corner in corners)
        cv2.rectangle(picture, first, second, colour, thickness, cv2.LINE_AA)

    for box in photo.boxes:
        draw(box, YELLOW, 1)
    for box in found.boxes[found.scores >= result.operating_score]:
        draw(box, GREEN, 1)
    draw(error.box, RED, 2)
    return np.asarray(picture, np.uint8)


def _html_picture(content: bytes, kind: str, text: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/{kind};base64,{data}">'


def _html_tables(markdown: str) -> str:
    tables = []
    for block in markdown.strip().split("\n\n"):
        head, _, *body = [line.strip("|").split("|") for line in block.splitlines()]
        rows = ["".join(f"<th>{html.escape(cell.strip())}</th>" for cell in head)]
        rows += ["".join(f"<td>{html.escape(cell.strip())}</td>" for cell in row) for row in body]
        tables.append(f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
    return "\n".join(tables)
