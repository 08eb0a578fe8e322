"""SCRFD's answers at V2's anchors.

SCRFD (Guo et al., ICLR 2022) has V2's two anchors a cell, 16 to 512 pixels on strides 8, 16 and 32,
at the cells' corners where V2 has them in the middle. So each stride looks at the image shifted by
half a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featherface.anchors import (
    ANCHORS_PER_CELL,
    STRIDES,
    encode_boxes,
    encode_landmarks,
    make_anchors,
)
from featherface.errors import WeightsError
from featherface.models.outputs import HeadOutputs
from featherface.models.weight_files import first_line
from featherface.training.distillation import with_two_logits
from featherface.training.onnx_teacher import LEAST
from featherface.training.teacher_session import open_session

GREY, SCALE = 127.5, 128.0
TASKS = 3  # scores, distances to the box's sides, landmarks; each for all strides

Floats = NDArray[np.float32]


class ScrfdTeacher:
    """``path``: an ONNX file with SCRFD's nine outputs, by strides 8, 16 and 32.

    Strides that are not ``asked`` are not computed: their scores are the least there are.

    Raises ``WeightsError`` if the file is missing, corrupt or has other outputs.
    """

    def __init__(self, path: Path, asked: Sequence[bool] = (True, True, True)) -> None:
        try:
            self._session = open_session(path.read_bytes())
        except Exception as error:  # ONNX Runtime has no common base class for its own
            raise WeightsError(f"{path}: cannot be read as ONNX ({first_line(error)})") from None
        self._outputs = [x.name for x in self._session.get_outputs()]
        if len(self._outputs) != TASKS * len(STRIDES):
            raise WeightsError(
                f"{path}: {len(self._outputs)} outputs where SCRFD has 9: scores, boxes and "
                "landmarks at three strides"
            )
        self._input = self._session.get_inputs()[0].name
        self._asked = asked

    def __call__(self, images: Tensor) -> HeadOutputs:
        """``images`` float RGB 0..255 ``[B, 3, H, W]``; logits are (0, that of the score)."""
        blob = images.detach().cpu().numpy()
        answers = [self._answer(one[None]) for one in blob]
        scores, boxes, landmarks = (
            torch.from_numpy(np.stack(x)).to(images.device) for x in zip(*answers, strict=True)
        )
        return with_two_logits(HeadOutputs(torch.logit(scores, LEAST), boxes, landmarks))

    def _answer(self, image: Floats) -> tuple[Floats, Floats, Floats]:
        height, width = image.shape[2:]
        anchors = make_anchors(height, width)
        scores = np.zeros(len(anchors), np.float32)
        boxes = np.zeros((len(anchors), 4), np.float32)
        landmarks = np.zeros((len(anchors), 10), np.float32)
        pixels = (image - GREY) / SCALE
        first = 0
        for level, stride in enumerate(STRIDES):
            count = height // stride * (width // stride) * ANCHORS_PER_CELL
            own = slice(first, first + count)
            first += count
            if not self._asked[level]:
                continue
            names = self._outputs[level :: len(STRIDES)]
            shown = {self._input: shifted(pixels, stride // 2)}
            score, sides, points = self._session.run(names, shown)
            centres = anchors[own, :2]
            sides = sides.reshape(-1, 4) * stride
            corners = np.concatenate([centres - sides[:, :2], centres + sides[:, 2:]], 1)
            points = points.reshape(-1, 5, 2) * stride + centres[:, None]
            scores[own] = score.reshape(-1)
            boxes[own] = encode_boxes(corners, anchors[own])
            landmarks[own] = encode_landmarks(points, anchors[own])
        return scores, boxes, landmarks


def shifted(pixels: Floats, by: int) -> Floats:
    """``[1, 3, H, W]`` moved left and up by so many pixels; black comes in."""
    moved = np.full(pixels.shape, -GREY / SCALE, np.float32)
    moved[:, :, :-by, :-by] = pixels[:, :, by:, by:]
    return moved
