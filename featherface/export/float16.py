"""FP16: weights and maps in 16 bits, half the file, for GPUs, phones and browsers.

Input and outputs stay float32, so that whoever runs the float32 file runs this one. So do the first
two convolutions: they find edges as small differences of bright pixels, and these drown when their
weights are rounded (their 300 weights weigh nothing). The sigmoid stays in float32 as well.
"""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from featherface.export.source_model import add_metadata, simplified

FLOAT_CONVOLUTIONS = 2


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` (float32, raw outputs) in float16; the same names, inputs and outputs."""
    source = simplified(model)
    for number, node in enumerate(source.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    half = OnnxModel(
        convert_float_to_float16(
            source,
            keep_io_types=True,
            op_block_list=["Sigmoid"],
            node_block_list=_first_nodes(source),
        )
    )
    half.topological_sort()
    add_metadata(half.model, precision="float16")
    onnx.checker.check_model(half.model)
    return half.model


def _first_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes up to the last of the first convolutions, in the order of the graph."""
    names, convolutions = [], 0
    for node in model.graph.node:
        names.append(node.name)
        convolutions += node.op_type == "Conv"
        if convolutions == FLOAT_CONVOLUTIONS:
            break
    return names
