"""Grouped heads: one 1x1 convolution a level for class, box and landmarks.

V1 has nine convolutions for three levels and three tasks. One logit says face or not: it equals the
difference of V1's two logits, so softmax and sigmoid agree.

The grouped V2 had a tower before them (depthwise 3x3, 1x1 in groups) that the levels shared, as
faces of all sizes look alike at the scale of their anchors, with a batch normalisation for each,
because their statistics differ (SCRFD, Guo et al., ICLR 2022, shares its heads in the same way).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featherface.anchors import ANCHORS_PER_CELL, STRIDES, of_stride
from featherface.models.modules.channel_permutation import ShuffledPointwise
from featherface.models.outputs import HeadOutputs

VALUES = (1, 4, 10)
TASK_CHANNELS = [ANCHORS_PER_CELL * values for values in VALUES]  # of a predictor


class GroupedHeads(nn.Module):
    """Maps ``[B, C, H/s, W/s]`` at strides 8, 16, 32 to ``HeadOutputs`` over all anchors.

    ``read`` are the channels ``C`` of each level. ``groups`` are those of the tower, for which they
    have to be the same; None for no tower.
    """

    def __init__(self, read: Sequence[int], groups: int | None, face_prior: float = 0.01) -> None:
        super().__init__()
        self.read, channels = tuple(read), read[0]
        self.depthwise: nn.Module | None = None
        self.tower = nn.ModuleList()
        if groups is not None:
            self.depthwise = nn.Conv2d(
                channels, channels, 3, padding=1, groups=channels, bias=False
            )
            levels = [ShuffledPointwise(channels, channels, groups) for _ in STRIDES]
            for level in levels[1:]:
                level.conv = levels[0].conv  # one set of weights, a batch normalisation a level
            self.tower.extend(levels)
        predictors = [nn.Conv2d(inputs, sum(TASK_CHANNELS), 1) for inputs in read]
        for predictor in predictors:
            start = torch.zeros(predictor.out_channels)
            start[:ANCHORS_PER_CELL] = -math.log(1 / face_prior - 1)
            predictor.bias = nn.Parameter(start)
            nn.init.normal_(predictor.weight, std=0.01)
        self.predictors = nn.ModuleList(predictors)

    def towers(self, levels: list[Tensor]) -> list[Tensor]:
        """The maps that the predictors read, ``[B, C, H/s, W/s]`` a level."""
        if self.depthwise is None:
            return levels
        return [x + mix(self.depthwise(x)) for x, mix in zip(levels, self.tower, strict=True)]

    def predict(self, towers: list[Tensor]) -> HeadOutputs:
        """Class logits ``[B, A]``, box deltas ``[B, A, 4]``, landmark deltas ``[B, A, 10]``."""
        return outputs_of(
            [predictor(x) for x, predictor in zip(towers, self.predictors, strict=True)]
        )

    def at_stride_8(self, x: Tensor) -> HeadOutputs:
        """What the anchors of stride 8 say, the first of all, from its map alone."""
        tower = x if self.depthwise is None else x + self.tower[0](self.depthwise(x))
        return outputs_of([self.predictors[0](tower)])

    @torch.no_grad()
    def correct_logits(self, temperature: float, shift: float, level: int | None = None) -> None:
        """Fold ``logit / temperature + shift`` into the predictors of the class.

        ``level``: of this stride alone, 0 to 2.
        """
        for predictor in self.predictors if level is None else [self.predictors[level]]:
            weight, bias = predictor.parameters()
            weight[:ANCHORS_PER_CELL] /= temperature
            bias[:ANCHORS_PER_CELL] = bias[:ANCHORS_PER_CELL] / temperature + shift

    @torch.no_grad()
    def shift_sizes(self, shifts: Sequence[float]) -> None:
        """Add a number to the logits of each size of anchor, from 16 pixels to 512."""
        for level, predictor in enumerate(self.predictors):
            _, bias = predictor.parameters()
            bias[:ANCHORS_PER_CELL] += bias.new_tensor(of_stride(shifts, level))

    def forward(self, levels: list[Tensor]) -> HeadOutputs:
        return self.predict(self.towers(levels))


def outputs_of(maps: list[Tensor]) -> HeadOutputs:
    """What the predictors of some levels gave, over all their anchors."""
    by_task = zip(*(x.split(TASK_CHANNELS, dim=1) for x in maps), strict=True)
    outputs = [
        torch.cat([flatten_anchors(x, values) for x in levels], dim=1)
        for levels, values in zip(by_task, VALUES, strict=True)
    ]
    return HeadOutputs(outputs[0].flatten(1), outputs[1], outputs[2])


def flatten_anchors(x: Tensor, values: int) -> Tensor:
    """``[B, anchors * values, H, W]`` to ``[B, H * W * anchors, values]``."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)
