"""The files that a command's PATH arguments mean, and where in a folder their results go."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featherface.errors import FeatherFaceError, ImageError

MANY = 5  # files from which on a progress bar is worth its line


@dataclass(frozen=True)
class Picture:
    """A file to look at, and the relative name that its result would like to have."""

    path: Path
    name: Path


def find_files(
    paths: Iterable[str],
    recursive: bool,
    suffixes: Sequence[str],
    errors: list[tuple[str, str]],
) -> list[Picture]:
    """The files that ``paths`` mean, each once, in order.

    A path is a file (of any suffix), a folder (its files with one of ``suffixes``, lower case) or a
    glob. What is wrong with a path goes to ``errors`` as path and message.
    """
    found: dict[Path, Picture] = {}
    for text in paths:
        try:
            for picture in _expand(text, recursive, suffixes):
                found.setdefault(picture.path.resolve(), picture)
        except (FeatherFaceError, OSError) as error:
            errors.append((text, str(error)))
    return list(found.values())


def target_names(
    pictures: Iterable[Picture], out: Path, written_as: Callable[[Path], Path] | None = None
) -> dict[Path, Path]:
    """Where in ``out`` each picture's result goes.

    ``written_as`` changes the suffix of a name into one that can be written; by default JPEG, PNG
    and WebP stay what they are and others become JPEG. No two results share a file, also where
    upper and lower case are one, and none is a picture that is read: a name that is taken gets the
    name of its folder in front, then a number behind.
    """
    pictures = list(pictures)
    taken = {path_key(picture.path) for picture in pictures}
    targets = {}
    for picture in pictures:
        name = (written_as or _as_annotated)(picture.name)
        folder = picture.path.resolve().parent.name
        options = [name, name.with_name(f"{folder}_{name.name}")]
        target = next((out / one for one in options if path_key(out / one) not in taken), None)
        number = 2
        while target is None:
            option = out / name.with_name(f"{name.stem}_{number}{name.suffix}")
            target = option if path_key(option) not in taken else None
            number += 1
        taken.add(path_key(target))
        targets[picture.path] = target
    return targets


def is_earlier_result(file: Picture, out: Path) -> bool:
    """Whether a file found in a folder lies in ``out``, where ``out`` lies in that folder."""
    root = file.path.parents[len(file.name.parts) - 1].resolve()
    out = out.resolve()
    return root in out.parents and out in file.path.resolve().parents


def path_key(path: Path) -> str:
    """What two paths share that may mean one file, also where case does not count."""
    return str(path.resolve()).casefold()


def with_progress(pictures: Sequence[Picture], title: str) -> Iterator[Picture]:
    """``pictures``, with a bar on stderr if they are many and someone is looking."""
    if len(pictures) < MANY or not sys.stderr.isatty():
        yield from pictures
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(
        title,
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # lines in a pipe stay in the pipe
    )
    with bar:
        yield from bar.track(pictures)


def naming(message: str, path: Path) -> str:
    """``message``, with ``path`` in front unless it is in it."""
    return message if str(path) in message else f"{path}: {message}"


def _as_annotated(name: Path) -> Path:
    kept = name.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    return name if kept else name.with_suffix(".jpg")


def _expand(text: str, recursive: bool, suffixes: Sequence[str]) -> Iterator[Picture]:
    path = Path(text)
    if path.is_dir():
        yield from _in_folder(path, recursive, suffixes)
    elif not path.exists() and glob.has_magic(text):
        matches = sorted(glob.glob(text, recursive=True))
        if not matches:
            raise ImageError(f"{text}: nothing matches")
        for match in map(Path, matches):
            if match.is_file():
                yield Picture(match, Path(match.name))
    else:
        yield Picture(path, Path(path.name))


def _in_folder(folder: Path, recursive: bool, suffixes: Sequence[str]) -> Iterator[Picture]:
    candidates = folder.rglob("*") if recursive else folder.iterdir()
    paths = sorted(
        path for path in candidates if path.suffix.lower() in suffixes and path.is_file()
    )
    if not paths:
        advice = "" if recursive else "; --recursive looks into its subfolders"
        raise ImageError(f"{folder}: no pictures in this folder{advice}")
    for path in paths:
        yield Picture(path, path.relative_to(folder))
