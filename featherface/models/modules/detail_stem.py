"""A second way from the image to stride 8, for tiny faces.

MobileNetV1 x0.25 looks at strides 2 and 4 through 8 to 32 channels, and what V1 and V2 miss of tiny
faces is lost there: V2's context and heads find as many as YuNet's once they read YuNet's map of
stride 8 (docs/experiments.md). This stem spends its channels at stride 4.
"""

from __future__ import annotations

from torch import Tensor, nn

from featherface.models.backbone import NO_SLOPE, ConvBlock, SeparableBlock

TO_STRIDE_4 = 4  # blocks
FIRST_SCALE = 0.3  # of what the stem adds, which is noise at first


class DetailStem(nn.Sequential):
    """Image ``[B, 3, H, W]`` to ``[B, outputs, H / 8, W / 8]``; ``channels`` at stride 4.

    The last block has no activation: what the stem adds may be negative.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        def separable(inputs: int, outputs: int, stride: int = 1) -> SeparableBlock:
            return SeparableBlock(inputs, outputs, stride, NO_SLOPE)

        last = list(separable(outputs, outputs).children())[:-1]
        nn.init.constant_(last[-1].weight, FIRST_SCALE)  # type: ignore[arg-type]
        super().__init__(
            ConvBlock(3, channels // 3, 2, NO_SLOPE),
            separable(channels // 3, channels // 3),
            separable(channels // 3, channels, 2),
            separable(channels, channels),
            separable(channels, outputs, 2),
            separable(outputs, outputs),
            nn.Sequential(*last),
        )

    def on_the_way(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The map at stride 4 and the result."""
        blocks = list(self.children())
        x = image
        for block in blocks[:TO_STRIDE_4]:
            x = block(x)
        stride_4 = x
        for block in blocks[TO_STRIDE_4:]:
            x = block(x)
        return stride_4, x
