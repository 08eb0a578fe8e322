"""What a run says while it goes: a progress bar, a CSV file and TensorBoard."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Context manager; ``say`` takes the numbers of one step. Only the first process writes."""

    def __init__(self, folder: Path, images: int, seen: int, active: bool) -> None:
        self.folder, self.active = folder, active
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} images"),
            TextColumn("{task.fields[rate]:.1f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            disable=not active,
        )
        self.task = self.progress.add_task(
            folder.name, total=images, completed=seen, rate=0.0, terms=""
        )
        self.started, self.since = time.monotonic(), 0
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> RunLog:
        if self.active:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.writer = SummaryWriter(str(self.folder / "tensorboard"))
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
        if self.writer is not None:
            self.writer.close()

    def step(self, images: int, terms: dict[str, float]) -> None:
        """Advance by ``images``; show ``terms`` (loss terms by name), or those of before."""
        self.since += images
        rate = self.since / max(time.monotonic() - self.started, 1e-9)
        self.progress.update(self.task, advance=images, rate=rate)
        if terms:
            text = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            self.progress.update(self.task, terms=text)

    def record(self, seen: int, values: dict[str, float]) -> None:
        """Append a row to ``log.csv`` and the same numbers to TensorBoard."""
        if not self.active:
            return
        elapsed = time.monotonic() - self.started
        row = {"images": seen, "seconds": round(elapsed, 1)}
        row |= {"images_per_second": round(self.since / max(elapsed, 1e-9), 2)}
        row |= {name: round(value, 6) for name, value in values.items()}
        path = self.folder / "log.csv"
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, seen)
