"""BiFPN between strides 16 and 32 alone.

V1's three layers (EfficientDet, Tan et al., CVPR 2020) without their nodes at stride 8, where V2
has another way from the image. A third of the parameters, and most of the time, were spent there.
"""

from __future__ import annotations

from torch import Tensor, nn

from featherface.models.modules.bifpn import downsample
from featherface.models.modules.light_bifpn import FusionNode, upsample


class ShortBiFPN(nn.Module):
    """One top-down and bottom-up pass over strides 16 and 32, all of ``C`` channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down_16 = FusionNode(channels, 2, weighted=True)
        self.out_16 = FusionNode(channels, 2, weighted=True)
        self.out_32 = FusionNode(channels, 2, weighted=True)

    def forward(self, levels: list[Tensor], again: list[Tensor] | None = None) -> list[Tensor]:
        """``again``: other maps of strides 16 and 32 for the way up."""
        stride_16, stride_32 = levels
        again_16, again_32 = again or levels
        middle = self.down_16(stride_16, upsample(stride_32))
        out_16 = self.out_16(again_16, middle)
        return [out_16, self.out_32(again_32, downsample(out_16))]
