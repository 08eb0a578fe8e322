"""Rewrites of an exported graph that leave its outputs as they are and its runtime less to do."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Both divisible by 32, and no quotient of one is one of the other.
SAMPLE_HEIGHT, SAMPLE_WIDTH = 96, 160


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` after all rewrites of this file."""
    simpler = onnx.ModelProto()
    simpler.CopyFrom(model)
    fix_reshapes(simpler)
    activate_before_concat(simpler)
    trim_kernels(simpler)
    remove_unused(simpler)
    name_sizes(simpler)
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


def trim_kernels(model: onnx.ModelProto) -> int:
    """Drop a first row and column of zeros from kernels that padding reaches, in place; how many.

    The padding shrinks with the kernel, and every output stays where it was.
    """
    graph = model.graph
    values = {one.name: one for one in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    changed = 0
    for node in graph.node:
        attributes = {one.name: one for one in node.attribute}
        if node.op_type != "Conv" or node.input[1] not in values or uses[node.input[1]] != 1:
            continue
        kernel = numpy_helper.to_array(values[node.input[1]])
        pads = attributes["pads"].ints if "pads" in attributes else []
        if len(pads) != 4 or min(kernel.shape[2:]) < 2 or min(pads[:2]) < 1:
            continue
        if kernel[:, :, 0].any() or kernel[:, :, :, 0].any():
            continue
        trimmed = np.ascontiguousarray(kernel[:, :, 1:, 1:])
        values[node.input[1]].CopyFrom(numpy_helper.from_array(trimmed, node.input[1]))
        attributes["kernel_shape"].ints[:] = trimmed.shape[2:]
        pads[:2] = [pads[0] - 1, pads[1] - 1]
        changed += 1
    return changed


def name_sizes(model: onnx.ModelProto) -> int:
    """Tell the size of each map ``[B, C, height / n, width / n]`` by name; how many.

    A runtime that knows that two maps are of one size adds them in the layout they have.
    """
    graph = model.graph
    shape = graph.input[0].type.tensor_type.shape.dim
    if len(shape) != 4 or not all(shape[axis].dim_param for axis in (0, 2, 3)):
        return 0
    batch, height, width = (shape[axis].dim_param for axis in (0, 2, 3))
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    sizes = SAMPLE_HEIGHT, SAMPLE_WIDTH
    for axis, size in zip((0, 2, 3), (1, *sizes), strict=True):
        fixed.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    del fixed.graph.value_info[:]
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph.value_info
    del graph.value_info[:]
    for value in inferred:
        kind = value.type.tensor_type
        sides = [one.dim_value for one in kind.shape.dim]
        if len(sides) != 4 or not sides[1] or min(sides[2:]) < 2:
            continue
        (down, more_down), (across, more_across) = map(divmod, sizes, sides[2:])
        if more_down or more_across or down != across:
            continue
        names = [batch, sides[1], f"{height}/{down}", f"{width}/{down}"]
        graph.value_info.append(helper.make_tensor_value_info(value.name, kind.elem_type, names))
    return len(graph.value_info)


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
