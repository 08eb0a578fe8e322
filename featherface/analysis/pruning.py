"""What a stage's least important channels are worth: AP lost when they are set to zero.

Each dense convolution of the stage loses its own channels of the smallest normalisation scale. The
depthwise convolution that follows one loses the same channels, as it would if they were cut out.
Nothing is trained anew: the curve shows where the network has room, not what a pruned one reaches.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherface.analysis.channel_scores import STAGES, normalised_convs
from featherface.analysis.module_costs import Model
from featherface.evaluation.result_files import write_result_json
from featherface.evaluation.validation import SplitPhotos
from featherface.training.validation import validate_model

SHARES: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)

Step = tuple[str, float]
Progress = Callable[[Sequence[Step]], Iterable[Step]]


@dataclass(frozen=True)
class PruningCurves:
    """AP (0..1) on ``photos`` held-out photos: ``whole`` of the network as it is, and by stage one
    value for each of ``shares``."""

    photos: int
    faces: int
    whole: float
    shares: tuple[float, ...]
    by_stage: dict[str, list[float]]

    def lost(self, stage: str, share: float) -> float:
        """AP lost, a fraction."""
        return self.whole - self.by_stage[stage][self.shares.index(share)]


@torch.no_grad()
def without_weakest(model: Model, stage: str, share: float) -> Model:
    """A copy of ``model`` whose ``stage`` has ``share`` of its channels at zero."""
    pruned = copy.deepcopy(model).eval()
    removed: Tensor | None = None  # of the dense convolution before
    for pair in normalised_convs(pruned):
        if pair.is_depthwise:
            if removed is not None and len(removed) == pair.conv.out_channels:
                pair.silence(removed)
            continue
        removed = None
        if pair.stage == stage:
            removed = torch.zeros(pair.conv.out_channels, dtype=torch.bool)
            removed[pair.scales().argsort()[: round(share * len(removed))]] = True
            pair.silence(removed)
    return pruned


def stages_of(model: Model) -> list[str]:
    """The stages that have channels to lose."""
    present = {pair.stage for pair in normalised_convs(model) if not pair.is_depthwise}
    return [stage for stage in STAGES if stage in present]


def pruning_curves(
    model: Model,
    store: SplitPhotos,
    fraction: float,
    limit: int | None = None,
    shares: Sequence[float] = SHARES,
    cache: Path | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> PruningCurves:
    """Measure every stage at every share, on at most ``limit`` of the held-out photos.

    With ``cache``, a folder, a run that was cut off goes on where it stopped.
    """
    steps: list[Step] = [("", 0.0)]
    steps += [(stage, share) for stage in stages_of(model) for share in shares]
    kept = cache / f"pruning-{_digest(model, store, fraction, limit)}.json" if cache else None
    known: dict[str, Any] = json.loads(kept.read_text()) if kept and kept.is_file() else {}
    for stage, share in progress(steps) if progress else steps:
        key = f"{stage}:{share:g}"
        if key in known:
            continue
        pruned = without_weakest(model, stage, share)
        result = validate_model(pruned, store, fraction, limit, threads)
        known[key] = {"ap": result.ap, "photos": result.photos, "faces": result.faces}
        if kept is not None:
            write_result_json(kept, known)
    whole: Mapping[str, Any] = known[":0"]
    return PruningCurves(
        photos=whole["photos"],
        faces=whole["faces"],
        whole=whole["ap"],
        shares=tuple(shares),
        by_stage={
            stage: [known[f"{stage}:{share:g}"]["ap"] for share in shares]
            for stage in stages_of(model)
        },
    )


def _digest(model: Model, store: SplitPhotos, fraction: float, limit: int | None) -> str:
    digest = hashlib.sha256(f"{type(model).__name__} {fraction:g} {limit}".encode())
    digest.update(" ".join(map(str, getattr(store, "keys", ()))).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
