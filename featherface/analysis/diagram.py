"""The architecture drawn from the model itself: parts, strides, shapes and where parameters lie.

save_diagram(load_v2(), Path("architecture.png"))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from featherface.analysis.parts import Part, parts_of
from featherface.anchors import ANCHORS_PER_CELL, STRIDES
from featherface.errors import ConfigError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count

INK, SOFT, PAPER, LINE = "#17212b", "#5c6b7a", "#ffffff", "#8593a1"
PALETTE = ("#3b6ea8", "#5a9bd5", "#2a9d8f", "#e9a13b", "#d9644a", "#8d5a97", "#64748b")
WIDTHS = {
    "stages": 18.0, "levels": 16.5, "stem": 16.5, "branch": 16.5, "fusion": 25.0,
    "heads": 26.0,
}  # fmt: skip
ROWS = (47.5, 35.0, 22.5)  # centres of strides 8, 16, 32, tenths of an inch
CELL_HEIGHT, CELL_PAD, GAP = 8.0, 1.6, 4.2
WAY = 62.8  # of what passes above all columns
INSETS = {
    "fusion": 2.0,
    "stem": 0.0,
    "branch": 0.0,
}  # of the arrows' ends, where not CELL_PAD
IMAGE_WIDTH, LEFT = 13.0, 2.5
SIDE = 640


@dataclass(frozen=True)
class Column:
    """A part with its place: left edge and width, tenths of an inch."""

    part: Part
    colour: str
    left: float
    width: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def middle(self) -> float:
        return self.left + self.width / 2


def draw_architecture(model: FeatherFaceV1 | FeatherFaceV2) -> Figure:
    """A figure of ``model`` for a square image of 640 pixels."""
    parts = parts_of(model)
    columns, left = [], LEFT + IMAGE_WIDTH + GAP
    for part, colour in zip(parts, PALETTE, strict=False):
        columns.append(Column(part, colour, left, WIDTHS[part.kind]))
        left = columns[-1].right + GAP
    width = left - GAP + LEFT
    figure = Figure(figsize=(width / 10, 7.0), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, 70))
    axes.axis("off")
    _draw_title(axes, model, width)
    _draw_image(axes, model)
    for before, column in zip([None, *columns[:-1]], columns, strict=True):
        _draw_header(axes, column)
        _draw_part(axes, column)
        if before is None and isinstance(model, FeatherFaceV2) and model.shared_stem:
            stem = next(one for one in columns if one.part.kind == "stem")
            _draw_branch(axes, column, stem)
        elif before is None:
            _arrow(axes, (LEFT + IMAGE_WIDTH, ROWS[0]), (column.left + CELL_PAD, ROWS[0]))
        else:
            for row in ROWS:
                _arrow(axes, (_exit(before), row), (_entry(column), row))
    _draw_budget(axes, columns, parameter_count(model), width)
    return figure


def save_diagram(model: FeatherFaceV1 | FeatherFaceV2, path: Path, dpi: int = 160) -> Path:
    """Write ``draw_architecture`` to ``path``, a ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ConfigError: another kind of file.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path}: give a name that ends with .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    draw_architecture(model).savefig(temporary, format=kind, dpi=dpi)
    os.replace(temporary, path)
    return path


