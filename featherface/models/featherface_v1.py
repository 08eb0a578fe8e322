"""FeatherFace V1 (Kim, Jung, Kim, Electronics 2025, 14(3), 517): the baseline and the teacher.

    image [B, 3, H, W]  BGR, 0..255 minus (104, 117, 123)
      backbone          MobileNetV1 x0.25: 64, 128, 256 channels at strides 8, 16, 32
      CBAM              after each stage, with a residual
      BiFPN x3          weighted fusion
      CBAM              again
      SSH               deformable convolutions: 3x3, 5x5, 7x7 context
      shuffle block     channel shuffle and bottleneck
      heads             class (2), box (4), landmarks (10) for two anchors a cell
    HeadOutputs         logits [B, A, 2], box deltas [B, A, 4], landmark deltas [B, A, 10]

Follows the public code that trained the published weights, its quirks included. At 64 channels it
has 592,371 parameters; ``FeatherFaceV1.paper()`` is the paper's 0.49M.
"""

from __future__ import annotations

from torch import Tensor, nn

from featherface.anchors import STRIDES
from featherface.models.backbone import MobileNetV1
from featherface.models.modules.bifpn import BiFPN
from featherface.models.modules.cbam import CBAM
from featherface.models.modules.heads import Heads
from featherface.models.modules.ssh import DeformableSSH, ShuffleBlock
from featherface.models.outputs import FeatureMaps, HeadOutputs

STAGE_CHANNELS = (64, 128, 256)


class FeatherFaceV1(nn.Module):
    """``out_channels`` is the width of neck, context and heads.

    ``bottleneck`` keeps the convolutions after the channel shuffle, which the public weights have
    and the paper's count does not.
    """

    def __init__(self, out_channels: int = 64, bottleneck: bool = True) -> None:
        super().__init__()
        self.backbone = MobileNetV1()
        self.backbone_attention = nn.ModuleList(CBAM(channels) for channels in STAGE_CHANNELS)
        self.fusions = nn.ModuleList(
            BiFPN(out_channels, STAGE_CHANNELS if layer == 0 else None) for layer in range(3)
        )
        self.neck_attention = nn.ModuleList(CBAM(out_channels) for _ in STRIDES)
        self.context = nn.ModuleList(DeformableSSH(out_channels) for _ in STRIDES)
        self.shuffle = nn.ModuleList(ShuffleBlock(out_channels, bottleneck) for _ in STRIDES)
        self.heads = Heads(out_channels)

    @classmethod
    def paper(cls) -> FeatherFaceV1:
        """The paper's 0.49M: 52 channels and a bare channel shuffle, 488,664 parameters."""
        return cls(out_channels=52, bottleneck=False)

    def forward_with_features(self, image: Tensor) -> tuple[HeadOutputs, FeatureMaps]:
        """Head outputs and the maps that distillation compares with V2's."""
        backbone = self.backbone(image)
        levels = attend(self.backbone_attention, backbone)
        for fusion in self.fusions:
            levels = fusion(levels)
        neck = attend(self.neck_attention, levels)
        context = [
            shuffle(ssh(x))
            for ssh, shuffle, x in zip(self.context, self.shuffle, neck, strict=True)
        ]
        return self.heads(context), FeatureMaps(backbone, neck, context)

    def forward(self, image: Tensor) -> HeadOutputs:
        return self.forward_with_features(image)[0]


def attend(modules: nn.ModuleList, maps: list[Tensor]) -> list[Tensor]:
    """CBAM with a residual and ReLU, level by level."""
    return [(module(x) + x).relu() for module, x in zip(modules, maps, strict=True)]
