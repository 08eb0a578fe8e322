"""A teacher in an ONNX file: its answers at every anchor, without its features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featherface.detector import FaceDetector
from featherface.errors import WeightsError
from featherface.models.outputs import HeadOutputs
from featherface.training.distillation import with_two_logits

LEAST = 1e-6  # scores nearer to 0 or 1 than this have no finite logit in float32


class OnnxTeacher:
    """``path``: ONNX with this package's input, outputs and anchors (``featherface export``).

    Raises ``WeightsError`` for any other file.
    """

    def __init__(self, path: Path) -> None:
        self._detector = FaceDetector(path, threads=1)

    def __call__(self, images: Tensor) -> HeadOutputs:
        """``images`` float RGB 0..255 ``[B, 3, H, W]``; logits are (0, that of the score)."""
        blob = np.ascontiguousarray(images.detach().cpu().numpy(), np.float32)
        scores, boxes, landmarks = self._detector.run_network(blob)
        anchors = (blob.shape[2] * blob.shape[3]) * 21 // 512
        if scores.shape != (len(blob), anchors):
            raise WeightsError(
                f"{self._detector.weights}: {scores.shape[1]} scores where the student has "
                f"{anchors} anchors; a teacher needs the same anchors"
            )
        face = torch.logit(torch.from_numpy(scores), LEAST)
        outputs = (face, torch.from_numpy(boxes), torch.from_numpy(landmarks))
        return with_two_logits(HeadOutputs(*(x.to(images.device) for x in outputs)))
