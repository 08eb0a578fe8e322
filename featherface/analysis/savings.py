"""What each named part of V2 saves against the part of V1 whose work it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featherface.analysis.module_costs import BETWEEN, ModuleCost

STAGES = ("backbone.stage1", "backbone.stage2", "backbone.stage3")
# Part of V2, what of V1 it stands for, what of V2 it is.
TWINS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("backbone, stage 3 narrower", STAGES, STAGES),
    ("light BiFPN, laterals", ("fusions",), ("laterals", "second_laterals", "fusions")),
    ("CBAM-lite", ("backbone_attention", "neck_attention"), ("attention",)),
    ("detail stem", (), ("detail",)),
    ("detail branch", (), ("branch",)),
    ("light SSH", ("context", "shuffle"), ("context",)),
    ("grouped heads", ("heads",), ("heads",)),
    (BETWEEN, (BETWEEN,), (BETWEEN,)),
)
QUANTITIES = ("parameters", "multiply_adds", "written_bytes", "torch_ms", "onnx_ms")


@dataclass(frozen=True)
class PartFigures:
    """Everything that is counted and timed of a part, for one image."""

    parameters: float
    multiply_adds: float
    written_bytes: float
    torch_ms: float
    onnx_ms: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Saving:
    """A part of V2, ``second``, and its twin in V1, ``first``."""

    name: str
    first: PartFigures
    second: PartFigures

    def ratio(self, quantity: str) -> float:
        """V2's over V1's; infinite where V1 spends nothing."""
        first, second = getattr(self.first, quantity), getattr(self.second, quantity)
        return float(second / first) if first else float("inf" if second else 1)


def part_figures(
    costs: Mapping[str, ModuleCost], torch_times: Mapping[str, float], onnx: Mapping[str, float]
) -> dict[str, PartFigures]:
    """The three measurements of one network, side by side for each part."""
    return {
        name: PartFigures(
            cost.parameters,
            cost.multiply_adds,
            cost.written_bytes,
            torch_times[name],
            onnx[name],
        )
        for name, cost in costs.items()
    }


def total(figures: Mapping[str, PartFigures]) -> PartFigures:
    """The whole network."""
    return _sum(figures, tuple(figures))


def savings(first: Mapping[str, PartFigures], second: Mapping[str, PartFigures]) -> list[Saving]:
    """One entry for each pair of ``TWINS``; they add up to the whole networks."""
    return [
        Saving(name, _sum(first, of_first), _sum(second, of_second))
        for name, of_first, of_second in TWINS
        if any(one in first for one in of_first) or any(one in second for one in of_second)
    ]


def _sum(figures: Mapping[str, PartFigures], names: tuple[str, ...]) -> PartFigures:
    chosen: list[Any] = [figures[name] for name in names if name in figures]
    return PartFigures(*(sum(getattr(one, quantity) for one in chosen) for quantity in QUANTITIES))
