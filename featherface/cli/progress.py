"""Bars on stderr, if someone is looking: for lists, and for the frames of a video."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from featherface.video_source import VideoSource

Item = TypeVar("Item")


def list_progress(items: Sequence[Item], title: str = "Detecting") -> Iterable[Item]:
    """``items`` with a bar: done and the time that is left."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, title, console=console, disable=not console.is_terminal)


def frame_progress(items: Iterable[Item], source: VideoSource, title: str) -> Iterator[Item]:
    """``items``, one a frame of ``source``, with a bar on stderr if someone is looking."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Frames a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.1f} frames/s")

    columns = (SpinnerColumn(), "{task.description}", BarColumn(), MofNCompleteColumn(), Rate())
    times = (TimeRemainingColumn(),) if source.frame_count else (TimeElapsedColumn(),)
    console = Console(stderr=True)
    with Progress(*columns, *times, console=console, transient=True) as progress:
        task = progress.add_task(title, total=source.frame_count)
        for item in items:
            yield item
            progress.advance(task)
