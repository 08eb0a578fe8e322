"""The table of experiments as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from featherface.analysis.figures import COLOURS, SOFT, V2_COLOUR, new_figure
from featherface.training.experiments import SIZE_COLUMNS, Row

SHOWN: tuple[tuple[str, str], ...] = (
    ("run", "run"),
    ("parameters", "parameters"),
    ("images", "images"),
    ("seconds", "minutes"),
    ("ap", "AP"),
    *SIZE_COLUMNS.items(),
)


def table_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells to print; AP in percent, a dash where there is none."""
    heads = [head for _, head in SHOWN]
    names = run_names(rows)
    cells = [[_cell(column, row[column]) for column, _ in SHOWN[1:]] for row in rows]
    return heads, [[name, *values] for name, values in zip(names, cells, strict=True)]


def run_names(rows: Sequence[Row]) -> list[str]:
    """The runs by name; one that was validated on other labels than most tells whose."""
    folders = [row["data"].partition("+")[0] for row in rows]
    usual = max(folders, key=folders.count, default="")
    return [
        row["run"] if folder == usual else f"{row['run']} (by {folder})"
        for row, folder in zip(rows, folders, strict=True)
    ]


def markdown_table(rows: Sequence[Row]) -> str:
    """The table with what each run changed, and a line on the photos behind the figures."""
    heads, cells = table_rows(rows)
    lines = ["| " + " | ".join([*heads, "differs from the defaults in"]) + " |"]
    lines.append("|---" + "|---:" * (len(heads) - 1) + "|---|")
    for row, values in zip(rows, cells, strict=True):
        changes = row["changes"].replace("|", "\\|")
        lines.append("| " + " | ".join([*values, f"`{changes}`" if changes else "nothing"]) + " |")
    return "\n".join(lines) + "\n\nAP in percent at IoU 0.5 on the held-out photos, by face size.\n"


def experiment_plot(rows: Sequence[Row]) -> Figure:
    """Runs from top to bottom: AP over all sizes as bars, AP by face size as dots beside them."""
    measured = [row for row in rows if row["ap"]]
    figure, axes = new_figure(1, 2, 11.0, 1.4 + 0.34 * max(len(measured), 3), sharey=True)
    overall, by_size = axes[0]
    places = range(len(measured))
    values = [100 * float(row["ap"]) for row in measured]
    bars = overall.barh(places, values, color=V2_COLOUR, height=0.62)
    overall.bar_label(bars, [f"{value:.1f}" for value in values], padding=3, fontsize=8.5)
    overall.set_yticks(places, run_names(measured))
    overall.set(xlabel="validation AP, %, all sizes")
    overall.margins(x=0.12)
    for (column, name), colour in zip(SIZE_COLUMNS.items(), COLOURS, strict=False):
        known = [(100 * float(row[column]), i) for i, row in enumerate(measured) if row[column]]
        by_size.scatter(
            [value for value, _ in known],
            [place for _, place in known],
            color=colour,
            label=f"{name} px",
            zorder=3,
        )
    by_size.set(xlabel="validation AP, %, by face size")
    by_size.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    overall.set_ylim(max(len(measured), 1) - 0.4, -0.6)  # the first run on top
    if not measured:
        overall.text(0.5, 0.5, "no run with figures yet", color=SOFT, transform=overall.transAxes)
    return figure


def _cell(column: str, value: str) -> str:
    if not value:
        return "–"
    if column.startswith("ap"):
        return f"{100 * float(value):.1f}"
    if column == "seconds":
        return f"{float(value) / 60:.0f}"
    return f"{int(value):,}" if column in ("parameters", "images") else value
