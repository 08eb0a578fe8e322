"""An architecture study as ``analysis.json``, ``analysis.md`` and pictures in one folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featherface.analysis.architecture_study import ArchitectureStudy
from featherface.analysis.channel_scores import STAGES
from featherface.analysis.design_implications import implications
from featherface.analysis.figures import save_figure
from featherface.analysis.savings import PartFigures, total
from featherface.analysis.study_plots import study_figures
from featherface.anchors import ANCHOR_SIZES, STRIDES
from featherface.evaluation.result_files import write_result_json, write_result_text

Rows = list[list[str]]
COST_HEADS = (
    "parameters", "MMACs", "MB written", "PyTorch, ms", "share", "ONNX Runtime, ms", "share",
)  # fmt: skip
SKIPPED = {
    "pruning": "Pruning was not measured: it needs the training shards (`--data`) and, for V1, its "
    "weights (`--v1`).",
    "channels": "Told for trained weights only: those of V1 were not given (`--v1`).",
}


def write_study(study: ArchitectureStudy, folder: Path, machine: dict[str, Any]) -> None:
    """Write all files; ``machine`` says what the times were measured on."""
    figures = study_figures(study)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    write_result_json(folder / "analysis.json", {"machine": machine, **study.as_dict()})
    write_result_text(folder / "analysis.md", report(study, machine, list(figures)))


def report(study: ArchitectureStudy, machine: dict[str, Any], figures: Sequence[str]) -> str:
    """The study in Markdown; ``figures`` are the names of the pictures beside it."""
    settings = study.settings
    lines = [
        "# The architecture, measured",
        "",
        f"V1 and V2 side by side, {settings.width}x{settings.height} pixels, one thread, "
        f"{study.date}, on {machine.get('cpu', 'an unknown processor')}. Written by "
        "`featherface analyze`; nothing here is typed by hand.",
        "",
    ]
    if not study.v1.trained:
        lines += ["V1 has chance weights: its figures tell of structure only.", ""]
    lines += [*_costs(study), *_savings(study), *_fields(study)]
    lines += [*_channels(study), *_pruning(study)]
    lines += ["## What it implies for V2's design", ""]
    lines += [f"{place}. {text}" for place, text in enumerate(implications(study), start=1)]
    text = "\n".join(lines) + "\n"
    for name in ("costs", "receptive_field", "channels", "pruning"):
        picture = f"![{name.replace('_', ' ')}]({name}.png)\n" if name in figures else ""
        text = text.replace(f"<{name}>\n", picture)
    return text


def cost_rows(study: ArchitectureStudy, network: str) -> Rows:
    """One row a part, then the whole: name, ``COST_HEADS``."""
    figures = study.networks[network].figures
    whole = total(figures)
    rows = [[name, *_cost_cells(one, whole)] for name, one in figures.items()]
    return [*rows, ["all", *_cost_cells(whole, whole)]]


def saving_rows(study: ArchitectureStudy) -> Rows:
    """One row a named part, then the whole: V1 and V2 for each cost."""
    whole = (total(study.v1.figures), total(study.v2.figures))
    pairs = [(one.name, one.first, one.second) for one in study.savings]
    return [
        [
            name,
            f"{first.parameters:,.0f} → {second.parameters:,.0f}",
            f"{first.multiply_adds / 1e6:.1f} → {second.multiply_adds / 1e6:.1f}",
            f"{first.written_bytes / 1e6:.1f} → {second.written_bytes / 1e6:.1f}",
            f"{first.torch_ms:.1f} → {second.torch_ms:.1f}",
            f"{first.onnx_ms:.2f} → {second.onnx_ms:.2f}",
        ]
        for name, first, second in [*pairs, ("all", *whole)]
    ]


SAVING_HEADS = ("V2's part", "parameters", "MMACs", "MB written", "PyTorch, ms", "ONNX Runtime, ms")


def _cost_cells(one: PartFigures, whole: PartFigures) -> list[str]:
    return [
        f"{one.parameters:,.0f}",
        f"{one.multiply_adds / 1e6:.1f}",
        f"{one.written_bytes / 1e6:.1f}",
        f"{one.torch_ms:.1f}",
        f"{100 * one.torch_ms / whole.torch_ms:.0f} %",
        f"{one.onnx_ms:.2f}",
        f"{100 * one.onnx_ms / whole.onnx_ms:.0f} %",
    ]


def _costs(study: ArchitectureStudy) -> Iterator[str]:
    yield from ("## Where it goes", "", "<costs>", "")
    for name in study.networks:
        yield from (f"### {name}", "", *_table(("part", *COST_HEADS), cost_rows(study, name)), "")
    yield (
        "MMACs are million multiply-adds of convolutions and matrix products, by PyTorch's "
        "counter; sampling, sums and gates count nothing. MB written are all tensors made, "
        "float32; a runtime reuses most of the room. PyTorch: median processor time of "
        f"{study.settings.rounds} rounds, by hooks. ONNX Runtime: the graph that is shipped, each "
        "node's fastest round, by its profiler; what it fuses counts for the part it keeps the "
        "name of."
    )
    yield ""


def _savings(study: ArchitectureStudy) -> Iterator[str]:
    yield from ("## What each named part saves against its twin in V1", "")
    yield from (*_table(SAVING_HEADS, saving_rows(study)), "")


def _fields(study: ArchitectureStudy) -> Iterator[str]:
    yield from ("## What a cell sees, and its anchors", "", "<receptive_field>", "")
    heads = ["stride", "anchors"]
    rows: Rows = [
        [str(stride), ", ".join(map(str, anchors))]
        for stride, anchors in zip(STRIDES, ANCHOR_SIZES, strict=True)
    ]
    for name, network in study.networks.items():
        heads += [f"{name} {place}" for place in network.theoretical]
        for row, stride in zip(rows, STRIDES, strict=True):
            row += [str(widths[stride]) for widths in network.theoretical.values()]
        if network.effective is not None:
            heads += [f"{name} 90 %", f"{name} half"]
            for row, stride in zip(rows, STRIDES, strict=True):
                field = network.effective[stride]
                row += [f"{field.ninety:.0f}", f"{field.half:.0f}"]
    yield from (*_table(heads, rows), "")
    yield (
        "Widths in pixels. Backbone, neck and context: all that can be seen there, attention's "
        "averages over the whole photo left out, deformable convolutions undeformed. 90 % and "
        "half: the square around the cell that holds so much of the gradient of its two logits."
    )
    yield ""


def _channels(study: ArchitectureStudy) -> Iterator[str]:
    yield from ("## How much each channel matters", "")
    known = {name: one.channels for name, one in study.networks.items() if one.channels}
    if len(known) < len(study.networks):
        yield from (SKIPPED["channels"], "")
    if not known:
        return
    yield from ("<channels>", "")
    heads = ["stage", *(f"{name} {what}" for name in known for what in ("channels", "weak"))]
    rows: Rows = []
    for stage in STAGES:
        row = [stage]
        for scores in known.values():
            one = scores.get(stage)
            row += [str(one.channels), str(one.weak)] if one else ["–", "–"]
        if any(stage in scores for scores in known.values()):
            rows.append(row)
    yield from (*_table(heads, rows), "")
    yield (
        "Weak: the normalisation's scale, where it is folded the filter's L2 norm, is under a "
        "tenth of its layer's mean."
    )
    yield ""


def _pruning(study: ArchitectureStudy) -> Iterator[str]:
    yield from ("## AP lost without a stage's weakest channels", "")
    known = {name: one.pruning for name, one in study.networks.items() if one.pruning}
    if len(known) < len(study.networks):
        yield from (SKIPPED["pruning"], "")
    if not known:
        return
    yield from ("<pruning>", "")
    for name, curves in known.items():
        heads = [f"{name}, points lost", *(f"{100 * share:.0f} %" for share in curves.shares)]
        rows = [
            [stage, *(f"{100 * (curves.whole - value):.1f}" for value in values)]
            for stage, values in curves.by_stage.items()
        ]
        yield from (*_table(heads, rows), "")
    first = next(iter(known.values()))
    yield (
        f"AP at IoU 0.5 on {first.photos} held-out photos with {first.faces:,} faces; whole: "
        + ", ".join(f"{name} {100 * curves.whole:.1f}" for name, curves in known.items())
        + ". Channels are set to zero and nothing is trained anew. So few photos tell large "
        "differences from small ones, not tenths of a point."
    )
    yield ""


def _table(heads: Sequence[str], rows: Rows) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|---" + "|---:" * (len(heads) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
