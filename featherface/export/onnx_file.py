"""V2 as an ONNX file: opset 17, dynamic batch, height and width, scores as probabilities."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from featherface.export.graph_rewrites import simplify
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count

OPSET = 17
OUTPUTS = ("scores", "box_deltas", "landmark_deltas")


class Deployed(nn.Module):
    """The folded model with probabilities for logits; what the ONNX file computes."""

    def __init__(self, model: FeatherFaceV2 | BaselineV1) -> None:
        super().__init__()
        self.model = model.deployed()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self.model(image)
        return outputs.logits.sigmoid(), outputs.box_deltas, outputs.landmark_deltas


def export_onnx(model: FeatherFaceV2 | BaselineV1, path: Path, opset: int = OPSET) -> Path:
    """Write ``model`` to ``path``.

    Input ``image`` float32 ``[B, 3, H, W]``, RGB 0..255, H and W multiples of 32. Outputs
    ``scores`` ``[B, A]``, ``box_deltas`` ``[B, A, 4]``, ``landmark_deltas`` ``[B, A, 10]``, anchors
    in the order of ``featherface.anchors.make_anchors``.
    """
    temporary = path.with_name(path.name + ".partial")
    size = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Deployed(model),
            (torch.zeros(1, 3, 64, 64),),
            str(temporary),
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_axes={"image": size} | {name: {0: "batch", 1: "anchors"} for name in OUTPUTS},
            opset_version=opset,
            dynamo=False,
        )
    graph = simplify(onnx.load(temporary))
    graph.producer_name = "featherface"
    for key, value in {
        "model": type(model).__name__,
        "parameters": str(parameter_count(model)),
        "input": "RGB, 0..255",
    }.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(graph)
    onnx.save(graph, temporary)
    os.replace(temporary, path)
    return path
