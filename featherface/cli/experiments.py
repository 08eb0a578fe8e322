"""``featherface experiments``: the table of runs and its plot, from the trainer's CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add ``experiments`` to the front door."""
    app.command("experiments")(experiments)


def experiments(
    table: Annotated[
        Path, typer.Argument(metavar="CSV", help="The file that the trainer appends to.")
    ] = Path("results/experiments.csv"),
    plot: Annotated[Path, typer.Option(help="PNG file to draw.")] = Path(
        "docs/images/experiments.png"
    ),
    best_first: Annotated[
        bool, typer.Option("--best-first", help="Order by AP, not by date.")
    ] = False,
    document: Annotated[
        Path | None,
        typer.Option(help="Write the table between <!-- experiments --> marks of this file."),
    ] = None,
) -> None:
    """Print the table of experiments and draw it: AP on the held-out photos, by face size."""
    from featherface.cli import require_extra

    require_extra("evaluate", "matplotlib")
    from rich.console import Console
    from rich.table import Table

    from featherface.analysis.experiment_plot import experiment_plot, markdown_table, table_rows
    from featherface.analysis.figures import save_figure
    from featherface.evaluation.results_table import fill
    from featherface.training.experiments import read_experiments

    rows = read_experiments(table)
    if best_first:
        rows.sort(key=lambda row: -float(row["ap"] or 0))
    heads, cells = table_rows(rows)
    shown = Table(title=f"{len(rows)} runs of {table}")
    for place, head in enumerate(heads):
        shown.add_column(head, justify="right" if place else "left", overflow="fold")
    for values in cells:
        shown.add_row(*values)
    Console().print(shown)
    save_figure(experiment_plot(rows), plot)
    typer.echo(f"Plot: {plot}")
    if document is not None:
        fill(document, markdown_table(rows), "experiments")
        typer.echo(f"Table: {document}")
