"""What both models return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class HeadOutputs(NamedTuple):
    """Raw outputs over ``A`` anchors in the order of ``featherface.anchors.make_anchors``.

    Attributes:
        logits: V2: ``[B, A]``, one logit an anchor. V1: ``[B, A, 2]``, background and face.
        box_deltas: ``[B, A, 4]``.
        landmark_deltas: ``[B, A, 10]``.
    """

    logits: Tensor
    box_deltas: Tensor
    landmark_deltas: Tensor


class FeatureMaps(NamedTuple):
    """The maps ``[B, C, H/s, W/s]`` at strides 8, 16, 32 that distillation compares.

    Attributes:
        backbone: after the backbone's three stages.
        neck: after fusion and attention.
        context: what the heads read.
    """

    backbone: list[Tensor]
    neck: list[Tensor]
    context: list[Tensor]
