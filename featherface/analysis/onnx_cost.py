"""What an ONNX network costs: values stored, and multiply-accumulates at a given input size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from featherface.errors import WeightsError

WEIGHT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)
COUNTED = ("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul")


@dataclass(frozen=True)
class OnnxCost:
    """``stored_values``: elements of all initialisers that hold weights; zeros count.

    ``macs``: multiply-accumulates of convolutions and matrix products for one image of ``width`` x
    ``height``, padded as the network wants it.
    """

    stored_values: int
    macs: int
    width: int
    height: int


def onnx_cost(path: Path, width: int, height: int) -> OnnxCost:
    """Count ``path`` for an input ``[1, 3, height, width]``; a fixed input shape stands."""
    try:
        model = onnx.load(path)
    except (OSError, DecodeError) as error:
        raise WeightsError(f"{path}: no ONNX file that can be read ({error})") from error
    stored = sum(
        int(np.prod(one.dims))
        for one in model.graph.initializer
        if one.data_type in WEIGHT_TYPES and len(one.dims)
    )
    height, width = _input_size(model, height, width)
    return OnnxCost(stored, count_macs(model, height, width), width, height)


def count_macs(model: onnx.ModelProto, height: int, width: int) -> int:
    """Multiply-accumulates for ``[1, 3, height, width]``, with the shapes that the network makes.

    The shapes come from running it once with a ``Shape`` node on each tensor of interest: inference
    on paper gives up where an exporter computes shapes by Gather and Concat.
    """
    initial = {one.name: tuple(one.dims) for one in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in COUNTED]
    asked = sorted({name for node in nodes for name in (*node.input, *node.output) if name})
    shapes = initial | _run_shapes(model, [n for n in asked if n not in initial], height, width)
    return sum(_node_macs(node, shapes) for node in nodes)


def _node_macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    output = int(np.prod(shapes[node.output[0]]))
    first, second = shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type in ("Conv", "DeformConv"):
        return output * int(np.prod(second[1:]))  # [outputs, inputs a group, kernel]
    if node.op_type == "ConvTranspose":
        return int(np.prod(first)) * int(np.prod(second[1:]))
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return output * (first[0] if attributes.get("transA") else first[-1])


def _run_shapes(
    model: onnx.ModelProto, names: list[str], height: int, width: int
) -> dict[str, tuple[int, ...]]:
    asking = onnx.ModelProto()
    asking.CopyFrom(model)
    del asking.graph.output[:]
    for index, name in enumerate(names):
        asked = f"asked_shape_{index}"
        asking.graph.node.append(helper.make_node("Shape", [name], [asked]))
        asking.graph.output.append(helper.make_tensor_value_info(asked, TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        asking.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    image = np.zeros((1, 3, height, width), np.float32)
    found: list[Any] = list(session.run(None, {session.get_inputs()[0].name: image}))
    return {name: tuple(map(int, shape)) for name, shape in zip(names, found, strict=True)}


def _input_size(model: onnx.ModelProto, height: int, width: int) -> tuple[int, int]:
    initial = {one.name for one in model.graph.initializer}
    image = next(one for one in model.graph.input if one.name not in initial)
    fixed = [one.dim_value for one in image.type.tensor_type.shape.dim[2:]]
    return (fixed[0] or height, fixed[1] or width) if len(fixed) == 2 else (height, width)
