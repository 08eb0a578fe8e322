"""``FaceDetector``: pixels in, ``Faces`` out. NumPy, OpenCV and ONNX Runtime; no PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, overload

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.box_voting import vote
from featherface.boxes import non_maximum_suppression
from featherface.errors import ConfigError, ImageError, WeightsError
from featherface.faces import Faces
from featherface.images import (
    ByteImage,
    ImageSource,
    fitted_size,
    padded_size,
    read_image,
    resize_image,
)

FloatArray = NDArray[np.float32]
Images: TypeAlias = "Sequence[ImageSource] | Iterator[ImageSource]"

PACKAGED_WEIGHTS = Path(__file__).parent / "weights" / "featherface_v2.onnx"
OUTPUTS: tuple[str, ...] = ("scores", "box_deltas", "landmark_deltas")
MAX_NETWORK_PIXELS = 50_000_000  # of one padded image; the network then needs about 2 GB
BATCH_PIXELS = 16 * 640 * 640  # images are run together up to here
WINDOW = 32  # images of a list that are held in memory at a time
MAX_CANDIDATES = 20_000  # best anchors of an image that go into suppression


@dataclass(frozen=True, eq=False)
class _Placed:
    """An image at the size the network sees, before padding, and its own size in pixels."""

    pixels: ByteImage
    width: int
    height: int

    @property
    def padded(self) -> tuple[int, int]:
        return padded_size(self.pixels.shape[1], self.pixels.shape[0])


class FaceDetector:
    """Finds faces with their five landmarks.

    >>> detector = FaceDetector()
    >>> faces = detector("group.jpg")
    >>> faces.boxes.shape, faces.scores.shape, faces.landmarks.shape
    ((3, 4), (3,), (3, 5, 2))

    ``weights``: an ONNX file of the package's making; None is the one that ships with it.
    ``input_size``: the long side of every image is brought to this many pixels, up or down; None
    looks at the original pixels, which finds smaller faces and takes longer. Either way the image
    is padded right and below, with black, to multiples of 32.
    ``score_threshold``: faces under it are dropped. ``nms_iou``: of two boxes that overlap more,
    the lesser is dropped, but has its vote on where the better one lies (``box_voting``).
    ``providers``: of ONNX Runtime, by name, first choice first; None is the CPU. ``threads``: for
    the network; None takes up to four.

    A detector holds no state between calls; threads may share it. Raises ``WeightsError`` if the
    weights are missing, corrupt or of another model, ``ConfigError`` if a value is out of range.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        input_size: int | None = 640,
        score_threshold: float = 0.5,
        nms_iou: float = 0.4,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        if input_size is not None and not 32 <= input_size <= 16384:
            raise ConfigError(f"input_size={input_size}: give 32 to 16384 pixels, or None")
        for name, value in (("score_threshold", score_threshold), ("nms_iou", nms_iou)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}={value}: give a number from 0 to 1")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads={threads}: give 1 or more, or None")
        self.input_size = input_size
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.weights = Path(weights) if weights is not None else PACKAGED_WEIGHTS
        self._session = _open_session(self.weights, providers, threads)

    @overload
    def __call__(self, image: ImageSource, *, bgr: bool = False) -> Faces: ...
    @overload
    def __call__(self, image: list[ImageSource], *, bgr: bool = False) -> list[Faces]: ...
    @overload
    def __call__(self, image: tuple[ImageSource, ...], *, bgr: bool = False) -> list[Faces]: ...

    def __call__(
        self,
        image: ImageSource | list[ImageSource] | tuple[ImageSource, ...],
        *,
        bgr: bool = False,
    ) -> Faces | list[Faces]:
        """The faces of one image, or of each image of a list or tuple.

        An image is a path, the bytes of a file, a PIL image, or an array ``[H, W, 3]`` (uint8 RGB;
        ``bgr=True`` for OpenCV's order; ``featherface.images.read_image`` tells what else). Images
        of a list may differ in size; those that are padded to the same size run together. Boxes and
        landmarks are in pixels of the original, upright image, within its borders.

        Raises ``ImageError`` for an image that cannot be read, naming it.
        """
        if not isinstance(image, list | tuple):
            return self._detect([self._place(image, bgr)])[0]
        found: list[Faces] = []
        for start in range(0, len(image), WINDOW):
            window = [self._place(one, bgr) for one in image[start : start + WINDOW]]
            found.extend(self._detect(window))
        return found

    def prepare(self, image: ImageSource, *, bgr: bool = False) -> FloatArray:
        """What the network is given for one image: float32 RGB ``[1, 3, H, W]``, 0..255, padded."""
        placed = self._place(image, bgr)
        return _to_blob([placed], *placed.padded)

    def run_network(self, blob: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Raw outputs over all anchors: scores ``[B, A]``, box deltas ``[B, A, 4]``, landmark
        deltas ``[B, A, 10]``, for ``blob`` ``[B, 3, H, W]`` with sides that are multiples of 32.
        """
        try:
            scores, boxes, landmarks = self._session.run(list(OUTPUTS), {"image": blob})
        except Exception as error:  # ONNX Runtime has no common base class for its own
            raise WeightsError(
                f"{self.weights}: the network failed on {len(blob)} images of "
                f"{blob.shape[3]}x{blob.shape[2]} pixels: {_first_line(error)}"
            ) from error
        return scores, boxes, landmarks

    def _place(self, source: ImageSource, bgr: bool) -> _Placed:
        image = read_image(source, bgr=bgr)
        height, width = image.shape[:2]
        fitted = fitted_size(width, height, self.input_size)
        padded = padded_size(*fitted)
        if padded[0] * padded[1] > MAX_NETWORK_PIXELS:
            raise ImageError(
                f"An image of {width}x{height} pixels is too large to look at in one piece at "
                f"input_size={self.input_size}; give an input_size of at most 7000"
            )
        return _Placed(resize_image(image, *fitted), width, height)

    def _detect(self, images: list[_Placed]) -> list[Faces]:
        """Run ``images`` grouped by padded size; results in their order."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.padded, []).append(index)
        found: dict[int, Faces] = {}
        for (width, height), members in groups.items():
            batch_size = max(1, BATCH_PIXELS // (width * height))
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                faces = self._run([images[index] for index in batch], width, height)
                found.update(zip(batch, faces, strict=True))
        return [found[index] for index in range(len(images))]

    def _run(self, images: list[_Placed], width: int, height: int) -> list[Faces]:
        return self._find(self.run_network(_to_blob(images, width, height)), images, width, height)

    def _find(
        self,
        outputs: tuple[FloatArray, FloatArray, FloatArray],
        images: list[_Placed],
        width: int,
        height: int,
    ) -> list[Faces]:
        """The network's outputs for ``images``, padded to ``width`` x ``height``, to ``Faces``."""
        scores, boxes, landmarks = outputs
        anchors = make_anchors(height, width)
        if scores.shape[1:] != (len(anchors),) or boxes.shape[1:] != (len(anchors), 4):
            raise WeightsError(
                f"{self.weights}: {scores.shape[1]} scores for {len(anchors)} anchors of a "
                f"{width}x{height} image; the file is of another model"
            )
        return [
            self._decode(scores[index], boxes[index], landmarks[index], anchors, image)
            for index, image in enumerate(images)
        ]

    def _decode(
        self,
        scores: FloatArray,
        box_deltas: FloatArray,
        landmark_deltas: FloatArray,
        anchors: FloatArray,
        image: _Placed,
    ) -> Faces:
        """Raw outputs ``[A]``, ``[A, 4]``, ``[A, 10]`` of one image to its ``Faces``."""
        chosen = np.flatnonzero(scores >= self.score_threshold)
        if len(chosen) > MAX_CANDIDATES:
            chosen = chosen[np.argpartition(-scores[chosen], MAX_CANDIDATES)[:MAX_CANDIDATES]]
        if len(chosen) == 0:
            return Faces.none()
        scores = scores[chosen]
        with np.errstate(over="ignore"):
            boxes = decode_boxes(box_deltas[chosen], anchors[chosen])
        deltas = landmark_deltas[chosen]
        if not (np.isfinite(boxes).all() and np.isfinite(deltas).all()):
            finite = np.isfinite(boxes).all(axis=1) & np.isfinite(deltas).all(axis=1)
            boxes, scores, chosen = boxes[finite], scores[finite], chosen[finite]
        kept = non_maximum_suppression(boxes, scores, self.nms_iou)
        boxes, scores, chosen = vote(boxes, scores, kept), scores[kept], chosen[kept]
        landmarks = decode_landmarks(landmark_deltas[chosen], anchors[chosen])

        rows, columns = image.pixels.shape[:2]
        size = np.array([image.width, image.height], np.float32)
        scale = size / np.array([columns, rows], np.float32)
        corners: FloatArray = np.clip(boxes.reshape(-1, 2, 2) * scale, 0, size)
        landmarks = np.clip(landmarks * scale, 0, size)
        inside = (corners[:, 1] > corners[:, 0]).all(axis=1)  # and not in the padding only
        return Faces(corners[inside].reshape(-1, 4), scores[inside], landmarks[inside])


def _to_blob(images: list[_Placed], width: int, height: int) -> FloatArray:
    """Images of one padded size as ``[B, 3, height, width]``, black where they end."""
    blob = np.empty((len(images), 3, height, width), np.float32)
    for planes, image in zip(blob, images, strict=True):
        rows, columns = image.pixels.shape[:2]
        planes[:, rows:] = 0
        planes[:, :rows, columns:] = 0
        # Channel by channel: half the time of one transposed copy.
        for plane, channel in zip(planes, cv2.split(image.pixels), strict=True):
            plane[:rows, :columns] = channel
    return blob


def _open_session(
    weights: Path, providers: Sequence[str] | None, threads: int | None
) -> onnxruntime.InferenceSession:
    if not weights.is_file():
        advice = "install the package again" if weights == PACKAGED_WEIGHTS else "check the path"
        raise WeightsError(f"{weights}: no such weights file; {advice}")
    available = onnxruntime.get_available_providers()
    for provider in providers or ():
        if provider not in available:
            raise ConfigError(f"Provider {provider} is not available; here: {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(4, os.cpu_count() or 1)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Without VNNI, 8-bit products are summed in 16 bits and overflow unless this is set.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.enable_mem_pattern = False  # it would plan anew for every size of image
    try:
        session = onnxruntime.InferenceSession(
            weights.read_bytes(), options, providers=list(providers or ["CPUExecutionProvider"])
        )
    except Exception as error:  # ONNX Runtime has no common base class for its own
        raise WeightsError(
            f"{weights}: not an ONNX model that can be loaded: {_first_line(error)}"
        ) from error
    inputs = {one.name: one for one in session.get_inputs()}
    outputs = [one.name for one in session.get_outputs()]
    image = inputs.get("image")
    if len(inputs) != 1 or image is None or image.type != "tensor(float)" or len(image.shape) != 4:
        raise WeightsError(
            f"{weights}: an ONNX model with the inputs {', '.join(inputs) or 'none'}; "
            "FeatherFace has one, image [batch, 3, height, width]"
        )
    if not set(OUTPUTS) <= set(outputs):
        raise WeightsError(
            f"{weights}: an ONNX model with the outputs {', '.join(outputs)}; "
            f"FeatherFace has {', '.join(OUTPUTS)}"
        )
    return session


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
