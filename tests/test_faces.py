"""The result: shapes, slices, JSON, pictures cut out of it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from featherface import Face, Faces
from featherface.errors import ImageError, MissingExtraError
from featherface.faces import ARCFACE_TEMPLATE, similarity


def some_faces(count: int = 3, scale: float = 1.0) -> Faces:
    template = ARCFACE_TEMPLATE * scale
    shifts = np.arange(count, dtype=np.float32)[:, None] * 30
    boxes = np.tile(np.array([20, 20, 92, 110], np.float32) * scale, (count, 1)) + shifts
    landmarks = template[None] + shifts[:, :, None]
    return Faces(boxes, 0.9 - 0.1 * np.arange(count, dtype=np.float32), landmarks)


def test_container() -> None:
    faces = some_faces()
    assert len(faces) == 3
    assert [type(face) for face in faces] == [Face] * 3
    assert faces[0].score == pytest.approx(0.9)
    assert faces[-1].box.tolist() == [80, 80, 152, 170]
    assert (faces[0].width, faces[0].height) == (72, 90)
    assert len(faces[1:]) == 2
    assert len(faces[faces.scores > 0.85]) == 1
    assert len(faces[[2, 0]]) == 2
    assert faces.boxes.dtype == faces.scores.dtype == faces.landmarks.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        faces.boxes[0, 0] = 1
    with pytest.raises(IndexError):
        faces[3]
    with pytest.raises(ValueError, match="boxes"):
        Faces(np.zeros((2, 4)), np.zeros(3), np.zeros((3, 5, 2)))


def test_no_faces() -> None:
    faces = Faces.none()
    assert faces.boxes.shape == (0, 4)
    assert faces.scores.shape == (0,)
    assert faces.landmarks.shape == (0, 5, 2)
    assert list(faces) == []
    assert faces.to_dict() == {"faces": []}
    image = np.zeros((8, 8, 3), np.uint8)
    np.testing.assert_array_equal(faces.draw(image), image)
    assert faces.align(image).shape == (0, 112, 112, 3)


def test_json() -> None:
    first = json.loads(some_faces().to_json())["faces"][0]
    assert first["box"] == [20, 20, 92, 110]
    assert first["score"] == 0.9
    assert np.array(first["landmarks"]).shape == (5, 2)


@pytest.mark.parametrize("shape", [(1, 1), (20, 2000), (64, 64), (480, 640), (3000, 2000)])
def test_drawing_at_any_size(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 40, np.uint8)
    drawn = some_faces(3, max(shape) / 300).draw(image)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 40).all()
    if min(shape) > 60:
        assert (drawn != 40).any()


def test_crop() -> None:
    image = np.arange(120 * 120, dtype=np.uint32).astype(np.uint8).reshape(120, 120, 1)
    face = some_faces()[0]
    np.testing.assert_array_equal(face.crop(image), image[20:110, 20:92])
    assert face.crop(image, margin=1.0).shape == (120, 120, 1)
    assert len(some_faces().crop(image)) == 3
    with pytest.raises(ImageError, match="outside"):
        face.crop(image[:10, :10])


def face_picture(height: int, width: int, landmarks: np.ndarray, radius: float) -> np.ndarray:
    """Soft dots of brightness 200 on the landmarks."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    image = np.zeros((height, width), np.float32)
    for point in landmarks:
        distance = (x - point[0]) ** 2 + (y - point[1]) ** 2
        image = np.maximum(image, 200 * np.exp(-distance / (2 * radius**2)))
    return np.repeat(image[:, :, None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.3, 9.0])
@pytest.mark.parametrize("degrees", [0, 35, -120])
def test_alignment_brings_landmarks_to_the_template(scale: float, degrees: float) -> None:
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (ARCFACE_TEMPLATE - 56) @ turn.T + 80 * scale + 7
    side = int(160 * scale) + 14
    image = face_picture(side, side, landmarks, radius=2 * scale)
    box = np.concatenate([landmarks.min(axis=0), landmarks.max(axis=0)])
    aligned = Face(box.astype(np.float32), 0.9, landmarks.astype(np.float32)).align(image)
    assert aligned.shape == (112, 112, 3)
    expected = face_picture(112, 112, ARCFACE_TEMPLATE, radius=2)
    difference = np.abs(aligned.astype(int) - expected)
    assert difference.max() < 60  # a shift by half a pixel gives more where dots are this sharp
    weights = aligned[:, :, 0].astype(float)
    y, x = np.mgrid[0:112, 0:112] + 0.5
    centre = np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()
    np.testing.assert_allclose(centre, ARCFACE_TEMPLATE.mean(axis=0), atol=0.25)


def test_similarity_needs_two_points() -> None:
    with pytest.raises(ImageError, match="one point"):
        similarity(np.zeros((5, 2), np.float32), ARCFACE_TEMPLATE)
    matrix = similarity(ARCFACE_TEMPLATE, ARCFACE_TEMPLATE * 2 + 3)
    np.testing.assert_allclose(matrix, [[2, 0, 3], [0, 2, 3]], atol=1e-6)


def test_supervision_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match="pip install supervision"):
        some_faces().to_supervision()


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    detections = some_faces().to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.data["landmarks"].shape == (3, 5, 2)
