"""V1, or a V2, as a teacher on a CPU: its answers and its maps by ONNX Runtime.

In PyTorch V1's deformable convolutions are made of plain operators; ONNX Runtime has one for them
and answers several times faster.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from featherface.anchors import STRIDES
from featherface.export.onnx_file import OPSET
from featherface.export.v1_onnx import DEFORM_CONV_OPSET, with_deform_nodes
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.outputs import FeatureMaps, HeadOutputs
from featherface.training.distillation import with_two_logits
from featherface.training.teacher_session import open_session

LEVELS = len(STRIDES)
OUTPUTS = ("logits", "box_deltas", "landmark_deltas")
MAPS = tuple(f"{part}_{level}" for part in FeatureMaps._fields for level in range(LEVELS))


class TwinTeacher:
    """``model`` behind one thread of ONNX Runtime; images are RGB 0..255, as V2 takes them."""

    def __init__(self, model: FeatherFaceV1 | FeatherFaceV2) -> None:
        network: BaselineV1 | FeatherFaceV2
        if isinstance(model, FeatherFaceV1):
            network, opset = with_deform_nodes(BaselineV1.of(model)), DEFORM_CONV_OPSET
        else:
            network, opset = model.deployed(), OPSET
        self.has_detail = isinstance(network, FeatherFaceV2) and network.has_detail
        with TemporaryDirectory(prefix="featherface-") as folder:
            path = Path(folder) / "teacher.onnx"
            size = {0: "batch", 2: "height", 3: "width"}
            # Names that two sizes share would be taken for one size.
            sizes = {name: {0: "batch", 2: f"{name}_h", 3: f"{name}_w"} for name in MAPS}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    _WithMaps(network).eval(),
                    (torch.zeros(1, 3, 64, 64),),
                    str(path),
                    input_names=["image"],
                    output_names=[*OUTPUTS, *MAPS],
                    dynamic_axes={"image": size}
                    | {name: {0: "batch", 1: "anchors"} for name in OUTPUTS}
                    | sizes,
                    opset_version=opset,
                    dynamo=False,
                )
            self._session = open_session(path.read_bytes())

    def __call__(self, images: Tensor, maps: bool) -> tuple[HeadOutputs, FeatureMaps | None]:
        """Outputs for float ``images`` ``[B, 3, H, W]``, logits (0, face minus background), and
        the maps if they are asked for.
        """
        blob = np.ascontiguousarray(images.detach().cpu().numpy(), np.float32)
        names = [*OUTPUTS, *MAPS] if maps else list(OUTPUTS)
        values = [
            torch.from_numpy(x).to(images.device) for x in self._session.run(names, {"image": blob})
        ]
        outputs = with_two_logits(HeadOutputs(*values[: len(OUTPUTS)]))
        if not maps:
            return outputs, None
        shown = values[len(OUTPUTS) :]
        parts = [shown[first : first + LEVELS] for first in range(0, len(MAPS), LEVELS)]
        return outputs, FeatureMaps(*parts)


class _WithMaps(nn.Module):
    def __init__(self, model: BaselineV1 | FeatherFaceV2) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs, maps = self.model.forward_with_features(image)
        return (*outputs, *maps.backbone, *maps.neck, *maps.context)
