"""The named parts of V1 and V2 in the order of the data: what each is, does and costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from featherface.anchors import STRIDES
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2

Kind = Literal["stages", "levels", "stem", "branch", "fusion", "heads"]


@dataclass(frozen=True)
class Part:
    """One column of the architecture.

    Attributes:
        name: what it is called in the code and the paper.
        note: one line of what it does.
        parameters: learned values, those shared with an earlier part not counted again.
        kind: how it lies over the strides: backbone stages, one copy a stride, a way from the
            image to stride 8 or beside the other to the heads, fusion across strides, or one set of
            weights for all of them.
        cells: a text for each stride 8, 16, 32.
    """

    name: str
    note: str
    parameters: int
    kind: Kind
    cells: tuple[str, str, str]


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Learned values by direct child; shared ones count for the first child that has them."""
    seen: set[int] = set()
    counts = {}
    for name, child in model.named_children():
        own = [p for p in child.parameters() if id(p) not in seen]
        seen.update(id(p) for p in own)
        counts[name] = sum(p.numel() for p in own)
    return counts


def parameters_by_stage(model: FeatherFaceV1 | FeatherFaceV2) -> dict[str, int]:
    """``parameters_by_part`` with the backbone split into its three stages."""
    counts = parameters_by_part(model)
    counts.pop("backbone")
    stages = parameters_by_part(model.backbone)
    return {f"backbone.{name}": count for name, count in stages.items()} | counts


def parts_of(model: FeatherFaceV1 | FeatherFaceV2) -> list[Part]:
    """The parts of either model, first to last; their parameters add up to the model's."""
    return parts_of_v1(model) if isinstance(model, FeatherFaceV1) else parts_of_v2(model)


def parts_of_v2(model: FeatherFaceV2) -> list[Part]:
    """Backbone, laterals, light BiFPN, CBAM-lite, light SSH, grouped heads.

    A detail stem stands before what reads it, and so does a detail branch.
    """
    count = parameters_by_part(model)
    width = model.heads.predictors[-1].in_channels  # the finer ones may read two ways
    weighted, light = len(model.second_laterals) > 0, model.heads.depthwise is None
    channels = [
        next(m.in_channels for m in lateral.modules() if isinstance(m, nn.Conv2d))
        for lateral in model.laterals
    ]
    return [
        backbone_part(count["backbone"], channels),
        Part(
            "Laterals",
            "1×1 convolutions",
            count["laterals"] + count["second_laterals"],
            "levels",
            _cells(f"{n} → {width}" for n in channels),
        ),
        Part(
            f"Light BiFPN ×{len(model.fusions)}",
            "weighted, both ways" if weighted else "plain sums, both ways",
            count["fusions"],
            "fusion",
            _same(""),
        ),
        Part(
            "CBAM-lite",
            "what and where",
            count["attention"],
            "levels",
            _same("channel\n× spatial gate"),
        ),
        *stem_part(model, count),
        Part(
            "Light SSH" if light else "Grouped SSH",
            "separable" if light else "plain, in groups",
            count["context"],
            "levels",
            _same(light_cells(model) if light else "3×3 5×5 7×7\ngrouped"),
        ),
        *branch_part(model, count),
        Part(
            "Grouped heads",
            "one a stride" if light else "one tower for all strides",
            count["heads"],
            "heads",
            _same("1×1" if light else "tower"),
        ),
    ]


def branch_part(model: FeatherFaceV2, count: dict[str, int]) -> list[Part]:
    """The detail branch, where there is one: its channels at strides 2, and 4 and more; where it
    speaks the cell has a text.
    """
    if model.branch is None:
        return []
    depthwise = (m for m in model.branch.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    widths = {m.out_channels for m in depthwise}
    second = "" if model.branch.coarse_tower is None else "too"
    cells = _cells((" → ".join(map(str, sorted(widths))), second, ""))
    return [Part("Detail branch", "tells the neck, too", count["branch"], "branch", cells)]


def stem_part(model: FeatherFaceV2, count: dict[str, int]) -> list[Part]:
    """The detail stem, where there is one: its channels at strides 2, 4 and 8.

    Of one that the backbone shares, those up to stride 4 stand in the second cell.
    """
    if model.detail is None:
        return []
    widths = [m.out_channels for m in model.detail.modules() if isinstance(m, nn.Conv2d)]
    at_2, at_4, at_8 = sorted(set(widths))
    cells = _cells((f"{at_2} → {at_4} → {at_8}", "", ""))
    if model.shared_stem:
        cells = _cells((f"{at_4} → {at_8}", f"{at_2} → {at_4}", ""))
    return [Part("Detail stem", "for tiny faces", count["detail"], "stem", cells)]


def light_cells(model: FeatherFaceV2) -> str:
    """The kernels of the light SSH, one a separable block."""
    sides = [
        m.kernel_size[0]
        for m in model.context[0].modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1
    ]
    return " ".join(f"{side}×{side}" for side in sides) + "\nseparable"


def parts_of_v1(model: FeatherFaceV1) -> list[Part]:
    """Backbone, CBAM, BiFPN, CBAM, deformable SSH, shuffle block, heads."""
    count = parameters_by_part(model)
    width = model.heads.classes[0].in_channels
    gates = "channel\n× spatial gate"
    return [
        backbone_part(count["backbone"], [64, 128, 256]),
        Part("CBAM", "attention, first", count["backbone_attention"], "levels", _same(gates)),
        Part(
            f"BiFPN ×{len(model.fusions)}",
            f"weighted, {width} channels",
            count["fusions"],
            "fusion",
            _same(""),
        ),
        Part("CBAM", "attention, again", count["neck_attention"], "levels", _same(gates)),
        Part(
            "Deformable SSH",
            "learned offsets",
            count["context"],
            "levels",
            _same("3×3 5×5 7×7\ndeformable"),
        ),
        Part(
            "Shuffle block",
            "mixes the channels",
            count["shuffle"],
            "levels",
            _same("shuffle\n+ bottleneck"),
        ),
        Part("Heads", "three a stride", count["heads"], "heads", _same("1×1\n× 3")),
    ]


def backbone_part(parameters: int, channels: list[int]) -> Part:
    """MobileNetV1 with its map after each stage."""
    cells = (f"stage {i}\n{n} channels" for i, n in enumerate(channels, start=1))
    return Part("MobileNetV1 ×¼", "backbone", parameters, "stages", _cells(cells))


def _same(text: str) -> tuple[str, str, str]:
    return _cells(text for _ in STRIDES)


def _cells(texts: Iterable[str]) -> tuple[str, str, str]:
    first, second, third = texts
    return first, second, third
