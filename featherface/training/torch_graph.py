"""The network of an ONNX file in PyTorch: a teacher that answers on the student's own device.

ONNX Runtime has no GPU here, and what it computes cannot be part of a recorded step. Detectors of
this size are made of a dozen operators; a file with any other is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from featherface.errors import WeightsError

# Exporters compute the size of a Resize from the size of another map.
OF_SIZES = {"Shape", "Gather", "Unsqueeze", "Slice", "Concat", "Constant", "Cast"}


class TorchGraph(nn.Module):
    """Images ``[B, 3, H, W]`` to the outputs of ``model``, in their order; nothing learns.

    Raises:
        WeightsError: an operator that this does not know.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        self._values: dict[str, str] = {}
        for number, value in enumerate(graph.initializer):
            array = np.array(numpy_helper.to_array(value))
            if array.dtype == np.float32:
                self._values[value.name] = f"value_{number}"
                self.register_buffer(self._values[value.name], torch.from_numpy(array))
        known = {x.name for x in graph.initializer}
        self._input = next(x.name for x in graph.input if x.name not in known)
        self._outputs = [x.name for x in graph.output]
        self._steps: list[tuple[Callable[..., Tensor], list[str], str]] = []
        sizes = known - set(self._values)
        for node in graph.node:
            if node.op_type == "Shape" or all(name in sizes for name in node.input):
                sizes.update(node.output)
                continue
            if node.op_type in OF_SIZES:
                raise refused(node)
            inputs = [name for name in node.input if name and name not in sizes]
            self._steps.append((operator(node), inputs, node.output[0]))

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        made = {name: getattr(self, place) for name, place in self._values.items()}
        made[self._input] = images
        for step, inputs, output in self._steps:
            made[output] = step(*(made[name] for name in inputs))
        return [made[name] for name in self._outputs]


def operator(node: onnx.NodeProto) -> Callable[..., Tensor]:
    """What ``node`` computes from its inputs but for sizes."""
    has: dict[str, Any] = {x.name: helper.get_attribute_value(x) for x in node.attribute}
    simple: dict[str, Callable[..., Tensor]] = {
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Add": torch.add,
        "Mul": torch.mul,
    }
    if node.op_type in simple:
        return simple[node.op_type]
    if node.op_type == "Resize" and has.get("mode") == b"nearest":
        return lambda x, *_: functional.interpolate(x, scale_factor=2.0, mode="nearest")
    window: dict[str, Any] = {"stride": has.get("strides", [1, 1])}
    pads = has.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:] or has.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise refused(node)
    window["padding"] = pads[:2]
    if node.op_type == "Conv":
        window |= {"dilation": has.get("dilations", [1, 1]), "groups": has.get("group", 1)}
        return lambda x, *weights: functional.conv2d(x, *weights, **window)
    window["ceil_mode"] = bool(has.get("ceil_mode", 0))
    if node.op_type == "MaxPool":
        return lambda x: functional.max_pool2d(x, has["kernel_shape"], **window)
    if node.op_type == "AveragePool":
        window["count_include_pad"] = bool(has.get("count_include_pad", 0))
        return lambda x: functional.avg_pool2d(x, has["kernel_shape"], **window)
    raise refused(node)


def refused(node: onnx.NodeProto) -> WeightsError:
    """An operator of a kind that is not known here."""
    return WeightsError(
        f"{node.op_type} (to {node.output[0]!r}): not among the operators that a teacher on the "
        "student's device may have"
    )
