"""``featherface video``: faces found and followed in a video or before a camera."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from featherface.cli.options import LongSide, Threads, Threshold, Weights
from featherface.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from featherface.detector import FaceDetector
    from featherface.tracking import FaceTracker, TrackedFaces
    from featherface.video_source import Frame, VideoSource
    from featherface.video_writer import VideoWriter


@dataclass
class Tally:
    """What has been seen so far."""

    frames: int = 0
    faces: int = 0
    last_track: int = 0
    interrupted: bool = False


def register(app: typer.Typer) -> None:
    """Add ``video`` to the front door."""
    app.command("video")(video)


def video(
    source: Annotated[
        str, typer.Argument(help="A video file, a stream address, or a camera's number (0).")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Annotated video: .mp4, .mkv, .webm, ...")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Faces, one JSON line a frame.")
    ] = None,
    track: Annotated[
        bool, typer.Option(help="Follow faces: a number that a face keeps over the frames.")
    ] = True,
    patience: Annotated[
        float, typer.Option(min=0.1, max=60, help="Seconds a face may be away and keep its number.")
    ] = 1.0,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after this much of the video.")
    ] = None,
    sound: Annotated[bool, typer.Option(help="Keep the sound.")] = True,
    size: LongSide = 640,
    threshold: Threshold = 0.5,
    weights: Weights = None,
    threads: Threads = None,
) -> None:
    """Find and follow faces: an annotated video, a JSON line a frame, or both.

    Ctrl-C ends a camera, and keeps what was done of a file. Of a video that breaks off, what can
    be read is kept; the exit code is then 1.
    """
    from featherface.cli import require_extra

    require_extra("video", "av", *(["supervision"] if track else []))
    from featherface.detector import FaceDetector
    from featherface.tracking import FAINT_SCORE, FaceTracker
    from featherface.video_source import open_source
    from featherface.video_writer import VideoWriter, check_suffix

    if out is None and json_file is None:
        raise ConfigError("Say what to write: --out FILE, --json FILE, or both")
    for target in (out, json_file):
        if target is not None and target.exists() and _same_file(source, target):
            raise ConfigError(f"{target}: is the source; give another name")
    if out is not None:
        check_suffix(out)
    lowest = min(FAINT_SCORE, threshold) if track else threshold
    detector = FaceDetector(weights, size or None, lowest, threads=threads)
    tally = Tally()
    start = time.perf_counter()
    with open_source(source) as opened, ExitStack() as outputs:
        tracker = FaceTracker(opened.rate, threshold, patience) if track else None
        writer = None
        if out is not None:
            writer = outputs.enter_context(VideoWriter(out, opened, sound=sound))
        lines = outputs.enter_context(_lines_to(json_file)) if json_file is not None else None
        _follow(opened, detector, tracker, writer, lines, seconds, tally)
        if tally.frames == 0:
            raise VideoError(opened.problem or f"{opened.name}: holds no frame")
    _summarise(tally, track, time.perf_counter() - start, out, json_file)
    if opened.problem is not None:
        raise VideoError(f"{opened.problem}; what was read is kept")
    if tally.interrupted and opened.frame_count is not None:
        typer.echo("Interrupted; what was read is kept", err=True)
        raise typer.Exit(130)


def _follow(
    source: VideoSource,
    detector: FaceDetector,
    tracker: FaceTracker | None,
    writer: VideoWriter | None,
    lines: IO[str] | None,
    seconds: float | None,
    tally: Tally,
) -> None:
    """Frame by frame from ``source`` to ``writer`` and ``lines``, until it or the user ends it."""
    from featherface.cli.progress import frame_progress

    frames = source.frames(writer.write_sound if writer is not None else None)
    try:
        for frame in frame_progress(frames, source, "Following faces"):
            if seconds is not None and frame.time >= seconds:
                break
            found = _found(frame, detector, tracker)
            if writer is not None:
                writer.write(frame, found.faces.draw(frame.image, labels=_labels(found)))
            if lines is not None:
                row = {"frame": frame.number, "time": round(frame.time, 4)}
                lines.write(json.dumps({**row, "faces": found.to_dicts()}) + "\n")
            tally.frames += 1
            tally.faces += len(found.faces)
            tally.last_track = max(tally.last_track, int(found.tracks.max(initial=0)))
    except KeyboardInterrupt:
        tally.interrupted = True


def _found(frame: Frame, detector: FaceDetector, tracker: FaceTracker | None) -> TrackedFaces:
    import numpy as np

    from featherface.tracking import TrackedFaces

    faces = detector(frame.image)
    if tracker is not None:
        return tracker(faces)
    return TrackedFaces(faces, np.zeros(len(faces), np.int64))


def _labels(found: TrackedFaces) -> list[str]:
    return [
        f"#{track} {score:.2f}" if track else f"{score:.2f}"
        for track, score in zip(found.tracks, found.faces.scores, strict=True)
    ]


def _summarise(
    tally: Tally, track: bool, seconds: float, out: Path | None, json_file: Path | None
) -> None:
    tracks = f", {tally.last_track} tracks" if track else ""
    rate = tally.frames / max(seconds, 1e-9)
    written = ", ".join(str(path) for path in (out, json_file) if path is not None)
    typer.echo(
        f"{tally.frames} frames, {tally.faces} faces{tracks}, {rate:.1f} frames a second "
        f"-> {written}"
    )


@contextmanager
def _lines_to(path: Path) -> Iterator[IO[str]]:
    """A text file that gets its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with unfinished.open("w", encoding="utf-8") as lines:
            yield lines
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _same_file(source: str, target: Path) -> bool:
    return Path(source).exists() and target.samefile(source)
