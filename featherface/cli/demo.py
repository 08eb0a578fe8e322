"""``featherface demo``: the detector on a photo that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featherface.cli.options import Weights

EXAMPLE = Path(__file__).parents[1] / "examples" / "astronaut.jpg"


def register(app: typer.Typer) -> None:
    """Add ``demo`` to the front door."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="The annotated picture to write.")] = Path(
        "featherface_demo.jpg"
    ),
    weights: Weights = None,
) -> None:
    """Find the face in an example photo and write an annotated picture."""
    from featherface.detector import FaceDetector
    from featherface.images import read_image, write_image

    image = read_image(EXAMPLE)
    faces = FaceDetector(weights)(image)
    write_image(out, faces.draw(image))
    typer.echo(f"{len(faces)} face{'s' * (len(faces) != 1)} in {EXAMPLE.name}, {out} written")
    for face in faces:
        x1, y1, x2, y2 = (round(float(value)) for value in face.box)
        typer.echo(f"  score {face.score:.2f}, box from ({x1}, {y1}) to ({x2}, {y2})")
