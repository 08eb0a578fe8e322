"""What a detector found: boxes, scores and landmarks; to draw, crop, align, save and pass on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.errors import ImageError, MissingExtraError

ByteImage = NDArray[np.uint8]
FloatArray = NDArray[np.float32]

LANDMARK_NAMES: tuple[str, ...] = (
    "left_eye", "right_eye", "nose", "left_mouth", "right_mouth",
)  # fmt: skip
MIRRORED_LANDMARKS = (1, 0, 2, 4, 3)  # left and right as seen in the image, so a mirror swaps them

# Where ArcFace (Deng et al., CVPR 2019) puts the five landmarks in a picture of 112x112 pixels.
ARCFACE_TEMPLATE: FloatArray = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]],
    np.float32,
)  # fmt: skip
ARCFACE_SIZE = 112

BOX_COLOUR = (0, 214, 143)
LANDMARK_COLOURS = ((255, 209, 0), (255, 209, 0), (255, 94, 120), (64, 196, 255), (64, 196, 255))
DARK = (16, 24, 32)


class FacesLike(Protocol):
    """What a detector returns: ``boxes`` ``[N, 4]`` x1, y1, x2, y2 in pixels of the image it got,
    ``scores`` ``[N]``, and ``landmarks`` ``[N, 5, 2]`` or None."""

    @property
    def boxes(self) -> NDArray[np.floating]: ...

    @property
    def scores(self) -> NDArray[np.floating]: ...

    @property
    def landmarks(self) -> NDArray[np.floating] | None: ...


Detect = Callable[[ByteImage], FacesLike]


@dataclass(frozen=True, eq=False)
class Face:
    """One face in the pixels of its image.

    ``box`` float32 ``[4]`` as x1, y1, x2, y2; ``score`` 0 to 1; ``landmarks`` float32 ``[5, 2]`` as
    x, y in the order of ``LANDMARK_NAMES``, left and right as seen in the image.
    """

    box: FloatArray
    score: float
    landmarks: FloatArray

    @property
    def width(self) -> float:
        """Width of the box in pixels."""
        return float(self.box[2] - self.box[0])

    @property
    def height(self) -> float:
        """Height of the box in pixels."""
        return float(self.box[3] - self.box[1])

    def to_dict(self) -> dict[str, Any]:
        """``{"box": [x1, y1, x2, y2], "score": s, "landmarks": [[x, y]] * 5}``, plain numbers."""
        return {
            "box": _rounded(self.box),
            "score": round(self.score, 4),
            "landmarks": _rounded(self.landmarks),
        }

    def crop(self, image: ByteImage, margin: float = 0.0) -> ByteImage:
        """A copy of the box in ``image`` ``[H, W, ...]``, grown by ``margin`` times its sides.

        What would lie outside the image is cut off. Raises ``ImageError`` if nothing is left.
        """
        height, width = image.shape[:2]
        grow_x, grow_y = margin * self.width, margin * self.height
        x1 = max(0, int(np.floor(self.box[0] - grow_x)))
        y1 = max(0, int(np.floor(self.box[1] - grow_y)))
        x2 = min(width, int(np.ceil(self.box[2] + grow_x)))
        y2 = min(height, int(np.ceil(self.box[3] + grow_y)))
        if x1 >= x2 or y1 >= y2:
            raise ImageError(
                f"Box {_rounded(self.box)} lies outside the image of {width}x{height} pixels; "
                "crop from the image the face was found in"
            )
        return image[y1:y2, x1:x2].copy()

    def align(self, image: ByteImage, size: int = ARCFACE_SIZE) -> ByteImage:
        """The face turned upright and scaled for recognition, uint8 ``[size, size, C]``.

        The similarity that brings the landmarks closest (least squares) to the ArcFace template;
        black where the image ends. Raises ``ImageError`` if the landmarks fall on one point.
        """
        matrix = similarity(self.landmarks, ARCFACE_TEMPLATE * (size / ARCFACE_SIZE))
        # Only the part of the image that is needed, shrunk by averaging if the face is large:
        # warping alone would skip pixels.
        height, width = image.shape[:2]
        inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
        corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]]) @ inverse[:2].T
        x1, y1 = np.clip(np.floor(corners.min(axis=0)) - 2, 0, [width, height]).astype(int)
        x2, y2 = np.clip(np.ceil(corners.max(axis=0)) + 2, 0, [width, height]).astype(int)
        if x1 >= x2 or y1 >= y2:
            raise ImageError("The landmarks lie outside the image; align in the image of the face")
        part = image[y1:y2, x1:x2]
        shrink = max(1, int(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))))
        if shrink > 1:
            smaller = (max(1, (x2 - x1) // shrink), max(1, (y2 - y1) // shrink))
            part = np.asarray(cv2.resize(part, smaller, interpolation=cv2.INTER_AREA), np.uint8)
        step = np.array([(x2 - x1) / part.shape[1], (y2 - y1) / part.shape[0]])
        # From centres of the part's pixels to points of the image, to the template, and there to
        # the centres that OpenCV counts from.
        offset = matrix[:, :2] @ (np.array([x1, y1]) + 0.5 * step) + matrix[:, 2] - 0.5
        warp = np.column_stack([matrix[:, :2] * step, offset])
        aligned = cv2.warpAffine(part, warp, (size, size), flags=cv2.INTER_LINEAR)
        return np.asarray(aligned, np.uint8)


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of one image in its pixels, best first.

    ``boxes`` float32 ``[N, 4]`` as x1, y1, x2, y2; ``scores`` float32 ``[N]``; ``landmarks``
    float32 ``[N, 5, 2]`` as x, y: left eye, right eye, nose, left and right corner of the mouth, as
    seen in the image. The arrays are read-only.

    >>> for face in faces:
    ...     print(face.score, face.box)
    >>> largest = max(faces, key=lambda face: face.width)
    >>> sure = faces[faces.scores > 0.9]
    """

    boxes: FloatArray
    scores: FloatArray
    landmarks: FloatArray

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = {"boxes": (count, 4), "scores": (count,), "landmarks": (count, 5, 2)}
        for name, shape in shapes.items():
            values = np.array(getattr(self, name), np.float32)
            if count == 0 and values.size == 0:
                values = values.reshape(shape)
            if values.shape != shape:
                raise ValueError(f"Faces.{name} has shape {list(values.shape)}, not {list(shape)}")
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    @classmethod
    def none(cls) -> Faces:
        """No faces."""
        return cls(np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Face]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Face: ...
    @overload
    def __getitem__(self, index: slice | list[int] | NDArray[Any]) -> Faces: ...

    def __getitem__(self, index: int | slice | list[int] | NDArray[Any]) -> Face | Faces:
        """One ``Face`` for a number; ``Faces`` for a slice, a mask or a list of numbers."""
        if isinstance(index, int | np.integer):
            return Face(self.boxes[index], float(self.scores[index]), self.landmarks[index])
        return Faces(self.boxes[index], self.scores[index], self.landmarks[index])

    def __repr__(self) -> str:
        best = f", best {self.scores[0]:.2f}" if len(self) else ""
        return f"Faces({len(self)}{best})"

    def to_dict(self) -> dict[str, Any]:
        """``{"faces": [...]}`` with one ``Face.to_dict`` a face."""
        return {"faces": [face.to_dict() for face in self]}

    def to_json(self, indent: int | None = None) -> str:
        """``to_dict`` as JSON; coordinates in pixels to two decimals."""
        return json.dumps(self.to_dict(), indent=indent)

    def crop(self, image: ByteImage, margin: float = 0.0) -> list[ByteImage]:
        """``Face.crop`` of every face."""
        return [face.crop(image, margin) for face in self]

    def align(self, image: ByteImage, size: int = ARCFACE_SIZE) -> ByteImage:
        """``Face.align`` of every face, uint8 ``[N, size, size, C]``."""
        aligned = [face.align(image, size) for face in self]
        if not aligned:
            return np.empty((0, size, size, *image.shape[2:]), np.uint8)
        return np.stack(aligned)

    def to_supervision(self) -> Any:
        """A ``supervision.Detections``: class 0, the landmarks under ``data["landmarks"]``.

        Raises ``MissingExtraError`` if supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "to_supervision needs supervision: pip install supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=np.zeros(len(self), int),
            data={"landmarks": self.landmarks.copy()},
        )

    def draw(
        self,
        image: ByteImage,
        scores: bool = True,
        landmarks: bool = True,
        labels: Sequence[str] | None = None,
    ) -> ByteImage:
        """A copy of ``image`` (uint8 RGB ``[H, W, 3]``) with boxes, landmarks and scores.

        ``labels``: a text a face in place of its score (OpenCV's font has ASCII only). Lines and
        text follow the size of the image and of each face; a text is left out where it would hide
        more than it tells.
        """
        if labels is not None and len(labels) != len(self):
            raise ValueError(f"{len(labels)} labels for {len(self)} faces")
        canvas = np.ascontiguousarray(image).copy()
        for face in reversed(list(self)):  # the best on top
            _draw_box(canvas, face)
            if landmarks:
                _draw_landmarks(canvas, face)
        texts = labels or [f"{score:.2f}" for score in self.scores]
        if scores:
            for face, text in reversed(list(zip(self, texts, strict=True))):
                _draw_label(canvas, face, text)
        return canvas


def similarity(source: FloatArray, target: FloatArray) -> NDArray[np.float64]:
    """Rotation, scale and shift ``[2, 3]`` from points ``[N, 2]`` closest to ``target`` ``[N, 2]``.

    Least squares in closed form (Umeyama, PAMI 1991; in the plane, points as complex numbers).
    Raises ``ImageError`` if the source is a single point or not finite.
    """
    points, goals = (
        np.asarray(values, np.float64) @ np.array([1, 1j]) for values in (source, target)
    )
    centred = points - points.mean()
    spread = float(np.sum(np.abs(centred) ** 2))
    if not np.isfinite(spread) or spread < 1e-6:
        raise ImageError("The landmarks of the face fall on one point; it cannot be aligned")
    turn = np.sum(np.conj(centred) * (goals - goals.mean())) / spread
    shift = goals.mean() - turn * points.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def _rounded(values: FloatArray) -> Any:
    return np.round(values.astype(np.float64), 2).tolist()


def _line_width(canvas: ByteImage, face: Face) -> int:
    """Pixels: 1 up to long sides of 600, wider with the image, never a tenth of the face."""
    by_image = max(canvas.shape[:2]) / 320
    by_face = max(face.width, face.height) / 20
    return max(1, round(min(by_image, by_face)))


def _draw_box(canvas: ByteImage, face: Face) -> None:
    height, width = canvas.shape[:2]
    line = _line_width(canvas, face)
    limits = np.array([width - 1, height - 1, width - 1, height - 1])
    x1, y1, x2, y2 = (int(value) for value in np.clip(np.round(face.box), 0, limits))
    if line >= 2:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), DARK, line + 2, cv2.LINE_AA)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), BOX_COLOUR, line, cv2.LINE_AA)


def _draw_landmarks(canvas: ByteImage, face: Face) -> None:
    side = max(face.width, face.height)
    if side < 20:
        return
    radius = max(1, round(min(side / 40, max(canvas.shape[:2]) / 200)))
    for (x, y), colour in zip(face.landmarks, LANDMARK_COLOURS, strict=True):
        centre = (round(float(x)), round(float(y)))
        if radius >= 2:
            cv2.circle(canvas, centre, radius + 1, DARK, -1, cv2.LINE_AA)
        cv2.circle(canvas, centre, radius, colour, -1, cv2.LINE_AA)


def _draw_label(canvas: ByteImage, face: Face, text: str) -> None:
    height, width = canvas.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    (unit_width, _), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(max(0.4, max(height, width) / 1200), 1.1 * max(face.width, 24) / unit_width)
    if face.width < 20 or scale < 0.33 or max(height, width) < 96:
        return
    stroke = max(1, round(scale * 1.6))
    (text_width, text_height), below = cv2.getTextSize(text, font, scale, stroke)
    pad = max(2, text_height // 4)
    label_width, label_height = text_width + 2 * pad, text_height + below // 2 + 2 * pad
    x = int(np.clip(face.box[0], 0, max(0, width - label_width)))
    y = int(face.box[1]) - label_height
    if y < 0:  # no room above: inside the box
        y = int(max(face.box[1], 0))
    cv2.rectangle(canvas, (x, y), (x + label_width, y + label_height), BOX_COLOUR, -1)
    cv2.putText(
        canvas, text, (x + pad, y + pad + text_height), font, scale, DARK, stroke, cv2.LINE_AA
    )
