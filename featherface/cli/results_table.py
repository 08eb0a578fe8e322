"""``featherface results-table``: the figures of the documents, from the files under results/."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add ``results-table`` to the front door."""
    app.command("results-table")(results_table)


def results_table(
    documents: Annotated[
        list[Path] | None, typer.Argument(metavar="DOCUMENT...", help="Documents to fill.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Fill the documents; else only print the block.")
    ] = False,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
) -> None:
    """Print the tables of results/, or write them between the markers of documents.

    A document with markers named "quantization" gets the table of FP16 and INT8, too.
    """
    from featherface.cli import require_extra

    require_extra("evaluate", "matplotlib")
    from featherface.analysis.results_block import results_block
    from featherface.errors import ConfigError
    from featherface.evaluation.results_table import fill, has_markers

    if write and not documents:
        raise ConfigError("results-table --write: name the documents to fill, e.g. README.md")
    block = results_block(results)
    if not write:
        typer.echo(block or f"{results}: no results yet")
    for document in documents or []:
        if write:
            changed = fill(document, block)
            quantization = results / "quantization.md"
            if has_markers(document, "quantization") and quantization.exists():
                changed |= fill(document, quantization.read_text("utf-8"), "quantization")
            typer.echo(f"{document}: {'filled' if changed else 'unchanged'}")
