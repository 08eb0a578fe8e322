"""A V2 that looks through V1's last stage: what a factored V2 made of both is to become.

A V2 has cut V1's last stage to fewer channels. With V1's laterals of stride 32 in the place of its
own it finds more large faces, nothing trained, at the price of a second backbone; a student whose
last stage keeps all channels learns to do the same in one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from featherface.models.featherface_v1 import FeatherFaceV1, attend
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.outputs import FeatureMaps, HeadOutputs
from featherface.training.distillation import teacher_input, with_two_logits


class JoinedTeacher(nn.Module):
    """``v2``, which has second laterals, with the laterals of stride 32 of ``v1``."""

    def __init__(self, v2: FeatherFaceV2, v1: FeatherFaceV1) -> None:
        super().__init__()
        self.v2, self.v1 = v2.eval(), v1.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[HeadOutputs, FeatureMaps]:
        """Outputs as V1 gives them, with two logits an anchor, and maps, for RGB images 0..255."""
        levels, again = self.v2.both_laterals(self.v2.backbone(images))
        v1s, v1s_again = laterals_of_v1(self.v1, self.v1.backbone(teacher_input(images)))
        neck = self.v2.fused([*levels[:-1], v1s[-1]], [*again[:-1], v1s_again[-1]])
        outputs, towers = self.v2.behind_neck(neck)
        return with_two_logits(outputs), FeatureMaps([], neck, towers)


def laterals_of_v1(v1: FeatherFaceV1, backbone: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The laterals of strides 8, 16 and 32 and the second ones of 16 and 32, of V1's backbone."""
    fusion: Any = v1.fusions[0]
    laterals: tuple[list[Tensor], list[Tensor]] = fusion.both_laterals(
        attend(v1.backbone_attention, backbone)
    )
    return laterals
