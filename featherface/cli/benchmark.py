"""``featherface benchmark``: accuracy and speed of our models beside V1 and the peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featherface.cli import require_extra

if TYPE_CHECKING:
    from featherface.analysis.contenders import Entry

PACKAGED_NAME = "featherface_v2"


def register(app: typer.Typer) -> None:
    """Add ``benchmark`` to the front door."""
    app.command("benchmark")(benchmark)


def benchmark(
    data: Annotated[
        Path | None, typer.Option(help="Folder of the measuring sets, wider_mini and masks.")
    ] = None,
    peers: Annotated[Path | None, typer.Option(help="Folder of the peers' ONNX files.")] = None,
    v1: Annotated[
        Path | None, typer.Option(help="Weights of V1: safetensors (public names) or ONNX.")
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="A model of ours, ONNX; repeat it. Default: the package's own."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/benchmark"),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the latency measurement.")] = 20,
    only_latency: Annotated[
        bool, typer.Option("--only-latency", help="Speed and memory; accuracy stays as it is.")
    ] = False,
    only_accuracy: Annotated[
        bool, typer.Option("--only-accuracy", help="Accuracy; speed and memory stay as they are.")
    ] = False,
) -> None:
    """Measure accuracy, latency, memory, size and MACs in one run, and write tables and pictures.

    The first of our models is what all ratios refer to. Predictions are kept under OUT/cache, so
    that a model is run over the photos once; benchmark.json is renewed part by part.
    """
    if only_latency and only_accuracy:
        raise typer.BadParameter("give one of --only-latency and --only-accuracy, or neither")
    require_extra("evaluate", "onnx", "matplotlib")

    from featherface.analysis.benchmark import Plan, read_record, run_benchmark, write_record
    from featherface.analysis.benchmark_report import write_report
    from featherface.analysis.contenders import Entry, peer_entries
    from featherface.cli.progress import list_progress
    from featherface.detector import PACKAGED_WEIGHTS

    cache = out / "cache"
    entries = [Entry(path.stem, path) for path in weights or []] or [
        Entry(PACKAGED_NAME, PACKAGED_WEIGHTS)
    ]
    if v1 is not None:
        entries.append(_v1_entry(v1, cache))
    if peers is not None:
        entries.extend(peer_entries(peers))
    accuracy = not only_latency and (only_accuracy or data is not None)
    plan = Plan(data, cache, accuracy, not only_accuracy, rounds)
    path = out / "benchmark.json"
    record = run_benchmark(entries, plan, read_record(path), list_progress)
    write_record(path, record)
    table = write_report(record, out)

    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(table))
    console.print(f"Written to {out}: benchmark.json, benchmark.md and two pictures")


def _v1_entry(weights: Path, cache: Path) -> Entry:
    """V1 for ONNX Runtime; from safetensors it is exported once and kept in ``cache``."""
    from featherface.analysis.contenders import Entry

    name = "featherface_v1"
    if weights.suffix != ".safetensors":
        return Entry(name, weights)
    exported = cache / f"{name}-{Entry(name, weights).sha256[:12]}.onnx"
    if not exported.is_file():
        require_extra("train", "torch", "safetensors")

        from featherface.export.v1_onnx import export_v1_onnx
        from featherface.models.pretrained import load_v1

        cache.mkdir(parents=True, exist_ok=True)
        export_v1_onnx(load_v1(weights), exported)
    return Entry(name, exported)
