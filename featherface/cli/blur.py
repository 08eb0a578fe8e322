"""``featherface blur``: faces hidden in photos and videos."""

from __future__ import annotations

from collections.abc import Iterator
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
    target_names,
    with_progress,
)
from featherface.cli.options import LongSide, Recursive, Threads, Weights
from featherface.errors import ConfigError, FeatherFaceError, ImageError, VideoError

if TYPE_CHECKING:
    from featherface.anonymise import Anonymiser
    from featherface.detector import FaceDetector

VIDEO_NAMES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


class Style(str, Enum):
    """How a face is hidden."""

    blur = "blur"
    pixelate = "pixelate"
    box = "box"


class Shape(str, Enum):
    """What is hidden around a face."""

    rectangle = "rectangle"
    ellipse = "ellipse"


class Metadata(Enum):
    """What of a file's metadata its copy keeps."""

    strip = "strip"
    colour = "colour"
    keep = "keep"


class Existing(Enum):
    """What to do with a result that is there already."""

    refuse = "refuse"
    skip = "skip"
    replace = "replace"


def register(app: typer.Typer) -> None:
    """Add ``blur`` to the front door."""
    app.command("blur")(blur)


def blur(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Photos, videos, folders, or globs in quotes."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the results, laid out like the source."),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the sources. There is no way back.")
    ] = False,
    style: Annotated[Style, typer.Option(help="How a face is hidden.")] = Style.blur,
    shape: Annotated[Shape, typer.Option(help="What is hidden around it.")] = Shape.rectangle,
    padding: Annotated[
        float, typer.Option(min=0, max=2, help="Beyond the box on each side, share of its sides.")
    ] = 0.2,
    detail: Annotated[
        int, typer.Option(min=1, max=64, help="Cells left of the longer side of a face.")
    ] = 8,
    metadata: Annotated[
        Metadata,
        typer.Option(help="Keep nothing, the colour profile, or also EXIF (GPS!) without preview."),
    ] = Metadata.strip,
    existing: Annotated[
        Existing, typer.Option(help="What to do with a result that is there already.")
    ] = Existing.refuse,
    recursive: Recursive = False,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP results.")] = 93,
    hold: Annotated[
        int, typer.Option(min=0, max=60, help="Video: frames to hide a face before and after.")
    ] = 5,
    sound: Annotated[bool, typer.Option(help="Video: keep the sound.")] = True,
    size: LongSide = 640,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest score of a face; lower hides more.")
    ] = 0.3,
    weights: Weights = None,
    threads: Threads = None,
) -> None:
    """Hide faces: blurred, pixelated or covered. The sources stay as they are.

    A detector misses faces: look at the results before you publish them. Files that cannot be
    read are named at the end; the others are done, and the exit code is 1.
    """
    from featherface.anonymise import Anonymiser
    from featherface.cli import print_error
    from featherface.detector import FaceDetector
    from featherface.images import IMAGE_SUFFIXES

    if (out is None) == (not in_place):
        raise ConfigError("Say where the results go: --out DIR, or --in-place")
    if out is not None and any(path_key(Path(text)) == path_key(out) for text in paths):
        raise ConfigError(f"{out}: holds the sources; give another folder, or --in-place")
    errors: list[tuple[str, str]] = []
    files = find_files(paths, recursive, (*IMAGE_SUFFIXES, *VIDEO_NAMES), errors)
    if out is not None:
        files = [file for file in files if not is_earlier_result(file, out)]
    if not files and len(errors) == 1:
        raise ImageError(errors[0][1])
    targets = {file.path: file.path for file in files}
    if out is not None:
        targets = target_names(files, out, _as_written)
    hide = Anonymiser(style.value, shape.value, padding, detail)
    detector = FaceDetector(weights, size or None, threshold, threads=threads)
    done = hidden = skipped = 0
    for file in with_progress(files, "Hiding faces"):
        target = targets[file.path]
        try:
            if not in_place and target.exists() and existing is not Existing.replace:
                if existing is Existing.skip:
                    skipped += 1
                    continue
                raise ImageError(f"{target}: exists; --existing skip or replace goes on")
            if file.path.suffix.lower() in VIDEO_NAMES:
                keep = metadata is Metadata.keep
                count, problem = _blur_video(file, target, detector, hide, hold, sound, keep)
                if problem is not None:
                    errors.append((str(file.path), problem))
            else:
                count = _blur_photo(file, target, detector, hide, metadata, quality)
        except (FeatherFaceError, OSError) as error:
            errors.append((str(file.path), naming(_text(error), file.path)))
            continue
        done, hidden = done + 1, hidden + count
    if len(files) > 1:
        kept = f", {skipped} were there already" if skipped else ""
        typer.echo(f"{hidden} faces hidden in {done} files{kept}")
    for _, message in errors:
        print_error(message)
    if errors:
        raise typer.Exit(1)


def _as_written(name: Path) -> Path:
    """``name`` with a suffix that can be written: PNG for pictures that no encoder is here for."""
    from featherface.photo_files import WRITABLE

    kept = name.suffix.lower() in WRITABLE or name.suffix.lower() in VIDEO_NAMES
    return name if kept else name.with_suffix(".png")


def _blur_photo(
    file: Picture,
    target: Path,
    detector: FaceDetector,
    hide: Anonymiser,
    metadata: Metadata,
    quality: int,
) -> int:
    from featherface.images import read_image, write_file
    from featherface.photo_files import encode_photo, read_tags

    image = read_image(file.path)
    faces = detector(image)
    tags = None
    if metadata is not Metadata.strip:
        tags = read_tags(file.path, exif=metadata is Metadata.keep)
    write_file(target, encode_photo(hide(image, faces.boxes), target.suffix, quality, tags))
    typer.echo(f"{file.path}: {_counted(len(faces))} -> {target}")
    return len(faces)


def _blur_video(
    file: Picture,
    target: Path,
    detector: FaceDetector,
    hide: Anonymiser,
    hold: int,
    sound: bool,
    keep_metadata: bool,
) -> tuple[int, str | None]:
    """Boxes hidden, counted once a frame, and what was wrong with the video."""
    from featherface.cli import require_extra

    require_extra("video", "av")
    from featherface.cli.progress import frame_progress
    from featherface.steady_boxes import steady_boxes
    from featherface.video_source import Frame, VideoFile
    from featherface.video_writer import VideoWriter

    most = 0
    with VideoFile(file.path) as source:
        with VideoWriter(target, source, sound=sound, keep_metadata=keep_metadata) as writer:

            def found() -> Iterator[tuple[Frame, Any]]:
                for frame in source.frames(writer.write_sound):
                    yield frame, detector(frame.image).boxes

            steady = frame_progress(steady_boxes(found(), hold), source, file.path.name)
            for frame, boxes in steady:
                writer.write(frame, hide(frame.image, boxes))
                most = max(most, len(boxes))
            if source.problem is not None and target == file.path:
                raise VideoError(f"{source.problem}; the file was left as it is")
        if not writer.frames:
            raise VideoError(source.problem or f"{file.path}: holds no frame")
        typer.echo(f"{file.path}: {writer.frames} frames, at most {_counted(most)} -> {target}")
        if source.problem is not None:
            return most, f"{source.problem}; what was read is in {target}"
    return most, None


def _counted(count: int) -> str:
    return "no faces" if count == 0 else f"{count} face{'s' * (count != 1)}"


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
