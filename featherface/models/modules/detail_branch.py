"""A second way from the image to the heads, which sees small faces better.

MobileNetV1 x0.25 looks at strides 2 and 4 through 8 to 32 channels, and what V1 misses of small
faces is lost there. This branch has the shape of YuNet-n (Wu, Peng, Yu, Machine Intelligence
Research 2023), 64 channels from stride 4 on and each 1x1 convolution before its depthwise one, so
that YuNet can teach it map by map. It speaks at stride 8 alone, as larger faces need no second
opinion: its stage of stride 16 and a depthwise convolution at stride 32 only tell it what lies
around. Two detectors that learned apart err apart: the mean of their logits finds what neither does
(docs/experiments.md).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from featherface.models.modules.factored_pointwise import pointwise
from featherface.models.modules.light_bifpn import upsample

STEM_CHANNELS = 16
STRIDE_4_RANK = NECK_RANK = 24  # of 1x1 convolutions in two factors, where cells are many
TOWER_RANK = 20


class BranchMaps(NamedTuple):
    """What a branch makes of an image, ``[B, C, H / 8, W / 8]``.

    ``tower`` is for the heads, ``detail`` for the other way's neck.
    """

    tower: Tensor
    detail: Tensor


class MixedDepthwise(nn.Sequential):
    """1x1 convolution, depthwise 3x3, ReLU. A ``rank`` makes the first in two factors."""

    def __init__(self, inputs: int, outputs: int, rank: int = 0) -> None:
        super().__init__(
            pointwise(inputs, outputs, rank, bias=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs),
            nn.ReLU(inplace=True),
        )


class DetailBranch(nn.Module):
    """Image ``[B, 3, H, W]`` to two maps of stride 8.

    Its stage of stride 8 tells the other way of tiny faces, too, by one 1x1 convolution
    (``detail``), where a V2 with one way has a detail stem.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1),
            nn.ReLU(inplace=True),
            MixedDepthwise(STEM_CHANNELS, STEM_CHANNELS),
        )
        self.stage_4 = nn.Sequential(
            MixedDepthwise(STEM_CHANNELS, STEM_CHANNELS),
            MixedDepthwise(STEM_CHANNELS, channels),
            two_blocks(channels, STRIDE_4_RANK),
        )
        self.stages = nn.ModuleList([two_blocks(channels), two_blocks(channels)])  # 8 and 16
        self.around = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        nn.init.zeros_(self.around.weight)  # silent at first, as the teacher has stages there
        nn.init.zeros_(self.around.bias)  # type: ignore[arg-type]
        self.neck = nn.ModuleList(
            [MixedDepthwise(channels, channels, NECK_RANK), MixedDepthwise(channels, channels)]
        )
        self.tower = MixedDepthwise(channels, channels, TOWER_RANK)
        self.detail = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, image: Tensor) -> BranchMaps:
        finest = self.finest(image)
        return BranchMaps(self.tower(self.level(finest)), self.detail(finest))

    def finest(self, image: Tensor) -> Tensor:
        """Its stage of stride 8."""
        x: Tensor = self.stages[0](halved(self.stage_4(halved(self.stem(image)))))
        return x

    def level(self, finest: Tensor) -> Tensor:
        """Its neck's map of stride 8, from its stage there."""
        coarser = self.stages[1](halved(finest))
        around = self.around(halved(coarser))
        coarser = self.neck[1](coarser + upsample(around))
        level: Tensor = self.neck[0](finest + upsample(coarser))
        return level


def two_blocks(channels: int, rank: int = 0) -> nn.Sequential:
    """A stage of the branch."""
    return nn.Sequential(*(MixedDepthwise(channels, channels, rank) for _ in range(2)))


def halved(x: Tensor) -> Tensor:
    """Maximum over 2x2 cells, half the height and width."""
    return functional.max_pool2d(x, 2)
