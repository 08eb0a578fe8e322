"""A second way from the image to the heads, which sees small faces better.

MobileNetV1 x0.25 looks at strides 2 and 4 through 8 to 32 channels, and what V1 misses of small
faces is lost there. This branch has the shape of YuNet-n (Wu, Peng, Yu, Machine Intelligence
Research 2023), 64 channels from stride 4 on and each 1x1 convolution before its depthwise one, so
that YuNet can teach it map by map. It speaks at stride 8, or at 8 and 16; what is coarser only
tells it what lies around: with one stride a stage of stride 16 and a depthwise convolution at 32,
with two a stage of its own there. Two detectors that learned apart err apart: the mean of their
logits finds what neither does (docs/experiments.md).
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
STAGE_RANKS, NECK_RANKS = (0, 32, 22), (NECK_RANK, 28, 24)  # with two strides; 0 is a whole one


class BranchMaps(NamedTuple):
    """What a branch makes of an image, ``[B, C, H / s, W / s]``.

    ``towers`` are for the heads, one a stride where it speaks; ``detail`` is for the other way's
    neck at stride 8.
    """

    towers: list[Tensor]
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
    """Image ``[B, 3, H, W]`` to maps for the heads of stride 8, with ``strides`` 2 of 16 too.

    Its stage of stride 8 tells the other way of tiny faces, too, by one 1x1 convolution
    (``detail``), where a V2 with one way has a detail stem.
    """

    def __init__(self, channels: int, strides: int = 1) -> None:
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
        alone = strides == 1
        stage_ranks, neck_ranks = ((0, 0), (NECK_RANK, 0)) if alone else (STAGE_RANKS, NECK_RANKS)
        self.stages = nn.ModuleList(two_blocks(channels, rank) for rank in stage_ranks)  # from 8 on
        self.around = Around(channels) if alone else None
        self.neck = nn.ModuleList(MixedDepthwise(channels, channels, rank) for rank in neck_ranks)
        self.tower = MixedDepthwise(channels, channels, TOWER_RANK)
        self.coarse_tower = None if alone else MixedDepthwise(channels, channels, TOWER_RANK)
        self.detail = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, image: Tensor) -> BranchMaps:
        finest = self.finest(image)
        return BranchMaps(self.towers(finest), self.detail(finest))

    def finest(self, image: Tensor) -> Tensor:
        """Its stage of stride 8."""
        x: Tensor = self.stages[0](self.before_finest(image))
        return x

    def before_finest(self, image: Tensor) -> Tensor:
        """What that stage reads."""
        return halved(self.stage_4(halved(self.stem(image))))

    def towers(self, finest: Tensor) -> list[Tensor]:
        """What the heads read, from its stage of stride 8."""
        coarser = self.stages[1](halved(finest))
        coarser = self.neck[1](coarser + upsample(self.coarsest(halved(coarser))))
        towers = [self.tower(self.neck[0](finest + upsample(coarser)))]
        return towers if self.coarse_tower is None else [*towers, self.coarse_tower(coarser)]

    def coarsest(self, x: Tensor) -> Tensor:
        """What it makes at stride 32."""
        made: Tensor = self.neck[2](self.stages[2](x)) if self.around is None else self.around(x)
        return made


class Around(nn.Conv2d):
    """What lies around, by a depthwise 5x5 convolution: silent at first, as the teacher has stages
    there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 5, padding=2, groups=channels)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


def two_blocks(channels: int, rank: int = 0) -> nn.Sequential:
    """A stage of the branch."""
    return nn.Sequential(*(MixedDepthwise(channels, channels, rank) for _ in range(2)))


def halved(x: Tensor) -> Tensor:
    """Maximum over 2x2 cells, half the height and width."""
    return functional.max_pool2d(x, 2)
