"""V1 with V2's inputs and outputs, so that one loop trains both and one detector runs both.

image [B, 3, H, W]  RGB, 0..255, as V2 takes it
logits [B, A]       face minus background: their sigmoid is V1's softmax
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.outputs import FeatureMaps, HeadOutputs

CHANNEL_MEANS = (104.0, 117.0, 123.0)  # blue, green, red


class BaselineV1(FeatherFaceV1):
    """``FeatherFaceV1``, weights and names alike, behind V2's door."""

    @classmethod
    def of(cls, model: FeatherFaceV1) -> BaselineV1:
        """``model``'s weights behind V2's door, in evaluation mode."""
        head: Any = model.heads.classes[0]
        with_bottleneck = isinstance(model.shuffle[0].bottleneck, nn.Sequential)
        baseline = cls(head.in_channels, with_bottleneck)
        baseline.load_state_dict(model.state_dict())
        return baseline.eval()

    def forward_with_features(self, image: Tensor) -> tuple[HeadOutputs, FeatureMaps]:
        """As V2's: one logit an anchor, and V1's maps."""
        means = image.new_tensor(CHANNEL_MEANS)[None, :, None, None]
        outputs, maps = super().forward_with_features(image.flip(1) - means)
        margin = outputs.logits[..., 1] - outputs.logits[..., 0]
        return HeadOutputs(margin, outputs.box_deltas, outputs.landmark_deltas), maps

    def deployed(self) -> BaselineV1:
        """A copy in evaluation mode; there is nothing to fold."""
        return copy.deepcopy(self).eval()
