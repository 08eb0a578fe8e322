"""One look for all figures of the analysis: colours, sizes, quiet axes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featherface.errors import DataError

V1_COLOUR, V2_COLOUR, THIRD_COLOUR = "#8d5a97", "#1f7a8c", "#e9a13b"
COLOURS = (V2_COLOUR, V1_COLOUR, THIRD_COLOUR, "#d9644a", "#3b6ea8", "#64748b", "#2a9d8f")
SOFT = "#5c6b7a"


def new_figure(
    rows: int = 1, columns: int = 1, width: float = 8.0, height: float = 4.0, **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure of ``width`` x ``height`` inches and its axes ``[rows, columns]``."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
    return figure, axes


def picture_grid(
    pictures: list[NDArray[Any]],
    titles: list[str],
    columns: int = 4,
    size: float = 2.6,
    colour_map: str | None = None,
) -> Figure:
    """Pictures ``[H, W, 3]`` (or ``[H, W]`` with a colour map) side by side, each with a title."""
    rows = -(-len(pictures) // columns)
    figure, axes = new_figure(rows, columns, columns * size, rows * (size + 0.3))
    for one in axes.flat:
        one.axis("off")
    for one, picture, title in zip(axes.flat, pictures, titles, strict=False):
        one.imshow(np.asarray(picture), cmap=colour_map)
        one.set_title(title, fontsize=9, color=SOFT)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG to ``path``, whole or not at all; its folder is made."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(unfinished, format="png", bbox_inches="tight")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
