"""A second way from the image to stride 8, for tiny faces.

MobileNetV1 x0.25 looks at strides 2 and 4 through 8 to 32 channels, and what V1 and V2 miss of tiny
faces is lost there: V2's context and heads find as many as YuNet's once they read YuNet's map of
stride 8 (docs/experiments.md). This stem spends its channels at stride 4.
"""

from __future__ import annotations

from torch import Tensor, nn

from featherface.models.backbone import ConvBlock, SeparableBlock
from featherface.models.modules.ssh import NEGATIVE_SLOPE

FIRST_SCALE = 0.3  # of what the stem adds, which is noise at first
AT_STRIDE_4, AT_STRIDE_8 = 2, 4  # the layers whose maps are told


class DetailStem(nn.Sequential):
    """Image ``[B, 3, H, W]`` to ``[B, outputs, H / 8, W / 8]``; ``channels`` at stride 4."""

    def __init__(self, channels: int, outputs: int) -> None:
        norm = nn.BatchNorm2d(outputs)
        nn.init.constant_(norm.weight, FIRST_SCALE)
        super().__init__(
            ConvBlock(3, channels // 3, 2, NEGATIVE_SLOPE),
            SeparableBlock(channels // 3, channels, 2, NEGATIVE_SLOPE),
            SeparableBlock(channels, channels, 1, NEGATIVE_SLOPE),
            SeparableBlock(channels, outputs, 2, NEGATIVE_SLOPE),
            SeparableBlock(outputs, outputs, 1, NEGATIVE_SLOPE),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            norm,
        )

    def forward_with_maps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the stem adds, and its maps at strides 4 and 8."""
        maps = []
        for number, layer in enumerate(self):
            image = layer(image)
            if number in (AT_STRIDE_4, AT_STRIDE_8):
                maps.append(image)
        return image, maps[0], maps[1]
