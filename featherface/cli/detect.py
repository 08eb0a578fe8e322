"""``featherface detect``: find faces in files and folders."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherface.cli.inputs import Picture, find_files, naming, target_names, with_progress
from featherface.cli.options import LongSide, NmsIou, Recursive, Threads, Threshold, Weights
from featherface.errors import ImageError

if TYPE_CHECKING:
    from featherface.detector import FaceDetector
    from featherface.faces import Faces


@dataclass
class Report:
    """What was found and what failed, to be written as JSON and CSV."""

    images: list[tuple[Path, int, int, Faces]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> str:
        """``{"images": [{path, width, height, faces}], "errors": [{path, error}]}``."""
        images: list[dict[str, Any]] = [
            {"path": str(path), "width": width, "height": height, **faces.to_dict()}
            for path, width, height, faces in self.images
        ]
        errors = [{"path": path, "error": message} for path, message in self.errors]
        return json.dumps({"images": images, "errors": errors}, indent=1, ensure_ascii=False) + "\n"

    def as_csv(self) -> str:
        """One row a face, in pixels; a file without faces has no row."""
        from featherface.faces import LANDMARK_NAMES

        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        points = [f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy"]
        rows.writerow(["path", "face", "score", "x1", "y1", "x2", "y2", *points])
        for path, _, _, faces in self.images:
            for number, face in enumerate(faces.to_dict()["faces"]):
                landmarks = [value for point in face["landmarks"] for value in point]
                rows.writerow([path, number, face["score"], *face["box"], *landmarks])
        return text.getvalue()


def register(app: typer.Typer) -> None:
    """Add ``detect`` to the front door."""
    app.command("detect")(detect)


def detect(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Pictures, folders, or globs in quotes.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for annotated copies.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the faces as JSON.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the faces as CSV.")
    ] = None,
    recursive: Recursive = False,
    size: LongSide = 640,
    threshold: Threshold = 0.5,
    nms: NmsIou = 0.4,
    weights: Weights = None,
    threads: Threads = None,
) -> None:
    """Find faces: a line a file, and annotated copies, JSON or CSV if asked for.

    Files that cannot be read are named at the end; the others are done, and the exit code is 1.
    """
    from featherface.cli import print_error
    from featherface.detector import FaceDetector
    from featherface.images import IMAGE_SUFFIXES, write_file

    report = Report()
    pictures = find_files(paths, recursive, IMAGE_SUFFIXES, report.errors)
    if not pictures and len(report.errors) == 1:
        raise ImageError(report.errors[0][1])
    if pictures:
        detector = FaceDetector(weights, size or None, threshold, nms, threads=threads)
        targets = target_names(pictures, out) if out is not None else {}
        for picture in with_progress(pictures, "Detecting"):
            try:
                _detect_one(detector, picture, targets.get(picture.path), report)
            except ImageError as error:
                report.errors.append((str(picture.path), naming(str(error), picture.path)))
    if json_file is not None:
        write_file(json_file, report.as_json().encode())
    if csv_file is not None:
        write_file(csv_file, report.as_csv().encode())
    if len(pictures) > 1:
        faces = sum(len(entry[3]) for entry in report.images)
        typer.echo(f"{faces} faces in {len(report.images)} pictures")
    for _, message in report.errors:
        print_error(message)
    if report.errors:
        raise typer.Exit(1)


def _detect_one(
    detector: FaceDetector, picture: Picture, target: Path | None, report: Report
) -> None:
    from featherface.images import read_image, write_image

    image = read_image(picture.path)
    start = time.perf_counter()
    faces = detector(image)
    milliseconds = 1000 * (time.perf_counter() - start)
    if target is not None:
        write_image(target, faces.draw(image))
    height, width = image.shape[:2]
    report.images.append((picture.path, width, height, faces))
    count = "no faces" if not len(faces) else f"{len(faces)} face{'s' * (len(faces) != 1)}"
    best = f" (best {faces.scores[0]:.2f})" if len(faces) else ""
    written = f" -> {target}" if target is not None else ""
    typer.echo(f"{picture.path}: {count}{best}, {width}x{height}, {milliseconds:.0f} ms{written}")
