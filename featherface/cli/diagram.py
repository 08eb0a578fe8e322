"""``featherface diagram``: the architecture figure, drawn from the model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Version(str, Enum):
    """Which model."""

    v1 = "v1"
    v2 = "v2"


def register(app: typer.Typer) -> None:
    """Add ``diagram`` to the front door."""
    app.command("diagram")(diagram)


def diagram(
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .svg or .pdf.")] = Path(
        "architecture.png"
    ),
    model: Annotated[Version, typer.Option(help="V2, or V1, its teacher.")] = Version.v2,
) -> None:
    """Draw the architecture with its parts, shapes and parameters."""
    from featherface.cli import require_extra

    require_extra("train", "torch", "matplotlib")
    from featherface.analysis.diagram import save_diagram
    from featherface.models.featherface_v1 import FeatherFaceV1
    from featherface.models.pretrained_v2 import load_v2

    drawn = load_v2() if model is Version.v2 else FeatherFaceV1()
    typer.echo(f"{save_diagram(drawn, out)} written")
