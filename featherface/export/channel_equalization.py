"""Channel equalisation: the same network, with channels whose ranges are alike, for 8-bit numbers.

A quantized map has one step for all of its channels, so that a channel of a hundredth of the range
has a hundredth of the steps. ReLU, leaky ReLU, maximum and sum do not mind if a channel is scaled;
what one convolution divides by, the next can multiply by (Nagel et al., Data-Free Quantization
through Weight Equalization, ICCV 2019; Xiao et al., SmoothQuant, ICML 2023, for the exponent).

    ranges = channel_ranges(model, images)      # the largest magnitude in each channel
    equalize_channels(model, ranges)            # in place: the same outputs, but for rounding
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

FloatArray = NDArray[np.float32]

HOMOGENEOUS = ("LeakyRelu", "Relu", "MaxPool", "Resize")
LEAST_SCALE = 1e-2  # a channel grows at most a hundredfold
EXPONENT = 0.5  # for a dense convolution, whose weights pay for what the map gains


def channel_ranges(
    model: onnx.ModelProto, images: Iterable[FloatArray]
) -> dict[str, NDArray[np.float64]]:
    """The largest magnitude ``[C]`` in each channel of what convolutions and sums compute.

    ``images``: inputs ``[B, 3, H, W]`` of the model.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [
        node.output[0]
        for node in model.graph.node
        if node.op_type in (*HOMOGENEOUS, "Conv", "Add") and node.op_type != "Resize"
    ]
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ranges: dict[str, NDArray[np.float64]] = {}
    for image in images:
        for name, values in zip(names, session.run(names, {"image": image}), strict=True):
            if values.ndim != 4:
                continue
            largest = np.abs(values).max(axis=(0, 2, 3)).astype(np.float64)
            ranges[name] = np.maximum(ranges[name], largest) if name in ranges else largest
    return ranges


def equalize_channels(model: onnx.ModelProto, ranges: dict[str, NDArray[np.float64]]) -> int:
    """Rescale the convolutions of ``model`` in place; returns how many groups of maps changed.

    Maps that must share their scales (the terms of a sum, an activation and its input) form a
    group. A group that any other operator reads or writes stays as it is. Convolutions that share
    weights each get their own.
    """
    graph = model.graph
    separate_weights(model)
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    groups = _Groups()
    fixed = {one.name for one in (*graph.input, *graph.output)}
    convolutions = []
    for node in graph.node:
        tensors = [name for name in (*node.input, *node.output) if name and name not in weights]
        if node.op_type == "Conv" and node.input[1] in weights:
            convolutions.append(node)
        elif node.op_type in HOMOGENEOUS:
            groups.join(node.input[0], node.output[0])
        elif node.op_type == "Add" and len(tensors) == 3:
            groups.join(*tensors)
        else:
            fixed.update(tensors)
    fixed_groups = {groups.of(name) for name in fixed}

    scales = _group_scales(convolutions, weights, ranges, groups, fixed_groups)
    changed: dict[str, FloatArray] = {}
    for node in convolutions:
        weight = weights[node.input[1]]
        inputs, outputs = groups.of(node.input[0]), groups.of(node.output[0])
        scaled = weight.astype(np.float64)
        if inputs in scales:
            scaled = scaled * _input_scales(scales[inputs], weight)[..., None, None]
        if outputs in scales:
            scaled = scaled / scales[outputs][:, None, None, None]
        changed[node.input[1]] = scaled.astype(np.float32)
        if outputs in scales and len(node.input) > 2:
            bias = weights[node.input[2]].astype(np.float64)
            changed[node.input[2]] = (bias / scales[outputs]).astype(np.float32)
    for initializer in graph.initializer:
        if initializer.name in changed:
            initializer.CopyFrom(
                numpy_helper.from_array(changed[initializer.name], initializer.name)
            )
    return len(scales)


def separate_weights(model: onnx.ModelProto) -> None:
    """Give each convolution of ``model`` weights and bias of its own, in place."""
    values = {one.name: one for one in model.graph.initializer}
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if node.op_type != "Conv":
            continue
        for place in range(1, len(node.input)):
            name = node.input[place]
            if name in taken and name in values:
                copied = onnx.TensorProto()
                copied.CopyFrom(values[name])
                copied.name = f"{name}_{number}"
                model.graph.initializer.append(copied)
                node.input[place] = copied.name
            taken.add(name)


class _Groups:
    """Disjoint sets of tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, name: str) -> str:
        parent = self._parent.get(name, name)
        return name if parent == name else self.of(parent)

    def join(self, *names: str) -> None:
        for name in names[1:]:
            self._parent[self.of(name)] = self.of(names[0])


def _group_scales(
    convolutions: list[onnx.NodeProto],
    weights: dict[str, NDArray[np.float32]],
    ranges: dict[str, NDArray[np.float64]],
    groups: _Groups,
    fixed: set[str],
) -> dict[str, NDArray[np.float64]]:
    """What to divide the channels ``[C]`` of each group by, 1 for the widest."""
    spread: dict[str, NDArray[np.float64]] = {}
    for name, largest in ranges.items():
        group = groups.of(name)
        if group not in fixed and largest.max() > 0:
            relative = largest / largest.max()
            spread[group] = np.maximum(spread[group], relative) if group in spread else relative
    columns: dict[str, NDArray[np.float64]] = {}  # of dense readers, the largest weight a channel
    produced = {groups.of(node.output[0]) for node in convolutions}
    for node in convolutions:
        weight, group = weights[node.input[1]], groups.of(node.input[0])
        if group in spread and weight.shape[1] > 1:
            largest = _by_input(np.abs(weight).max(axis=(2, 3)), len(spread[group]))
            largest = largest / max(largest.max(), 1e-12)
            columns[group] = np.maximum(columns.get(group, largest), largest)
    scales = {}
    for group, relative in spread.items():
        if group not in produced:
            continue
        scale = relative.clip(LEAST_SCALE)
        if group in columns:
            scale = scale**EXPONENT / columns[group].clip(LEAST_SCALE) ** (1 - EXPONENT)
            scale = (scale / scale.max()).clip(LEAST_SCALE)
        scales[group] = scale
    return scales


def _input_scales(scales: NDArray[np.float64], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """``scales`` ``[C]`` of the input laid out as the weight's first axes ``[outputs, inputs]``."""
    outputs, per_group = weight.shape[:2]
    convolution_groups = len(scales) // per_group
    by_group = scales.reshape(convolution_groups, per_group)
    return np.repeat(by_group, outputs // convolution_groups, axis=0)


def _by_input(magnitudes: NDArray[np.floating], channels: int) -> NDArray[np.float64]:
    """The largest entry of ``[outputs, inputs a group]`` for each of ``channels`` inputs."""
    per_group = magnitudes.shape[1]
    by_group = magnitudes.reshape(channels // per_group, -1, per_group).max(axis=1)
    return by_group.reshape(-1).astype(np.float64)
