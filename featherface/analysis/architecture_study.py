"""V1 and V2 side by side: costs, times, receptive fields, channels, pruning, in one dictionary.

study = study_architectures(v1, v2, Settings())
study.v2.figures["context"].onnx_ms
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.analysis.channel_scores import StageScores, channel_scores
from featherface.analysis.module_costs import Model, ModuleCost, module_costs
from featherface.analysis.module_times import module_times
from featherface.analysis.onnx_times import onnx_times
from featherface.analysis.pruning import PruningCurves, Step, pruning_curves
from featherface.analysis.receptive_field import (
    EffectiveField,
    effective_fields,
    theoretical_fields,
)
from featherface.analysis.savings import PartFigures, Saving, part_figures, savings, total
from featherface.anchors import ANCHOR_SIZES, STRIDES
from featherface.evaluation.validation import SplitPhotos, held_out_photos
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2

Say = Callable[[str], None]
FIELD_PHOTOS = 8  # whose gradients are averaged


@dataclass(frozen=True)
class Settings:
    """``width`` and ``height`` in pixels, multiples of 32; ``rounds`` of each timing."""

    width: int = 640
    height: int = 480
    rounds: int = 15
    fraction: float = 0.04
    photos: int | None = 100
    cache: Path | None = None


@dataclass(frozen=True, eq=False)
class NetworkStudy:
    """One network. What needs trained weights or photos is None where they are not there."""

    trained: bool
    costs: dict[str, ModuleCost]
    figures: dict[str, PartFigures]
    theoretical: dict[str, dict[int, int]]
    effective: dict[int, EffectiveField] | None
    channels: dict[str, StageScores] | None
    pruning: PruningCurves | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "trained": self.trained,
            "total": total(self.figures).as_dict(),
            "parts": {name: one.as_dict() for name, one in self.figures.items()},
            "blocks": {
                f"{name}.{block}": {
                    "parameters": cost.parameters,
                    "multiply_adds": cost.multiply_adds,
                    "written_bytes": cost.written_bytes,
                }
                for name, whole in self.costs.items()
                for block, cost in whole.blocks.items()
            },
            "receptive_field": {
                "theoretical": self.theoretical,
                "effective": {s: asdict(one) for s, one in (self.effective or {}).items()} or None,
            },
            "channels": {s: asdict(one) for s, one in (self.channels or {}).items()} or None,
            "pruning": asdict(self.pruning) if self.pruning else None,
        }


@dataclass(frozen=True, eq=False)
class ArchitectureStudy:
    """Both networks under the same settings."""

    settings: Settings
    date: str
    v1: NetworkStudy
    v2: NetworkStudy

    @property
    def networks(self) -> dict[str, NetworkStudy]:
        return {"V1": self.v1, "V2": self.v2}

    @property
    def savings(self) -> list[Saving]:
        """Each named part of V2 and its twin."""
        return savings(self.v1.figures, self.v2.figures)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "date": self.date,
            "width": self.settings.width,
            "height": self.settings.height,
            "rounds": self.settings.rounds,
            "anchors": dict(zip(STRIDES, ANCHOR_SIZES, strict=True)),
            "networks": {name: one.as_dict() for name, one in self.networks.items()},
            "savings": [
                {"part": one.name, "v1": one.first.as_dict(), "v2": one.second.as_dict()}
                for one in self.savings
            ],
        }


def study_architectures(
    v1: BaselineV1,
    v2: FeatherFaceV2,
    settings: Settings,
    v1_trained: bool = True,
    store: SplitPhotos | None = None,
    pictures: Sequence[NDArray[np.uint8]] = (),
    say: Say = lambda _: None,
    progress: Callable[[str, Sequence[Step]], Any] | None = None,
) -> ArchitectureStudy:
    """Measure both networks.

    Args:
        v1_trained: whether V1's weights are real; of chance ones only costs are told.
        store: photos with a held-out split, for pruning curves and effective fields.
        pictures: uint8 RGB, for effective fields where there is no ``store``.
        say: told what begins.
        progress: wraps the steps of a network's pruning, with a title.
    """
    if store is not None:
        chosen = held_out_photos(store, settings.fraction, FIELD_PHOTOS)
        pictures = [store[index].image for index in chosen]

    def study(name: str, model: Model, trained: bool) -> NetworkStudy:
        width, height = settings.width, settings.height
        say(f"{name}: parameters, work, memory")
        costs = module_costs(model, width, height)
        say(f"{name}: time in PyTorch and ONNX Runtime")
        torch_ms = module_times(model, width, height, settings.rounds)
        onnx_ms = onnx_times(model, width, height, settings.rounds)
        say(f"{name}: receptive fields")
        theoretical = theoretical_fields(model)
        effective = effective_fields(model, pictures) if trained and len(pictures) else None
        curves = None
        if trained and store is not None:
            say(f"{name}: pruning")
            title = f"{name} without its weakest channels"
            curves = pruning_curves(
                model,
                store,
                settings.fraction,
                settings.photos,
                cache=settings.cache,
                progress=(lambda steps: progress(title, steps)) if progress else None,
            )
        figures = part_figures(costs, torch_ms, onnx_ms)
        channels = channel_scores(model) if trained else None
        return NetworkStudy(trained, costs, figures, theoretical, effective, channels, curves)

    return ArchitectureStudy(
        settings,
        date.today().isoformat(),
        study("V1", v1, v1_trained),
        study("V2", v2, True),
    )
