"""A stand-in for the trained network: it sees a face wherever a cell of 8x8 pixels is red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from featherface.anchors import STRIDES

LANDMARK_DELTAS = [-2, -2, 2, -2, 0, 0, -2, 2, 2, 2]
RED = (255, 0, 0)

PaintRed = Callable[..., NDArray[np.uint8]]


def build_red_detector() -> onnx.ModelProto:
    """A model with the inputs and outputs of the shipped weights; boxes are the anchors' own."""
    nodes, constants = [], []

    def constant(name: str, values: NDArray[np.generic]) -> str:
        constants.append(numpy_helper.from_array(values, name))
        return name

    heads = {"scores": (1, []), "box_deltas": (4, []), "landmark_deltas": (10, [])}
    for stride in STRIDES:
        for head, (per_anchor, parts) in heads.items():
            name = f"{head}_{stride}"
            weight = np.zeros((2 * per_anchor, 3, stride, stride), np.float32)
            bias = np.zeros(2 * per_anchor, np.float32)
            if head == "scores":
                bias[:] = -30
                if stride == 8:
                    weight[0, 0], weight[0, 2] = 0.2 / 64, -0.1 / 64
            elif head == "landmark_deltas":
                bias[:] = LANDMARK_DELTAS * 2
            shape = np.array([0, -1] if per_anchor == 1 else [0, -1, per_anchor], np.int64)
            inputs = ["image", constant(f"{name}_w", weight), constant(f"{name}_b", bias)]
            nodes += [
                helper.make_node("Conv", inputs, [f"{name}_c"], strides=[stride, stride]),
                helper.make_node("Transpose", [f"{name}_c"], [f"{name}_t"], perm=[0, 2, 3, 1]),
                helper.make_node(
                    "Reshape", [f"{name}_t", constant(f"{name}_s", shape)], [f"{name}_r"]
                ),
            ]
            parts.append(f"{name}_r")
    for head, (_, parts) in heads.items():
        joined = "logits" if head == "scores" else head
        nodes.append(helper.make_node("Concat", parts, [joined], axis=1))
    nodes.append(helper.make_node("Sigmoid", ["logits"], ["scores"]))
    tensor = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("image", tensor, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info("scores", tensor, ["batch", "anchors"]),
            helper.make_tensor_value_info("box_deltas", tensor, ["batch", "anchors", 4]),
            helper.make_tensor_value_info("landmark_deltas", tensor, ["batch", "anchors", 10]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="session")
def red_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that finds a 16x16 face at every red cell of 8x8 pixels the network sees."""
    path = tmp_path_factory.mktemp("weights") / "red.onnx"
    onnx.save(build_red_detector(), path)
    return path


@pytest.fixture(scope="session")
def paint_red() -> PaintRed:
    """Makes a grey RGB image with red squares: ``paint_red(width, height, (x, y, side), ...)``."""

    def paint(width: int, height: int, *squares: tuple[int, int, int]) -> NDArray[np.uint8]:
        image = np.full((height, width, 3), 60, np.uint8)
        for x, y, side in squares:
            image[y : y + side, x : x + side] = RED
        return image

    return paint
