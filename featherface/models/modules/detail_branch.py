"""A second way from the image to the heads, which sees small faces better.

MobileNetV1 x0.25 looks at strides 2 and 4 through 8 to 32 channels, and what V1 misses of small
faces is lost there. This branch has the shape of YuNet-n (Wu, Peng, Yu, Machine Intelligence
Research 2023), 64 channels from stride 4 on and each 1x1 convolution before its depthwise one, so
that YuNet can teach it map by map. It ends at stride 16, as large faces need no second opinion; a
depthwise convolution at stride 32 tells it what lies around, instead of YuNet's stage there. Two
detectors that learned apart err apart: the mean of their logits finds what neither does
(docs/experiments.md).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from featherface.anchors import STRIDES
from featherface.models.modules.light_bifpn import upsample

STEM_CHANNELS = 16
BRANCH_STRIDES = STRIDES[:2]


class MixedDepthwise(nn.Sequential):
    """1x1 convolution, depthwise 3x3, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 1),
            nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs),
            nn.ReLU(inplace=True),
        )


class DetailBranch(nn.Module):
    """Image ``[B, 3, H, W]`` to maps ``[B, C, H / s, W / s]`` of strides 8 and 16.

    :meth:`levels` makes them; ``towers`` make of each what the heads read.
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
            two_blocks(channels),
        )
        self.stages = nn.ModuleList(two_blocks(channels) for _ in BRANCH_STRIDES)
        self.around = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        nn.init.zeros_(self.around.weight)  # silent at first, as the teacher has stages there
        nn.init.zeros_(self.around.bias)  # type: ignore[arg-type]
        self.neck = nn.ModuleList(MixedDepthwise(channels, channels) for _ in BRANCH_STRIDES)
        self.towers = nn.ModuleList(MixedDepthwise(channels, channels) for _ in BRANCH_STRIDES)

    def levels(self, image: Tensor) -> list[Tensor]:
        """The maps of its neck, which goes down from stride 16."""
        x = self.stage_4(halved(self.stem(image)))
        maps = []
        for stage in self.stages:
            x = stage(halved(x))
            maps.append(x)
        coarser, levels = self.around(halved(x)), []
        for x, node in zip(reversed(maps), reversed(self.neck), strict=True):
            coarser = node(x + upsample(coarser))
            levels.append(coarser)
        return levels[::-1]


def two_blocks(channels: int) -> nn.Sequential:
    """A stage of the branch."""
    return nn.Sequential(MixedDepthwise(channels, channels), MixedDepthwise(channels, channels))


def halved(x: Tensor) -> Tensor:
    """Maximum over 2x2 cells, half the height and width."""
    return functional.max_pool2d(x, 2)
