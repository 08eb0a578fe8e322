"""MobileNetV1 at a quarter of its width (Howard et al., 2017), cut after strides 8, 16 and 32."""

from __future__ import annotations

from torch import Tensor, nn

from featherface.models.modules.factored_pointwise import pointwise

NO_SLOPE = 0.0  # runtimes compute a ReLU within the convolution before it, a leaky one after it


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, negative_slope: float) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(negative_slope, inplace=True),
        )


class SeparableBlock(nn.Sequential):
    """Depthwise 3x3 and pointwise 1x1, each with batch normalisation and activation.

    A ``rank`` makes the pointwise convolution a factored one.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, negative_slope: float, rank: int = 0
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.LeakyReLU(negative_slope, inplace=True),
            pointwise(inputs, outputs, rank),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(negative_slope, inplace=True),
        )


class MobileNetV1(nn.Module):
    """Image ``[B, 3, H, W]`` to 64, 128 and ``stage3_channels`` channels at strides 8, 16, 32.

    With ``stem_channels`` it begins at a map of another stem, ``[B, stem_channels, H / 4, W / 4]``,
    in place of the image. What is left of its first stage has ReLUs then, but for the last one.
    ``stage2_rank`` holds for the blocks of 128 channels to 128, ``stage3_rank`` for both of the
    last stage, ``entry_rank`` for the block from 64 channels to 128; 0 for whole convolutions.
    """

    def __init__(
        self,
        stage3_channels: int = 256,
        negative_slope: float = 0.1,
        stage2_rank: int = 0,
        stage3_rank: int = 0,
        stem_channels: int = 0,
        entry_rank: int = 0,
    ) -> None:
        super().__init__()

        def separable(inputs: int, outputs: int, stride: int = 1, rank: int = 0) -> SeparableBlock:
            return SeparableBlock(inputs, outputs, stride, negative_slope, rank)

        if stem_channels:
            last = SeparableBlock(64, 64, 1, NO_SLOPE)
            last[-1] = nn.LeakyReLU(negative_slope, inplace=True)  # stage 2 reads what is negative
            self.stage1 = nn.Sequential(
                SeparableBlock(stem_channels, 32, 1, NO_SLOPE),
                SeparableBlock(32, 32, 1, NO_SLOPE),
                SeparableBlock(32, 64, 2, NO_SLOPE),
                last,
            )
        else:
            self.stage1 = nn.Sequential(
                ConvBlock(3, 8, 2, negative_slope),
                separable(8, 16),
                separable(16, 32, 2),
                separable(32, 32),
                separable(32, 64, 2),
                separable(64, 64),
            )
        self.stage2 = nn.Sequential(
            separable(64, 128, 2, entry_rank),
            *(separable(128, 128, rank=stage2_rank) for _ in range(5)),
        )
        self.stage3 = nn.Sequential(
            separable(128, stage3_channels, 2, stage3_rank),
            separable(stage3_channels, stage3_channels, rank=stage3_rank),
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """The three maps of an image, or of what ``stem_channels`` says."""
        return self.behind_first_stage(self.stage1(image))

    def behind_first_stage(self, stride_8: Tensor) -> list[Tensor]:
        """What the backbone makes of the map of its first stage, and that map."""
        stride_16 = self.stage2(stride_8)
        return [stride_8, stride_16, self.stage3(stride_16)]
