"""``featherface data``: look at, count and pack the photos to train on, and find hard ones."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featherface.cli.options import Threads

if TYPE_CHECKING:
    from featherface.data.labelled_photo import LabelledPhoto
    from featherface.data.shards import PhotoStore
    from featherface.data.wider_face import WiderFacePhotos

SHOWN = 36  # false alarms on the picture


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
    data.command("false-alarms")(false_alarms)
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

    from featherface.data.augmentation import TrainingCrop
    from featherface.data.dataset import CropDataset, sample_weights
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


def false_alarms(
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for shards and a picture.")],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="ONNX file. Default: the package's own."),
    ] = None,
    judge: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="ONNX file that must see no face there; repeatable."),
    ] = None,
    photos: Annotated[int, typer.Option(min=0, help="Photos to look at; 0: all.")] = 0,
    validation_fraction: Annotated[
        float, typer.Option(min=0, max=0.99, help="Left alone, as in training.")
    ] = 0.04,
    seed: Annotated[int, typer.Option(help="Other views for another seed.")] = 0,
    threads: Threads = None,
    layout: LayoutOption = Layout.shards,
    cache: CacheOption = Path("cache"),
) -> None:
    """Cut out what a detector takes for faces and is none, as shards for data.more_shards.

    Looks at each photo once: as it is, as one stored small, or enlarged.
    """
    from featherface.errors import DataError

    if any(out.glob("*.tar")):
        raise DataError(f"{out}: holds shards already; give an empty folder")
    store = open_photos(data, layout, cache)
    import numpy as np

    from featherface.cli.progress import list_progress
    from featherface.data.pack import pack
    from featherface.detector import PACKAGED_WEIGHTS, FaceDetector
    from featherface.evaluation.false_alarms import JUDGED, LEAST_SCORE, FalseAlarm, picture, search
    from featherface.images import write_image

    detect, *judges = (
        FaceDetector(path, input_size=None, score_threshold=JUDGED, threads=threads)
        for path in (weights or PACKAGED_WEIGHTS, *(judge or ()))
    )
    chosen, _ = store.split(validation_fraction)
    chosen = np.random.default_rng(seed).permutation(chosen)[: photos or None]
    worst: list[FalseAlarm] = []
    count = 0

    def crops() -> Iterator[LabelledPhoto]:
        """The crops one by one, as all of them would fill the memory."""
        nonlocal worst, count
        for one in list_progress(chosen.tolist(), "Looking"):
            for alarm in search(store[one], detect, judges, seed):
                worst = sorted([*worst, alarm], key=lambda x: -x.score)[:SHOWN]
                count += 1
                yield alarm.crop

    found = crops()
    first = next(found, None)
    if first is None:
        typer.echo(f"no false alarm of {LEAST_SCORE} and more on {len(chosen):,} photos")
        return
    shards = pack(chain([first], found), out, prefix="false-alarms")
    sheet = out / "worst.jpg"
    write_image(sheet, picture(worst))
    typer.echo(
        f"{count:,} false alarms on {len(chosen):,} photos in {len(shards)} shards in {out}; "
        f"{sheet.name} shows the worst in red"
    )
