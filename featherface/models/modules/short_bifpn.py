"""BiFPN that leaves stride 8 alone until its last layer.

V1's three layers (EfficientDet, Tan et al., CVPR 2020) beside a detail branch, which sees small
faces better: stride 8 gets one node at the end and gives nothing to the strides above. Most of the
time, and a third of the parameters, were spent there.
"""

from __future__ import annotations

from torch import Tensor, nn

from featherface.models.modules.bifpn import downsample
from featherface.models.modules.light_bifpn import FusionNode, upsample


class ShortBiFPN(nn.Module):
    """One top-down and bottom-up pass over strides 16 and 32, all of ``C`` channels.

    The ``last`` of several has a node at stride 8, too; the others leave that map as it is.
    """

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.down_16 = FusionNode(channels, 2, weighted=True)
        self.out_8 = FusionNode(channels, 2, weighted=True) if last else None
        self.out_16 = FusionNode(channels, 2, weighted=True)
        self.out_32 = FusionNode(channels, 2, weighted=True)

    def forward(self, levels: list[Tensor], again: list[Tensor] | None = None) -> list[Tensor]:
        """``levels`` of strides 8, 16, 32; ``again``: other maps of the last two for the way up."""
        stride_8, stride_16, stride_32 = levels
        again_16, again_32 = again or levels[1:]
        middle = self.down_16(stride_16, upsample(stride_32))
        if self.out_8 is not None:
            stride_8 = self.out_8(stride_8, upsample(middle))
        out_16 = self.out_16(again_16, middle)
        return [stride_8, out_16, self.out_32(again_32, downsample(out_16))]
