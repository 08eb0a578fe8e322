"""V1 as an ONNX file that ``FaceDetector`` runs: the inputs and outputs of V2's.

    export_v1_onnx(load_v1("featherface_v1_wider.safetensors"), Path("featherface_v1.onnx"))

The deformable convolutions become ONNX's ``DeformConv`` (opset 19 and later), one node each; in
plain operators (``GridSample`` and a matrix product) they take ONNX Runtime more time and memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherface.export.onnx_file import export_onnx
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.modules.deformable_conv import DeformableConv, deformable_convolution

DEFORM_CONV_OPSET = 19


class _DeformConv(torch.autograd.Function):
    """``deformable_convolution`` in PyTorch, one ``DeformConv`` node in ONNX."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return deformable_convolution(x, offset, mask, weight)

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, offset: Any, mask: Any) -> Any:
        outputs = weight.type().sizes()[0]
        bias = graph.op("Constant", value_t=torch.zeros(outputs))
        node = graph.op(
            "DeformConv", x, weight, offset, bias, mask,
            kernel_shape_i=[3, 3], pads_i=[1, 1, 1, 1], strides_i=[1, 1],
        )  # fmt: skip
        return node.setType(x.type().with_sizes([None, outputs, None, None]))


class _OneNode(nn.Module):
    """A ``DeformableConv`` that is exported as one node."""

    def __init__(self, source: DeformableConv) -> None:
        super().__init__()
        self.offset, self.mask, self.kernel = source.offset, source.mask, source.kernel

    def forward(self, x: Tensor) -> Any:
        mask = 2 * torch.sigmoid(self.mask(x))
        return _DeformConv.apply(x, self.kernel.weight, self.offset(x), mask)


def export_v1_onnx(model: FeatherFaceV1, path: Path, plain_operators: bool = False) -> Path:
    """Write ``model``, inputs and outputs as in ``export_onnx``; its weights are not changed.

    ``plain_operators`` keeps to opset 17, for runtimes without ``DeformConv``.
    """
    baseline = BaselineV1.of(model)
    if plain_operators:
        return export_onnx(baseline, path)
    return export_onnx(with_deform_nodes(baseline), path, opset=DEFORM_CONV_OPSET)


def with_deform_nodes(model: BaselineV1) -> BaselineV1:
    """``model``, changed in place: each deformable convolution is exported as one node."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DeformableConv):
                setattr(module, name, _OneNode(child))
    return model
