"""RetinaFace's heads: one 1x1 convolution for each task and level (Deng et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherface.anchors import ANCHORS_PER_CELL, STRIDES
from featherface.models.modules.grouped_heads import flatten_anchors
from featherface.models.outputs import HeadOutputs


class Heads(nn.Module):
    """Maps at strides 8, 16, 32 to ``HeadOutputs``; two logits an anchor, background and face."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def make(values: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(channels, ANCHORS_PER_CELL * values, 1) for _ in STRIDES)

        self.classes, self.boxes, self.landmarks = make(2), make(4), make(10)

    def forward(self, levels: list[Tensor]) -> HeadOutputs:
        tasks = ((self.classes, 2), (self.boxes, 4), (self.landmarks, 10))
        return HeadOutputs(
            *(
                torch.cat(
                    [flatten_anchors(c(x), n) for c, x in zip(convs, levels, strict=True)], dim=1
                )
                for convs, n in tasks
            )
        )
