"""Another detector's scores at V2's anchors, for pictures as training shows them.

Its labels were made once, on whole photos as they are. Asked again about a crop that is blurred,
covered or mixed with another, it tells what can still be seen there, and how much a thing that is
no face looks like one (dark knowledge: Hinton et al., 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from featherface.anchors import ANCHORS_PER_CELL, STRIDES
from featherface.errors import ConfigError
from featherface.training.config import ScorerConfig
from featherface.training.map_teacher import cut_off
from featherface.training.torch_graph import TorchGraph

# SCRFD's cells are centred at whole strides, V2's at halves. Black of 20 pixels at the left and
# above brings them together at stride 8, and to within 4 pixels at strides 16 and 32.
MARGIN = 20
FIRST_CELLS = tuple(-(-MARGIN // stride) for stride in STRIDES)


class ScoreTeacher(nn.Module):
    """Class maps of SCRFD's kind: two anchors a cell of V2's sizes, strides 8, 16 and 32.

    Raises:
        WeightsError: the file cannot be read, or has an operator that is not known.
        ConfigError: it has no map of such a name, or not three maps are named.
    """

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        if len(config.maps) != len(STRIDES):
            raise ConfigError(
                f"distillation.scorer: {len(config.maps)} maps; name those of the class logits at "
                f"strides {', '.join(map(str, STRIDES))}"
            )
        self.config = config
        self.network = TorchGraph(cut_off(config.path, config.maps, "distillation.scorer"))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits of a face ``[B, A]`` for RGB ``images`` ``[B, 3, H, W]``, 0..255.

        Raises:
            ConfigError: the maps are no class logits of two anchors a cell at those strides.
        """
        config = self.config
        count, _, height, width = images.shape
        pixels = images.flip(1) if config.bgr else images
        rest = STRIDES[-1] - MARGIN
        pixels = functional.pad(pixels, (MARGIN, rest, MARGIN, rest))
        logits = []
        maps = self.network((pixels - config.mean) / config.scale)
        for x, stride, first in zip(maps, STRIDES, FIRST_CELLS, strict=True):
            rows, columns = height // stride, width // stride
            seen = x[:, :, first : first + rows, first : first + columns]
            if seen.shape[1:] != (ANCHORS_PER_CELL, rows, columns):
                raise ConfigError(
                    f"distillation.scorer: a map of shape {list(x.shape[1:])} at stride {stride}; "
                    f"class logits of {ANCHORS_PER_CELL} anchors a cell were expected"
                )
            logits.append(seen.permute(0, 2, 3, 1).reshape(count, -1))
        return config.sharpness * torch.cat(logits, 1)
