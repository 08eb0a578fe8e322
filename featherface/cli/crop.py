"""``featherface crop``: faces cut out and turned upright, as recognition models expect them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherface.cli.inputs import (
    Picture,
    find_files,
    is_earlier_result,
    naming,
    path_key,
    with_progress,
)
from featherface.cli.options import Recursive, Threads, Threshold, Weights
from featherface.errors import ImageError

if TYPE_CHECKING:
    from featherface.detector import FaceDetector


class Format(str, Enum):
    """File format of the crops."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


@dataclass
class Index:
    """What was cut out and what failed, to be written as JSON and CSV beside the crops."""

    size: int
    crops: list[dict[str, Any]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> str:
        """``{"size", "crops": [{crop, photo, face, box, score, landmarks}], "errors"}``."""
        errors = [{"path": path, "error": message} for path, message in self.errors]
        content = {"size": self.size, "crops": self.crops, "errors": errors}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def as_csv(self) -> str:
        """One row a crop; coordinates in pixels of the photo."""
        from featherface.faces import LANDMARK_NAMES

        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        points = [f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy"]
        rows.writerow(["crop", "photo", "face", "score", "x1", "y1", "x2", "y2", *points])
        for crop in self.crops:
            landmarks = [value for point in crop["landmarks"] for value in point]
            first = [crop["crop"], crop["photo"], crop["face"], crop["score"]]
            rows.writerow([*first, *crop["box"], *landmarks])
        return text.getvalue()


def register(app: typer.Typer) -> None:
    """Add ``crop`` to the front door."""
    app.command("crop")(crop)


def crop(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Photos, folders, or globs in quotes.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the crops, laid out like the source.")
    ],
    size: Annotated[
        int, typer.Option("--size", min=16, max=1024, help="Side of a crop in pixels.")
    ] = 112,
    min_face: Annotated[
        int, typer.Option(min=0, help="Leave out faces whose longer side has fewer pixels.")
    ] = 0,
    file_format: Annotated[
        Format, typer.Option("--format", help="File format of the crops.")
    ] = Format.png,
    recursive: Recursive = False,
    input_size: Annotated[
        int,
        typer.Option(min=0, help="Bring the photo's long side to this to detect; 0: original."),
    ] = 640,
    threshold: Threshold = 0.5,
    weights: Weights = None,
    threads: Threads = None,
) -> None:
    """Cut out the faces, upright by their landmarks: PHOTO_face0.png, the best face first.

    The five landmarks come to the places that ArcFace and its followers expect. Writes faces.json
    and faces.csv beside the crops. Files that cannot be read are named at the end; the others are
    done, and the exit code is 1.
    """
    from featherface.cli import print_error
    from featherface.detector import FaceDetector
    from featherface.images import IMAGE_SUFFIXES, write_file

    index = Index(size)
    pictures = find_files(paths, recursive, IMAGE_SUFFIXES, index.errors)
    pictures = [picture for picture in pictures if not is_earlier_result(picture, out)]
    if not pictures and len(index.errors) == 1:
        raise ImageError(index.errors[0][1])
    detector = FaceDetector(weights, input_size or None, threshold, threads=threads)
    stems = crop_stems(pictures, out)
    done = 0
    for picture in with_progress(pictures, "Cutting out faces"):
        stem = stems[picture.path]
        try:
            count = _crop_one(detector, picture, out, stem, file_format.value, min_face, index)
        except ImageError as error:
            index.errors.append((str(picture.path), naming(str(error), picture.path)))
        else:
            done += 1
            typer.echo(f"{picture.path}: {count} face{'s' * (count != 1)}")
    if done:
        write_file(out / "faces.json", index.as_json().encode())
        write_file(out / "faces.csv", index.as_csv().encode())
        typer.echo(f"{len(index.crops)} crops of {size}x{size} pixels in {out}, with faces.csv")
    for _, message in index.errors:
        print_error(message)
    if index.errors:
        raise typer.Exit(1)


def crop_stems(pictures: Iterable[Picture], out: Path) -> dict[Path, Path]:
    """What the names of each picture's crops begin with, relative to ``out``; no two are the same.

    A name that is taken gets the suffix of its picture in it, then that of its folder, then a
    number.
    """
    taken: set[str] = set()
    stems = {}
    for picture in pictures:
        name = picture.name
        folder = picture.path.resolve().parent.name
        plain = name.with_suffix("")
        typed = name.with_name(f"{name.stem}_{name.suffix.lstrip('.')}")
        options = [plain, typed, name.with_name(f"{folder}_{name.stem}")]
        number = 2
        while path_key(out / options[0]) in taken:
            options.pop(0)
            if not options:
                options.append(name.with_name(f"{name.stem}_{number}"))
                number += 1
        taken.add(path_key(out / options[0]))
        stems[picture.path] = options[0]
    return stems


def _crop_one(
    detector: FaceDetector,
    picture: Picture,
    out: Path,
    stem: Path,
    file_format: str,
    min_face: int,
    index: Index,
) -> int:
    from featherface.images import read_image, write_image

    image = read_image(picture.path)
    count = 0
    for number, face in enumerate(detector(image)):
        if max(face.width, face.height) < min_face:
            continue
        name = stem.with_name(f"{stem.name}_face{number}.{file_format}")
        try:
            aligned = face.align(image, index.size)
        except ImageError as error:
            message = f"{picture.path}: face {number}: {error}"
            index.errors.append((str(picture.path), message))
            continue
        write_image(out / name, aligned)
        row = {"crop": name.as_posix(), "photo": str(picture.path), "face": number}
        index.crops.append({**row, **face.to_dict()})
        count += 1
    return count
