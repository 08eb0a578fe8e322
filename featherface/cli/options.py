"""Options that several commands share: one name, one range, one sentence of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into subfolders too.")]
LongSide = Annotated[
    int, typer.Option(min=0, help="Bring the long side to this many pixels; 0: original pixels.")
]
Threshold = Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a face.")]
NmsIou = Annotated[
    float, typer.Option(min=0, max=1, help="Overlap (IoU) at which the lesser box goes.")
]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="Another ONNX file of weights.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads for the network. Default: up to four.")
]
