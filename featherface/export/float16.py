"""FP16: the weights in 16 bits, half the file; what is computed with them stays float32.

A cast after each weight brings it back, and runtimes fold these casts when they load the file: it
runs as fast as the float32 one, on processors without half-precision arithmetic too. Maps are not
rounded: with ONNX Runtime's converter, which does that, scores of our first weights moved by up to
0.012. Biases and depthwise kernels keep 32 bits: they are a twelfth of the values and made most of
what error there was (edges of bright pixels are small differences of large numbers).
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featherface.export.source_model import add_metadata, simplified


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` (float32, raw outputs) with the weights of its dense convolutions in float16."""
    half = simplified(model)
    graph = half.graph
    initializers = {one.name: one for one in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in initializers:
            readers[node.input[1]].append(node)
    casts = []
    for name, nodes in readers.items():
        weight = numpy_helper.to_array(initializers[name])
        if weight.shape[1] == 1:  # depthwise
            continue
        short = f"{name}_float16"
        initializers[name].CopyFrom(numpy_helper.from_array(weight.astype(np.float16), short))
        casts.append(helper.make_node("Cast", [short], [f"{name}_cast"], to=TensorProto.FLOAT))
        for node in nodes:
            node.input[1] = f"{name}_cast"
    computed = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *computed])
    del graph.value_info[:]
    add_metadata(half, precision="float16")
    onnx.checker.check_model(half)
    return half
