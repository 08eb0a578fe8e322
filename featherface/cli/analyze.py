"""``featherface analyze``: V1 and V2 side by side, part by part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from featherface.analysis.architecture_study import ArchitectureStudy
    from featherface.analysis.pruning import Step


def register(app: typer.Typer) -> None:
    """Add ``analyze`` to the front door."""
    app.command("analyze")(analyze)


def analyze(
    v1: Annotated[
        Path | None,
        typer.Option(help="V1's weights, safetensors. Without them only its structure is told."),
    ] = None,
    v2: Annotated[
        Path | None, typer.Option(help="V2's weights, safetensors. Default: the package's own.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the training shards (*.tar): pruning needs held-out photos."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/analysis"),
    width: Annotated[int, typer.Option(min=64, help="Pixels, a multiple of 32.")] = 640,
    height: Annotated[int, typer.Option(min=64, help="Pixels, a multiple of 32.")] = 480,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each timing.")] = 15,
    photos: Annotated[
        int, typer.Option(min=1, help="At most so many held-out photos for each pruning step.")
    ] = 100,
    fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the photos that training holds back.")
    ] = 0.04,
    cache: Annotated[
        Path, typer.Option(help="Folder for decoded photos and finished pruning steps.")
    ] = Path("cache"),
) -> None:
    """Where V1 and V2 spend parameters, work, memory and time, and what that implies for V2.

    Writes a report, its numbers as JSON and pictures. A run that was cut off goes on where it
    stopped.
    """
    from featherface.cli import require_extra
    from featherface.errors import ConfigError

    require_extra("train", "torch", "onnx", "safetensors", "matplotlib", "webdataset")
    if width % 32 or height % 32:
        raise ConfigError(f"{width}x{height}: give multiples of 32 pixels")

    import torch
    from rich.console import Console

    from featherface.analysis.architecture_study import Settings, study_architectures
    from featherface.analysis.machine import describe_machine
    from featherface.analysis.study_report import write_study
    from featherface.data.shards import PhotoStore
    from featherface.images import read_image
    from featherface.models.baseline import BaselineV1
    from featherface.models.pretrained import load_v1
    from featherface.models.pretrained_v2 import load_v2

    console = Console(stderr=True)
    torch.manual_seed(0)
    first = BaselineV1.of(load_v1(v1)) if v1 is not None else BaselineV1().eval()
    second = load_v2(v2)
    store = PhotoStore(data, cache) if data is not None else None
    if store is None:
        console.print("No --data: pruning is skipped")
    if v1 is None:
        console.print("No --v1: of V1 only what its structure tells")
    example = Path(__file__).parents[1] / "examples" / "astronaut.jpg"

    def progress(title: str, steps: Sequence[Step]) -> Iterable[Step]:
        from rich.progress import track

        return track(steps, title, console=console, disable=not console.is_terminal)

    study = study_architectures(
        first,
        second,
        Settings(width, height, rounds, fraction, photos, cache),
        v1_trained=v1 is not None,
        store=store,
        pictures=[read_image(example)],
        say=lambda line: console.print(line, style="dim"),
        progress=progress,
    )
    write_study(study, out, describe_machine())
    show(study, Console())
    typer.echo(f"Written to {out}: analysis.md, analysis.json and pictures")


def show(study: ArchitectureStudy, console: Console) -> None:
    """The tables and what they imply, on the terminal."""
    from rich.markdown import Markdown
    from rich.table import Table

    from featherface.analysis.design_implications import implications
    from featherface.analysis.study_report import (
        COST_HEADS,
        SAVING_HEADS,
        cost_rows,
        saving_rows,
    )

    blocks: list[tuple[str, Sequence[str], list[list[str]]]] = [
        (name, ("part", *COST_HEADS), cost_rows(study, name)) for name in study.networks
    ]
    blocks.append(("V1 → V2", SAVING_HEADS, saving_rows(study)))
    for title, heads, rows in blocks:
        table = Table(title=title)
        for place, head in enumerate(heads):
            table.add_column(head, justify="right" if place else "left")
        for number, row in enumerate(rows):
            table.add_row(*row, end_section=number == len(rows) - 2)
        console.print(table)
    for text in implications(study):
        console.print(Markdown(f"- {text}"))
