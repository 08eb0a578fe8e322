"""The peers that FeatherFace is measured against, each a callable image -> faces.

    detect = PEERS["yunet_n"](Path("yunet_n.onnx"), threads=1)
    faces = detect(image)  # uint8 RGB [H, W, 3] at the size to be searched

Every adapter follows its model's published input convention and decoding; the input is padded with
zeros on the right and at the bottom to a multiple of 32 unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from featherface.boxes import non_maximum_suppression

SCORE_THRESHOLD = 0.02
BEFORE_SUPPRESSION = 5000

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PeerFaces:
    """``boxes`` float32 ``[N, 4]``, ``scores`` ``[N]``, ``landmarks`` ``[N, 5, 2]`` or None."""

    boxes: Floats
    scores: Floats
    landmarks: Floats | None


class Peer:
    """An ONNX model on the CPU; a subclass says how its input is made and its output is read."""

    nms_iou = 0.45

    def __init__(
        self, model: Path, threads: int = 1, score_threshold: float = SCORE_THRESHOLD
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # old files warn about every initialiser
        self.session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.input_name = self.session.get_inputs()[0].name
        self.output_names = [output.name for output in self.session.get_outputs()]
        self.score_threshold = score_threshold

    def __call__(self, image: Image) -> PeerFaces:
        """Faces of uint8 RGB ``[H, W, 3]``, in its pixels."""
        blob = self.prepare(image)
        return self.suppress(self.decode(self.run(blob), image.shape[:2], blob.shape[2:]))

    def run(self, blob: Floats) -> dict[str, Floats]:
        """The network alone: ``[1, 3, H, W]`` to its outputs by name."""
        outputs = self.session.run(None, {self.input_name: blob})
        return dict(zip(self.output_names, outputs, strict=True))

    def prepare(self, image: Image) -> Floats:
        """Turn uint8 RGB ``[H, W, 3]`` into the network's input ``[1, 3, H', W']``."""
        raise NotImplementedError

    def decode(
        self, outputs: dict[str, Floats], size: tuple[int, ...], padded: tuple[int, ...]
    ) -> PeerFaces:
        """All candidates over the score threshold; ``size`` and ``padded`` are (height, width)."""
        raise NotImplementedError

    def suppress(self, faces: PeerFaces) -> PeerFaces:
        """Non-maximum suppression of the best 5000 candidates."""
        if len(faces.scores) > BEFORE_SUPPRESSION:
            best = np.argsort(-faces.scores)[:BEFORE_SUPPRESSION]
            faces = _take(faces, best)
        return _take(faces, non_maximum_suppression(faces.boxes, faces.scores, self.nms_iou))


class YuNet(Peer):
    """YuNet-n (Wu et al., Machine Intelligence Research 2023): one point a cell, no anchors."""

    def prepare(self, image: Image) -> Floats:
        return _to_blob(_pad(image[:, :, ::-1], 32).astype(np.float32))

    def decode(
        self, outputs: dict[str, Floats], size: tuple[int, ...], padded: tuple[int, ...]
    ) -> PeerFaces:
        parts = []
        for stride in (8, 16, 32):
            classes = outputs[f"cls_{stride}"].reshape(-1)
            objects = outputs[f"obj_{stride}"].reshape(-1)
            scores = np.sqrt(np.clip(classes, 0, 1) * np.clip(objects, 0, 1))
            kept = np.flatnonzero(scores > self.score_threshold)
            cells = _cells(padded, stride)[kept]
            deltas = outputs[f"bbox_{stride}"].reshape(-1, 4)[kept]
            centres = (cells + deltas[:, :2]) * stride
            halves = np.exp(deltas[:, 2:]) * (stride / 2)
            points = outputs[f"kps_{stride}"].reshape(-1, 5, 2)[kept]
            landmarks = (points + cells[:, None]) * stride
            boxes = np.concatenate([centres - halves, centres + halves], axis=1)
            parts.append(PeerFaces(boxes, scores[kept], landmarks))
        return _join(parts)


