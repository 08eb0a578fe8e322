"""``featherface pseudo-label``: shards to train on from photos that nobody has labelled."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherface.cli.inputs import find_files
from featherface.cli.options import Threads
from featherface.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from featherface.data.labelling_run import LabellingRun, UnlabelledPhoto
    from featherface.data.pseudo_labels import View
    from featherface.detector import FaceDetector
    from featherface.images import ByteImage

LOWEST_SCORE = 0.05  # of a box that takes part in the vote


def register(app: typer.Typer) -> None:
    """Add ``pseudo-label`` to the front door."""
    app.command("pseudo-label")(pseudo_label)


def pseudo_label(
    photos: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of photos.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the shards.")],
    teacher: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="ONNX file of FeatherFace's form; repeatable."),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Another detector's faces, a JSON a photo; repeatable."),
    ] = None,
    long_side: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Teacher's view: long side, pixels; 0: original; repeatable."),
    ] = None,
    mirror: Annotated[bool, typer.Option(help="Look at each view mirrored too.")] = True,
    lowest: Annotated[
        float, typer.Option(min=0.05, max=1, help="Lowest voted score that is written.")
    ] = 0.15,
    store: Annotated[
        int, typer.Option(min=0, help="Shrink photos to this long side in the shards; 0: never.")
    ] = 1280,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the WebP in the shards.")] = 90,
    megabytes: Annotated[float, typer.Option(min=0.1, help="Size of a shard.")] = 50.0,
    source: Annotated[
        str | None, typer.Option(help="Name of the photos in training. Default: the folder's.")
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Look into subfolders too.")] = True,
    preview: Annotated[int, typer.Option(min=0, help="Photos on the preview page.")] = 48,
    threads: Threads = None,
) -> None:
    """Label photos by vote, as WebDataset shards with a preview page.

    The teacher (by default the package's own weights) looks at each photo at 640 and 1024 pixels,
    mirrored too; --labels adds, or replaces it by, what other detectors found. A run that was
    stopped goes on when it is started again. Photos that cannot be read are left out and named.
    """
    from featherface.cli import print_error
    from featherface.data.label_page import label_page, list_photos
    from featherface.data.labelling_run import LabellingRun, Storage, UnlabelledPhoto, shards_of
    from featherface.images import IMAGE_SUFFIXES, write_file

    if not photos.is_dir():
        raise ImageError(f"{photos}: no such folder of photos")
    for folder in labels or ():
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder of labels")
    errors: list[tuple[str, str]] = []
    found = find_files([str(photos)], recursive, IMAGE_SUFFIXES, errors)
    if errors:
        raise ImageError(errors[0][1])
    unlabelled = [UnlabelledPhoto(one.path, one.name) for one in found]
    teachers = _teachers(teacher, labels, threads)
    sides = list(dict.fromkeys(long_side or (640, 1024)))
    settings: dict[str, Any] = {"lowest": lowest, "labels": [str(one) for one in labels or ()]}
    if teachers:
        hashes = {path.name: _hash(path) for path in teachers}
        settings |= {"teachers": hashes, "long_sides": sides, "mirror": mirror}
    labeller = _labeller(photos, list(teachers.values()), labels or [], sides, mirror, lowest)
    storage = Storage(source or photos.resolve().name, store, quality, megabytes)
    run = LabellingRun(out, unlabelled, labeller, storage, settings)
    if run.already_packed:
        typer.echo(f"{run.already_packed} of {len(unlabelled)} photos are in shards already")
    problems = _run(run, unlabelled)

    listed = list_photos(shards_of(out))
    faces, doubtful = sum(one.faces for one in listed), sum(one.doubtful for one in listed)
    report = {"photos": len(listed), "faces": faces, "doubtful": doubtful, "settings": settings}
    content = json.dumps({**report, "left_out": problems}, indent=1, ensure_ascii=False) + "\n"
    write_file(out / "report.json", content.encode())
    facts = {
        "Photos": f"{len(listed):,}",
        "Faces": f"{faces:,}",
        "Doubtful": f"{doubtful:,}",
        "Labelled by": ", ".join([*(path.name for path in teachers), *map(str, labels or ())]),
    }
    if teachers:
        views = ", ".join(str(side or "original") for side in sides)
        facts["Views"] = f"long side {views}{', mirrored too' if mirror else ''}"
    write_file(out / "preview.html", label_page(listed, facts, problems, preview).encode())
    typer.echo(
        f"{len(listed)} photos, {faces} faces, {doubtful} doubtful in "
        f"{len(shards_of(out))} shards in {out}; look at preview.html"
    )
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(1)


def _teachers(
    teacher: list[Path] | None, labels: list[Path] | None, threads: int | None
) -> dict[Path, FaceDetector]:
    """The detectors that vote, by weight file: the package's own if nothing else was given."""
    from featherface.detector import PACKAGED_WEIGHTS, FaceDetector

    paths = teacher or ([] if labels else [PACKAGED_WEIGHTS])
    return {
        path: FaceDetector(path, input_size=None, score_threshold=LOWEST_SCORE, threads=threads)
        for path in paths
    }


def _labeller(
    photos: Path,
    teachers: list[FaceDetector],
    labels: list[Path],
    long_sides: list[int],
    mirror: bool,
    lowest: float,
) -> Callable[[ByteImage, Path], View]:
    from featherface.data.pseudo_labels import look, read_detections, vote

    def label(image: ByteImage, path: Path) -> View:
        views = [view for one in teachers for view in look(one, image, long_sides, mirror)]
        height, width = image.shape[:2]
        for folder in labels:
            name = folder / path.relative_to(photos)
            candidates = [name.with_suffix(".json"), name.with_name(f"{name.name}.json")]
            found = next((one for one in candidates if one.is_file()), candidates[0])
            views.append(read_detections(found, width, height))
        return vote(views, lowest)

    return label


def _run(run: LabellingRun, photos: list[UnlabelledPhoto]) -> list[str]:
    """Go through the photos with a bar, and return what was wrong with those left out."""
    from rich.console import Console
    from rich.progress import track

    bar = track(
        run,
        "Labelling",
        total=len(photos),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    problems = []
    for photo, problem in bar:
        if problem is not None:
            named = problem if str(photo.path) in problem else f"{photo.path}: {problem}"
            problems.append(named)
    return problems


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
