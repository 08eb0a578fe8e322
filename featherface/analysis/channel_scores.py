"""How much each channel matters, from the weights alone: normalisation scale and L1 norm.

The scale of the batch normalisation after a convolution is the spread of the channel's values (Liu
et al., Network Slimming, ICCV 2017); the L1 norm is that of the convolution's filter with the
normalisation folded into it (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017). Where
it is folded already, the filter's L2 norm stands for the scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherface.analysis.module_costs import Model

WEAK = 0.1  # of a layer's mean

STAGES: dict[str, tuple[str, ...]] = {
    "stage 1": ("backbone.stage1",),
    "stage 2": ("backbone.stage2",),
    "stage 3": ("backbone.stage3",),
    "neck": ("laterals", "second_laterals", "fusions"),
    "context": ("context", "shuffle"),
    "heads": ("heads",),
}


@dataclass(frozen=True, eq=False)
class NormalisedConv:
    """A convolution and the batch normalisation after it, by ``name`` of the latter; None for one
    that is folded.
    """

    name: str
    stage: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None

    @property
    def is_depthwise(self) -> bool:
        return self.conv.groups == self.conv.in_channels == self.conv.out_channels

    def scales(self) -> Tensor:
        """``[C]``, the magnitude of the normalisation's scale."""
        if self.norm is None:
            return self.conv.weight.detach().flatten(1).norm(dim=1)
        return self.norm.weight.detach().abs()

    def filter_norms(self) -> Tensor:
        """``[C]``, L1 norm of the folded filter."""
        norms = self.conv.weight.detach().abs().flatten(1).sum(1)
        if self.norm is None:
            return norms
        variance: Any = self.norm.running_var
        folded: Tensor = self.scales() / (variance + self.norm.eps).sqrt()
        return folded * norms

    @torch.no_grad()
    def silence(self, removed: Tensor) -> None:
        """Let the channels where ``removed``, bool ``[C]``, make nothing, in place."""
        for value in (self.conv if self.norm is None else self.norm).parameters():
            value[removed] = 0


@dataclass(frozen=True)
class StageScores:
    """Channels of one stage, those of depthwise convolutions left out.

    ``scales`` and ``filter_norms``: over the mean of their layer, smallest first. ``weak``: how
    many have a scale under a tenth of their layer's mean.
    """

    channels: int
    weak: int
    scales: list[float]
    filter_norms: list[float]


def normalised_convs(model: Model) -> Iterator[NormalisedConv]:
    """Every pair in the order of the model's definition; attention has none that counts."""
    last: tuple[str, nn.Conv2d] | None = None
    # A shared convolution stands before each of its normalisations.
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            last = name, module
            continue
        stage = stage_of(name)
        if stage is None or last is None:
            continue
        before, conv = last
        if isinstance(module, nn.BatchNorm2d) and conv.out_channels == module.num_features:
            yield NormalisedConv(name, stage, conv, module)
        elif isinstance(module, nn.Identity) and beside(before, name):
            yield NormalisedConv(name, stage, conv, None)


def beside(name: str, other: str) -> bool:
    """Whether both are parts of one module."""
    return name.rpartition(".")[0] == other.rpartition(".")[0]


def stage_of(name: str) -> str | None:
    """The entry of ``STAGES`` that a module belongs to."""
    for stage, prefixes in STAGES.items():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return stage
    return None


@torch.no_grad()
def channel_scores(model: Model) -> dict[str, StageScores]:
    """The scores of every stage that has a normalisation."""
    layers: dict[str, list[NormalisedConv]] = {}
    for pair in normalised_convs(model):
        if not pair.is_depthwise:
            layers.setdefault(pair.stage, []).append(pair)
    return {stage: _scores(pairs) for stage, pairs in layers.items()}


def _scores(pairs: Sequence[NormalisedConv]) -> StageScores:
    scales = torch.cat([_over_mean(pair.scales()) for pair in pairs]).sort().values
    norms = torch.cat([_over_mean(pair.filter_norms()) for pair in pairs]).sort().values
    return StageScores(len(scales), int((scales < WEAK).sum()), _rounded(scales), _rounded(norms))


def _over_mean(values: Tensor) -> Tensor:
    return values / values.mean().clamp_min(1e-12)


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
