"""Several detectors that answer together: each has its share of what is said at every anchor.

Detectors that learned apart err apart, and what they say together is better than what any says
(docs/experiments.md, A council). A share may depend on the size of the anchor: one finds tiny faces
and no large ones, another the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from featherface.anchors import ANCHORS_PER_CELL, STRIDES, of_stride
from featherface.models.modules.grouped_heads import VALUES
from featherface.models.outputs import HeadOutputs
from featherface.training.answers import as_maps
from featherface.training.config import MemberConfig
from featherface.training.onnx_teacher import OnnxTeacher
from featherface.training.scrfd_teacher import ScrfdTeacher

LEAST_SURE = 1e-4  # where none is sure of a face the mean of their boxes is a mean all the same


class Detector(Protocol):
    """Answers at V2's anchors, logits of background and face, for RGB images 0..255."""

    def __call__(self, images: Tensor) -> HeadOutputs: ...


class Member(NamedTuple):
    """A detector with its share, and what makes its logits as large as the others', per size."""

    ask: Detector
    shares: Sequence[float]
    slope: float
    shifts: Sequence[float]


def open_member(config: MemberConfig) -> Member:
    """The detector of ``config.path``.

    Raises ``WeightsError`` if the file is missing, corrupt or has other outputs.
    """
    ask: Detector
    if config.outputs == "scrfd":
        asked = [any(of_stride(config.shares, level)) for level in range(len(STRIDES))]
        ask = ScrfdTeacher(config.path, asked)
    else:
        ask = OnnxTeacher(config.path)
    return Member(ask, config.shares, config.slope, config.shifts)


@torch.no_grad()
def said_together(members: Sequence[Member], images: Tensor) -> list[Tensor]:
    """What the members say of RGB ``images`` ``[B, 3, H, W]``, 0..255: ``[B, 30, H / s, W / s]`` a
    stride, as V2's predictors give it.

    Logits are the mean by share; boxes and landmarks as well, and as each is sure of a face there.
    """
    answers = [as_maps(member.ask(images), images) for member in members]
    return [mixed(members, [one[level] for one in answers], level) for level in range(len(STRIDES))]


def mixed(members: Sequence[Member], maps: Sequence[Tensor], level: int) -> Tensor:
    """The mean of the members' ``maps`` of one stride."""
    logits, places, weights = [], [], []
    for member, one in zip(members, maps, strict=True):
        share, shift = (
            one.new_tensor(of_stride(x, level))[:, None, None]
            for x in (member.shares, member.shifts)
        )
        logit = member.slope * one[:, :ANCHORS_PER_CELL] + shift
        logits.append(share * logit)
        weights.append(share * logit.sigmoid().clamp_min(LEAST_SURE))
        places.append(one[:, ANCHORS_PER_CELL:])
    total = torch.stack(weights).sum(0)
    mean = torch.zeros_like(places[0])
    for weight, place in zip(weights, places, strict=True):
        of_anchor = weight / total
        mean += torch.cat([of_anchor.repeat_interleave(n, 1) for n in VALUES[1:]], 1) * place
    return torch.cat([torch.stack(logits).sum(0), mean], 1)
