"""What a study implies for V2's design: sentences made from its own numbers, none from memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from featherface.analysis.architecture_study import ArchitectureStudy, NetworkStudy
from featherface.analysis.module_costs import BETWEEN
from featherface.analysis.savings import PartFigures, Saving, total
from featherface.anchors import ANCHOR_SIZES, STRIDES

PRUNED = 0.3  # share at which stages are compared
SAME = 0.02  # AP, fraction: within it a stage has room


def implications(study: ArchitectureStudy) -> list[str]:
    """Markdown sentences, the most important first."""
    return [
        *_where_v1_spends(study),
        *_what_parts_save(study),
        *_where_v2_spends(study.v2),
        *_fields(study),
        *_pruning(study),
        *_weak_channels(study),
    ]


def _where_v1_spends(study: ArchitectureStudy) -> Iterator[str]:
    v1, whole = study.v1.figures, total(study.v1.figures)
    slowest = _largest(v1, "onnx_ms")
    heaviest = _largest(v1, "parameters")
    yield (
        f"**V1's time goes into `{slowest}`**: {_percent(v1[slowest].onnx_ms / whole.onnx_ms)} of "
        f"it in ONNX Runtime and {_percent(v1[slowest].torch_ms / whole.torch_ms)} in PyTorch, for "
        f"{_percent(v1[slowest].multiply_adds / whole.multiply_adds)} of the multiply-adds. "
        + (
            "It has the most parameters as well"
            if heaviest == slowest
            else f"The most parameters are in `{heaviest}`"
        )
        + f" ({_percent(v1[heaviest].parameters / whole.parameters)})."
    )


def _what_parts_save(study: ArchitectureStudy) -> Iterator[str]:
    first, second = total(study.v1.figures), total(study.v2.figures)
    named = [one for one in study.savings if one.name != BETWEEN]
    by_time = sorted(named, key=lambda one: one.second.onnx_ms - one.first.onnx_ms)
    by_size = sorted(named, key=lambda one: one.second.parameters - one.first.parameters)
    best, largest = by_time[0], by_size[0]
    saved = first.parameters - second.parameters
    yield (
        f"**Replacing the right part matters more than shrinking all of them**: V2 has "
        f"{_percent(second.parameters / first.parameters)} of V1's parameters, "
        f"{_percent(second.multiply_adds / first.multiply_adds)} of its multiply-adds and "
        f"{_percent(second.onnx_ms / first.onnx_ms)} of its time in ONNX Runtime. The "
        f"{best.name} alone makes up "
        f"{_share(best.first.onnx_ms - best.second.onnx_ms, first.onnx_ms - second.onnx_ms)} of "
        f"the time saved, and the {largest.name} "
        f"{_share(largest.first.parameters - largest.second.parameters, saved)} of the parameters."
    )
    for one in named:
        yield from _dearer(one, second)


def _dearer(one: Saving, whole: PartFigures) -> Iterator[str]:
    words = {"parameters": "parameters", "onnx_ms": "time"}
    more = [word for quantity, word in words.items() if one.ratio(quantity) > 1]
    if more:
        yield (
            f"**{one.name[0].upper()}{one.name[1:]}: dearer than its twin in {_list(more)}**, "
            f"{one.second.parameters:,.0f} parameters against {one.first.parameters:,.0f} and "
            f"{one.second.onnx_ms:.2f} ms against {one.first.onnx_ms:.2f} ms in ONNX Runtime. "
            f"That is {_percent(one.second.onnx_ms / whole.onnx_ms)} of V2's time, which accuracy "
            "has to pay back."
        )


def _where_v2_spends(v2: NetworkStudy) -> Iterator[str]:
    whole = total(v2.figures)
    slowest = _largest(v2.figures, "onnx_ms")
    one = v2.figures[slowest]
    yield (
        f"**What is left to speed up is `{slowest}`**: {_percent(one.onnx_ms / whole.onnx_ms)} of "
        f"V2's time in ONNX Runtime with {_percent(one.parameters / whole.parameters)} of its "
        f"parameters and {_percent(one.multiply_adds / whole.multiply_adds)} of its multiply-adds. "
        f"A smaller `{_largest(v2.figures, 'parameters')}` would make the file smaller "
        f"({_percent(v2.figures[_largest(v2.figures, 'parameters')].parameters / whole.parameters)}"
        " of the parameters), not the detector as much faster."
        if slowest != _largest(v2.figures, "parameters")
        else f"**`{slowest}` is V2's largest and slowest part**: "
        f"{_percent(one.onnx_ms / whole.onnx_ms)} of its time in ONNX Runtime and "
        f"{_percent(one.parameters / whole.parameters)} of its parameters; it is the place to look "
        "for both."
    )


def _fields(study: ArchitectureStudy) -> Iterator[str]:
    v1, v2 = study.v1.theoretical, study.v2.theoretical
    short = [
        stride
        for stride, anchors in zip(STRIDES, ANCHOR_SIZES, strict=True)
        if v2["backbone"][stride] < max(anchors)
    ]
    seen = ", ".join(f"{v2['context'][s]} (V1: {v1['context'][s]})" for s in STRIDES)
    inside = all(max(a) <= v2["context"][s] for s, a in zip(STRIDES, ANCHOR_SIZES, strict=True))
    text = (
        f"**{'Every' if inside else 'Not every'} anchor lies inside what its cell can see**: "
        f"{seen} pixels at strides {', '.join(map(str, STRIDES))}"
    )
    if short:
        strides = " and ".join(map(str, short))
        text += (
            f". The backbone alone would not do at stride {strides}: neck and context are needed "
            "for the sight as much as for the mixing"
        )
    yield text + "."
    effective = study.v2.effective
    if effective is not None:
        small, anchor = min(STRIDES), max(ANCHOR_SIZES[0])
        field = effective[small]
        yield (
            f"**In effect a cell looks at far less**: at stride {small} half of V2's gradient lies "
            f"within {field.half:.0f} pixels and 90 % within {field.ninety:.0f}, "
            f"{field.half / anchor:.1f} and {field.ninety / anchor:.1f} times its larger anchor. "
            + (
                "The tiny faces of this stride get more surroundings than face, which helps to "
                "tell them from clutter; a still wider context there has little to add."
                if field.half > anchor
                else "The context at this stride is no wider than the face; widening it is worth "
                "a try."
            )
        )


def _pruning(study: ArchitectureStudy) -> Iterator[str]:
    for name, network in study.networks.items():
        curves = network.pruning
        if curves is None or PRUNED not in curves.shares:
            continue
        lost = {stage: curves.lost(stage, PRUNED) for stage in curves.by_stage}
        order = sorted(lost, key=lambda stage: lost[stage])
        easy, hard = order[0], order[-1]
        text = (
            f"**{name} can spare channels in {easy} first, in {hard} last**: without the weakest "
            f"{_percent(PRUNED)} it loses {100 * lost[easy]:.1f} points there and "
            f"{100 * lost[hard]:.1f} here."
        )
        roomy = [stage for stage in order if lost[stage] <= SAME]
        if name == "V1":
            text += (
                f" Room of this kind (at most {100 * SAME:.0f} points) is in "
                f"{_list(roomy)}; V2 narrows stage 3."
                if roomy
                else " No stage gives them away for free, so narrowing needs training anew."
            )
        else:
            text += (
                f" A still smaller V2 should begin with {_list(roomy)}."
                if roomy
                else " No stage has idle channels left: a still smaller V2 has to be trained as "
                "such, not cut out of this one."
            )
        yield text


def _weak_channels(study: ArchitectureStudy) -> Iterator[str]:
    counts = {
        name: (
            sum(one.weak for one in network.channels.values()),
            sum(one.channels for one in network.channels.values()),
        )
        for name, network in study.networks.items()
        if network.channels
    }
    if counts:
        told = "; ".join(f"{name} {weak} of {all_:,}" for name, (weak, all_) in counts.items())
        idle = [name for name, (weak, all_) in counts.items() if weak > 0.01 * all_]
        yield (
            f"**Channels that training has switched off** (a scale under a tenth of their layer's "
            f"mean): {told}. "
            + (
                f"Those of {_list(idle)} can go without training anew."
                if idle
                else "Cutting by scale alone finds no dead weight; which channels to keep is a "
                "matter of degree."
            )
        )


def _largest(figures: Mapping[str, PartFigures], quantity: str) -> str:
    return max(figures, key=lambda name: getattr(figures[name], quantity))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _share(part: float, whole: float) -> str:
    return _percent(part / whole) if whole > 0 else "none"


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
