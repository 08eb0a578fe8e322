"""``featherface data``: look at, count and pack the photos to train on."""

from __future__ import annotations

from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from featherface.data.shards import PhotoStore
    from featherface.data.wider_face import WiderFacePhotos


class Layout(str, Enum):
    """How photos lie in a folder."""

    shards = "shards"
    wider = "wider"


DataOption = Annotated[Path, typer.Option("--data", help="Folder of *.tar shards, or WIDER FACE.")]
LayoutOption = Annotated[Layout, typer.Option(help="How the photos lie in the folder.")]
CacheOption = Annotated[Path, typer.Option(help="Folder for the decoded photos of shards.")]


def register(app: typer.Typer) -> None:
    """Add the ``data`` commands to the front door."""
    data = typer.Typer(help="Look at, count and pack the photos to train on.", no_args_is_help=True)
    data.command("view")(view)
    data.command("inspect")(inspect)
    data.command("pack")(pack_photos)
    app.add_typer(data, name="data")


def open_photos(folder: Path, layout: Layout, cache: Path) -> PhotoStore | WiderFacePhotos:
    """The photos of ``folder``."""
    from featherface.errors import MissingExtraError

    try:
        from featherface.data.shards import PhotoStore
        from featherface.data.wider_face import WiderFacePhotos
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"featherface data needs {error.name}: pip install 'featherface[train]'"
        ) from error
    return WiderFacePhotos(folder) if layout is Layout.wider else PhotoStore(folder, cache)


def view(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The picture to write, .jpg or .png.")],
    count: Annotated[int, typer.Option(min=1, max=400, help="Number of crops.")] = 16,
    size: Annotated[int, typer.Option(min=32, max=2048, help="Side of a crop, pixels.")] = 320,
    seed: Annotated[int, typer.Option(help="Other crops for another seed.")] = 0,
    layout: LayoutOption = Layout.shards,
    cache: CacheOption = Path("cache"),
    config: Annotated[
        Path | None, typer.Option(help="YAML of a run: draw crops as it sees them.")
    ] = None,
) -> None:
    """Draw augmented training crops with their faces on a contact sheet."""
    photos = open_photos(data, layout, cache)
    import cv2

    from featherface.data.augmentation import TrainingCrop, sample_weights
    from featherface.data.dataset import CropDataset
    from featherface.data.sheet import contact_sheet
    from featherface.errors import DataError
    from featherface.training.config import DataConfig, read_config

    run = read_config(config).data if config else DataConfig()
    indices, _ = photos.split(0.0)
    weights = sample_weights(photos, indices, run.source_weights)
    crops = CropDataset(photos, indices, TrainingCrop(size, run.crop), seed, weights)
    samples = [crops[number] for number in range(count)]
    sheet = cv2.cvtColor(contact_sheet(samples), cv2.COLOR_RGB2BGR)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(out), sheet)
    except cv2.error:
        written = False
    if not written:
        raise DataError(f"{out}: cannot be written; give a name that ends with .jpg or .png")
    typer.echo(f"{out}: {count} crops of {size} pixels from {len(photos)} photos")


def inspect(
    data: DataOption, layout: LayoutOption = Layout.shards, cache: CacheOption = Path("cache")
) -> None:
    """Count photos and faces by source, and faces by size."""
    photos = open_photos(data, layout, cache)
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from featherface.data.inventory import SIZE_EDGES, take_inventory

    title = f"{len(photos):,} photos; faces by size, pixels of the photo"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rows = take_inventory(photos)
    for name in ("", *(row.source for row in rows)):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_row("photos", *(f"{row.photos:,}" for row in rows))
    table.add_row("doubtful", *(f"{row.doubtful:,}" for row in rows))
    table.add_row("faces", *(f"{row.faces:,}" for row in rows), end_section=True)
    for place, (low, high) in enumerate(pairwise(SIZE_EDGES)):
        label = f"{low} to {high}" if place + 2 < len(SIZE_EDGES) else f"from {low}"
        table.add_row(label, *(f"{row.sizes[place]:,}" for row in rows))
    Console().print(table)
    for line in getattr(photos, "skipped", []):
        typer.echo(f"skipped {line}")


def pack_photos(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    layout: LayoutOption = Layout.wider,
    megabytes: Annotated[float, typer.Option(min=1, help="Size of a shard.")] = 50.0,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the WebP pictures.")] = 90,
) -> None:
    """Pack photos and labels into WebDataset shards."""
    from featherface.errors import MissingExtraError

    try:
        from featherface.data.pack import pack
        from featherface.data.shards import read_shards
        from featherface.data.wider_face import WiderFacePhotos
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"featherface data needs {error.name}: pip install 'featherface[train]'"
        ) from error
    photos = WiderFacePhotos(data) if layout is Layout.wider else read_shards(data)
    for shard in pack(photos, out, megabytes, quality):
        typer.echo(f"{shard}: {shard.stat().st_size / 2**20:.1f} MB")
