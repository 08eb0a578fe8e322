"""Light BiFPN: top-down and bottom-up fusion of three levels by plain sums.

V1's BiFPN (EfficientDet, Tan et al., CVPR 2020) weighs each edge and passes the sum through swish.
The weight of an edge is a factor that the batch normalisation before it can learn as well, swish
costs two passes over the map, and the second set of laterals a tenth of V2's parameters, so all
three go: a node is ReLU, depthwise 3x3, pointwise 1x1, batch normalisation.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class FusionNode(nn.Module):
    """ReLU, depthwise 3x3, pointwise 1x1, batch normalisation on a sum of maps ``[B, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(functional.relu(x))))


class LightBiFPN(nn.Module):
    """One top-down and bottom-up pass over strides 8, 16 and 32, all of ``C`` channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down_16 = FusionNode(channels)
        self.out_8 = FusionNode(channels)
        self.out_16 = FusionNode(channels)
        self.out_32 = FusionNode(channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        stride_8, stride_16, stride_32 = levels
        middle = self.down_16(stride_16 + upsample(stride_32))
        out_8 = self.out_8(stride_8 + upsample(middle))
        out_16 = self.out_16(stride_16 + middle + downsample(out_8))
        out_32 = self.out_32(stride_32 + downsample(out_16))
        return [out_8, out_16, out_32]


def upsample(x: Tensor) -> Tensor:
    """Nearest neighbour, twice the height and width."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Maximum over 3x3 cells, half the height and width, which are even.

    The windows begin at even cells, as in V1; the last reaches over the edge by one.
    """
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)