def _draw_title(axes: Axes, model: FeatherFaceV1 | FeatherFaceV2, width: float) -> None:
    version = "V1, the teacher" if isinstance(model, FeatherFaceV1) else "V2"
    axes.text(LEFT, 65.6, f"FeatherFace {version}", size=21, weight="bold", color=INK, va="center")
    anchors = sum(ANCHORS_PER_CELL * (SIDE // stride) ** 2 for stride in STRIDES)
    text = f"{parameter_count(model):,} parameters  ·  {anchors:,} anchors at {SIDE}×{SIDE}"
    axes.text(width - LEFT, 65.6, text, size=14, color=SOFT, ha="right", va="center")


def _draw_image(axes: Axes, model: FeatherFaceV1 | FeatherFaceV2) -> None:
    height, below = 13.0, 3.5
    _box(axes, LEFT, ROWS[0] - below, IMAGE_WIDTH, height, "#eef2f6", LINE)
    values = "BGR, no mean" if isinstance(model, FeatherFaceV1) else "RGB 0..255"
    axes.text(
        LEFT + IMAGE_WIDTH / 2, ROWS[0] - below + height / 2, f"image\n{values}\n{SIDE}×{SIDE}",
        size=11.5, ha="center", va="center", color=INK, linespacing=1.5,
    )  # fmt: skip
    for row, stride in zip(ROWS, STRIDES, strict=True):
        y = row if stride > STRIDES[0] else row - below - 3.2
        text = f"stride {stride}\n{SIDE // stride}×{SIDE // stride}"
        axes.text(LEFT + IMAGE_WIDTH / 2, y, text, size=10.5, ha="center", va="center", color=SOFT)


def _draw_header(axes: Axes, column: Column) -> None:
    bottom, top = ROWS[2] - 7.2, 61.2
    _box(axes, column.left, bottom, column.width, top - bottom, column.colour, "none", alpha=0.09)
    axes.text(
        column.middle, 58.6, column.part.name, size=12.5, weight="bold", color=column.colour,
        ha="center", va="center",
    )  # fmt: skip
    axes.text(column.middle, 55.9, column.part.note, size=9.5, color=SOFT, ha="center", va="center")


def _draw_part(axes: Axes, column: Column) -> None:
    kind = column.part.kind
    if kind == "fusion":
        _draw_fusion(axes, column)
    elif kind == "heads":
        _draw_heads(axes, column)
    elif kind == "stem":
        _draw_stem(axes, column, "+", ROWS[:1])
    elif kind == "branch":
        spoken = [row for row, text in zip(ROWS, column.part.cells, strict=True) if text]
        _draw_stem(axes, column, "‖", spoken)
    else:
        for row, text in zip(ROWS, column.part.cells, strict=True):
            _cell(axes, column.left + CELL_PAD, row, column.width - 2 * CELL_PAD, text, column)
        if kind == "stages":
            for upper, lower in pairwise(ROWS):
                _arrow(
                    axes,
                    (column.middle, upper - CELL_HEIGHT / 2),
                    (column.middle, lower + CELL_HEIGHT / 2),
                    column.colour,
                )


def _draw_fusion(axes: Axes, column: Column) -> None:
    """Three inputs, the node in the middle, three outputs, and the edges between them."""
    ins, outs = column.left + 4.0, column.right - 4.0
    start, middle, end = ([(x, row) for row in ROWS] for x in (ins, column.middle, outs))
    edges = [
        (start[2], middle[1]), (start[1], middle[1]), (middle[1], end[0]), (start[0], end[0]),
        (middle[1], end[1]), (start[2], end[2]), (end[1], end[2]), (end[0], end[1]),
    ]  # fmt: skip
    for first, second in edges:
        _arrow(axes, first, second, column.colour, shrink=15)
    bend = FancyArrowPatch(
        start[1], end[1], connectionstyle="arc3,rad=0.38", arrowstyle="-|>", mutation_scale=11,
        shrinkA=15, shrinkB=15, color=column.colour, lw=1.4,
    )  # fmt: skip
    axes.add_patch(bend)
    for x, y in [*start, middle[1], *end]:
        if x > ins:
            _joined(axes, x, y, column.colour, "+")
        else:
            axes.add_patch(Circle((x, y), 2.0, facecolor=PAPER, edgecolor=column.colour, lw=1.8))


def _draw_stem(axes: Axes, column: Column, how: str, rows: Sequence[float]) -> None:
    """A way from the image, above all parts before it, that joins some ``rows``; others pass by."""
    left, right = column.left + CELL_PAD, column.right - CELL_PAD
    bottom, top = ROWS[0] + 2.9, ROWS[0] + 6.7
    _box(axes, left, bottom, right - left, top - bottom, column.colour, "none")
    axes.text(
        column.middle, (bottom + top) / 2, column.part.cells[0], size=10.5, color=PAPER,
        ha="center", va="center",
    )  # fmt: skip
    image, gap = LEFT + IMAGE_WIDTH / 2, column.left - GAP / 2
    along = [(image, ROWS[0] + 9.5), (image, WAY), (gap, WAY), (gap, (bottom + top) / 2)]
    axes.plot(*zip(*along, strict=True), color=LINE, lw=1.4, zorder=0.5)
    _arrow(axes, along[-1], (left, along[-1][1]))
    for above, row in zip((bottom + 2.0, *rows), rows, strict=False):
        _arrow(axes, (column.middle, above - 2.0), (column.middle, row + 2.0), column.colour)
        _joined(axes, column.middle, row, column.colour, how)
    for row in ROWS:
        axes.plot([_entry(column), _exit(column)], [row, row], color=LINE, lw=1.4, zorder=0.5)


def _draw_branch(axes: Axes, column: Column, stem: Column) -> None:
    """The way to stride 4 that the backbone shares with the stem, and where it leaves it."""
    x, image = column.left - GAP / 2, LEFT + IMAGE_WIDTH / 2
    bottom, top = ROWS[0] + 10.7, WAY - 1.4
    _box(axes, image - 5.0, bottom, 10.0, top - bottom, stem.colour, "none")
    axes.text(
        image, (bottom + top) / 2, stem.part.cells[1], size=10, color=PAPER, ha="center",
        va="center",
    )  # fmt: skip
    axes.add_patch(Circle((x, WAY), 0.5, facecolor=LINE, edgecolor=LINE))
    axes.plot([x, x], [WAY, ROWS[0]], color=LINE, lw=1.4)
    _arrow(axes, (x, ROWS[0]), (column.left + CELL_PAD, ROWS[0]))


def _joined(axes: Axes, x: float, y: float, colour: str, how: str) -> None:
    """A node: a sum, or maps side by side."""
    axes.add_patch(Circle((x, y), 2.0, facecolor=colour, edgecolor=colour, lw=1.8))
    axes.text(x, y, how, size=14, color=PAPER, ha="center", va="center_baseline")


def _draw_heads(axes: Axes, column: Column) -> None:
    outputs = (
        ("face", f"{ANCHORS_PER_CELL} × 1"),
        ("box", f"{ANCHORS_PER_CELL} × 4"),
        ("landmarks", f"{ANCHORS_PER_CELL} × 10"),
    )
    texts = column.part.cells
    shared = texts[0] == "tower"
    x = column.left + CELL_PAD
    tower = 8.0
    if shared:
        bottom = ROWS[2] - CELL_HEIGHT / 2
        _box(axes, x, bottom, tower, ROWS[0] - ROWS[2] + CELL_HEIGHT, column.colour, "none")
        axes.text(
            x + tower / 2, ROWS[1], "tower\n3×3\n1×1", size=11.5, color=PAPER, ha="center",
            va="center", linespacing=1.6,
        )  # fmt: skip
    else:
        for row in ROWS:
            _cell(axes, x, row, tower, texts[0], column)
    left = x + tower + 2.6
    for row in ROWS:
        for place, (name, values) in enumerate(outputs):
            y = row + (1 - place) * 2.75
            if texts[0].endswith("× 3") and place == 0:
                values = f"{ANCHORS_PER_CELL} × 2"
            axes.text(left, y, name, size=10, color=INK, va="center")
            axes.text(column.right - 1.2, y, values, size=9.5, color=SOFT, va="center", ha="right")
        _arrow(axes, (x + tower, row), (left - 0.4, row), column.colour)


def _draw_budget(axes: Axes, columns: list[Column], total: int, width: float) -> None:
    """One bar, a segment a part, and under each its parameters."""
    left, right, bottom, height = LEFT, width - LEFT, 6.6, 3.4
    x = left
    for column in columns:
        size = (right - left) * column.part.parameters / total
        axes.add_patch(
            FancyBboxPatch(
                (x, bottom), size, height, boxstyle="square,pad=0", facecolor=column.colour,
                edgecolor=PAPER, lw=1.2,
            )
        )  # fmt: skip
        if size > 7:
            share = f"{100 * column.part.parameters / total:.0f} %"
            axes.text(
                x + size / 2, bottom + height / 2, share, size=11, color=PAPER, weight="bold",
                ha="center", va="center",
            )  # fmt: skip
        x += size
    names = [f"{column.part.name}  {column.part.parameters:,}" for column in columns]
    sizes = [2.2 + 0.78 * len(name) for name in names]
    gap = (right - left - sum(sizes)) / (len(names) - 1)
    x = left
    for column, text, size in zip(columns, names, sizes, strict=True):
        axes.add_patch(
            FancyBboxPatch(
                (x, 2.6), 1.5, 1.5, boxstyle="square,pad=0", facecolor=column.colour,
                edgecolor="none",
            )
        )  # fmt: skip
        axes.text(x + 2.2, 3.35, text, size=10, color=INK, va="center")
        x += size + gap
    axes.text(left, 11.6, "where the parameters are", size=10.5, color=SOFT, va="center")


def _entry(column: Column) -> float:
    return column.left + INSETS.get(column.part.kind, CELL_PAD)


def _exit(column: Column) -> float:
    return column.right - INSETS.get(column.part.kind, CELL_PAD)


def _cell(axes: Axes, left: float, row: float, width: float, text: str, column: Column) -> None:
    _box(axes, left, row - CELL_HEIGHT / 2, width, CELL_HEIGHT, column.colour, "none")
    axes.text(
        left + width / 2, row, text, size=10.5, color=PAPER, ha="center", va="center",
        linespacing=1.45,
    )  # fmt: skip


def _box(
    axes: Axes,
    left: float,
    bottom: float,
    width: float,
    height: float,
    face: str,
    edge: str,
    alpha: float = 1.0,
) -> None:
    style = "round,pad=0,rounding_size=1.2"
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle=style, facecolor=face, edgecolor=edge,
            alpha=alpha, lw=1.2,
        )
    )  # fmt: skip


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str = LINE,
    shrink: float = 0,
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=colour, lw=1.4, shrinkA=shrink,
            shrinkB=shrink,
        )
    )  # fmt: skip
