"""Rewrites of an exported graph that leave its outputs as they are and its runtime less to do."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` after all rewrites of this file."""
    simpler = onnx.ModelProto()
    simpler.CopyFrom(model)
    fix_reshapes(simpler)
    activate_before_concat(simpler)
    remove_unused(simpler)
    onnx.checker.check_model(simpler)
    return simpler


def fix_reshapes(model: onnx.ModelProto) -> int:
    """Replace shapes computed as (batch of the input, numbers) by constants, in place; how many.

    PyTorch writes ``x.reshape(x.shape[0], -1, 4)`` as Shape, Gather, Unsqueeze and Concat.
    ONNX's own 0, "as in the input", says the same.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = _constants(model)
    changed = 0
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        maker = makers.get(node.input[1])
        if maker is None or maker.op_type != "Concat":
            continue
        shape = []
        for position, part in enumerate(maker.input):
            if part in constants:
                shape.extend(constants[part].reshape(-1).tolist())
            elif position == 0 and _is_batch(part, makers, constants):
                shape.append(0)
            else:
                break
        else:
            if 0 in shape[1:]:
                continue
            name = f"{node.output[0]}_shape"
            graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
            node.input[1] = name
            changed += 1
    return changed


def activate_before_concat(model: onnx.ModelProto) -> int:
    """Move ReLU from behind a Concat of convolutions to before it, in place; how many.

    There each becomes part of its convolution, and a pass over the map is saved.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(one.name for one in graph.output)
    changed = 0
    for node in list(graph.node):
        concat = makers.get(node.input[0]) if node.op_type == "Relu" else None
        if concat is None or concat.op_type != "Concat" or uses[concat.output[0]] != 1:
            continue
        parts = [makers.get(name) for name in concat.input]
        if not all(part is not None and part.op_type == "Conv" for part in parts):
            continue
        if any(uses[name] != 1 for name in concat.input):
            continue
        place = list(graph.node).index(concat)
        for index, name in enumerate(list(concat.input)):
            active = f"{name}_active"
            graph.node.insert(place, helper.make_node("Relu", [name], [active], f"{active}_relu"))
            concat.input[index] = active
        concat.output[0] = node.output[0]
        graph.node.remove(node)
        changed += 1
    return changed


def remove_unused(model: onnx.ModelProto) -> None:
    """Drop nodes and initialisers that nothing reads, in place."""
    graph = model.graph
    while True:
        read = {name for node in graph.node for name in node.input}
        read.update(one.name for one in graph.output)
        dead = [node for node in graph.node if not read.intersection(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for one in [one for one in graph.initializer if one.name not in read]:
        graph.initializer.remove(one)


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            if isinstance(value, onnx.TensorProto):
                found[node.output[0]] = numpy_helper.to_array(value)
    return found


def _is_batch(
    name: str, makers: dict[str, onnx.NodeProto], constants: dict[str, np.ndarray]
) -> bool:
    """Whether ``name`` is Unsqueeze(Gather(Shape(any map), 0)): all maps share the batch."""
    for kind in ("Unsqueeze", "Gather", "Shape"):
        node = makers.get(name)
        if node is None or node.op_type != kind:
            return False
        if kind == "Gather":
            index = constants.get(node.input[1])
            if index is None or index.reshape(-1).tolist() != [0]:
                return False
        name = node.input[0]
    return True