class Scrfd(Peer):
    """SCRFD (Guo et al., ICLR 2022): distances to the box's sides from two anchors a cell."""

    def prepare(self, image: Image) -> Floats:
        return _to_blob((_pad(image, 32).astype(np.float32) - np.float32(127.5)) / np.float32(128))

    def decode(
        self, outputs: dict[str, Floats], size: tuple[int, ...], padded: tuple[int, ...]
    ) -> PeerFaces:
        # Nine outputs: scores, distances and landmarks, each for strides 8, 16 and 32.
        arrays = list(outputs.values())
        parts = []
        for level, stride in enumerate((8, 16, 32)):
            scores = arrays[level].reshape(-1)
            kept = np.flatnonzero(scores > self.score_threshold)
            corners = (np.repeat(_cells(padded, stride), 2, axis=0) * stride)[kept]
            distances = arrays[3 + level].reshape(-1, 4)[kept] * stride
            points = arrays[6 + level].reshape(-1, 5, 2)[kept] * stride
            boxes = np.concatenate([corners - distances[:, :2], corners + distances[:, 2:]], axis=1)
            parts.append(PeerFaces(boxes, scores[kept], points + corners[:, None]))
        return _join(parts)


class CenterFace(Peer):
    """CenterFace (Xu et al., Scientific Programming 2020): a heat map of centres at stride 4."""

    nms_iou = 0.3
    stride = 4

    def prepare(self, image: Image) -> Floats:
        height, width = image.shape[:2]
        size = (width + -width % 32, height + -height % 32)
        return _to_blob(_stretch(image, size).astype(np.float32))

    def decode(
        self, outputs: dict[str, Floats], size: tuple[int, ...], padded: tuple[int, ...]
    ) -> PeerFaces:
        heat, sizes, offsets, points = (array[0] for array in outputs.values())
        rows, columns = np.nonzero(heat[0] > self.score_threshold)
        # Each pair of channels is (y, x).
        sides = np.exp(sizes[::-1, rows, columns].T) * self.stride
        cells = np.stack([columns, rows], axis=1).astype(np.float32)
        centres = (cells + offsets[::-1, rows, columns].T + np.float32(0.5)) * self.stride
        corners = centres - sides / 2
        scale = np.array([size[1] / padded[1], size[0] / padded[0]], np.float32)
        fractions = points[:, rows, columns].T.reshape(-1, 5, 2)[:, :, ::-1]
        landmarks = (corners[:, None] + fractions * sides[:, None]) * scale
        boxes = np.concatenate([corners * scale, (corners + sides) * scale], axis=1)
        return PeerFaces(boxes, heat[0, rows, columns], landmarks)


class UltraLight(Peer):
    """Ultra-Light-Fast-Generic-Face-Detector RFB-640: every image is stretched to 640x480."""

    nms_iou = 0.3
    network_size = (640, 480)

    def prepare(self, image: Image) -> Floats:
        stretched = _stretch(image, self.network_size).astype(np.float32)
        return _to_blob((stretched - np.float32(127)) / np.float32(128))

    def decode(
        self, outputs: dict[str, Floats], size: tuple[int, ...], padded: tuple[int, ...]
    ) -> PeerFaces:
        scores = outputs["scores"][0, :, 1]
        kept = np.flatnonzero(scores > self.score_threshold)
        scale = np.array([size[1], size[0]] * 2, np.float32)
        return PeerFaces(outputs["boxes"][0, kept] * scale, scores[kept], None)


def _cells(padded: tuple[int, ...], stride: int) -> Floats:
    rows, columns = np.mgrid[0 : padded[0] // stride, 0 : padded[1] // stride]
    return np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float32)


def _pad(image: Image, multiple: int) -> Image:
    height, width = image.shape[:2]
    bottom, right = -height % multiple, -width % multiple
    return np.asarray(
        cv2.copyMakeBorder(
            np.ascontiguousarray(image), 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0)
        ),
        np.uint8,
    )


def _stretch(image: Image, size: tuple[int, int]) -> Image:
    """To ``size`` = (width, height), bilinear."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _to_blob(pixels: Floats) -> Floats:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def _take(faces: PeerFaces, rows: NDArray[np.intp]) -> PeerFaces:
    landmarks = None if faces.landmarks is None else faces.landmarks[rows]
    return PeerFaces(faces.boxes[rows], faces.scores[rows], landmarks)


def _join(parts: list[PeerFaces]) -> PeerFaces:
    landmarks = [part.landmarks for part in parts if part.landmarks is not None]
    return PeerFaces(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate(landmarks) if len(landmarks) == len(parts) else None,
    )


PEERS: dict[str, Callable[..., Peer]] = {
    "yunet_n": YuNet,
    "scrfd_500m": Scrfd,
    "scrfd_2.5g": Scrfd,
    "centerface": CenterFace,
    "ultralight_rfb_640": UltraLight,
}
