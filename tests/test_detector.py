"""``FaceDetector`` around a network whose answers are known."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import PaintRed, build_red_detector
from PIL import Image

from featherface import FaceDetector, Faces
from featherface.detector import PACKAGED_WEIGHTS
from featherface.errors import ConfigError, ImageError, WeightsError


@pytest.fixture(scope="module")
def detector(red_weights: Path) -> FaceDetector:
    return FaceDetector(red_weights, input_size=None, threads=1)


def test_original_pixels(detector: FaceDetector, paint_red: PaintRed) -> None:
    faces = detector(paint_red(200, 100, (80, 40, 8)))
    assert isinstance(faces, Faces)
    np.testing.assert_allclose(faces.boxes, [[76, 36, 92, 52]], atol=1e-4)
    expected = [[80.8, 40.8], [87.2, 40.8], [84, 44], [80.8, 47.2], [87.2, 47.2]]
    np.testing.assert_allclose(faces.landmarks, [expected], atol=1e-4)
    assert faces.scores[0] > 0.99


def test_back_to_original_pixels(red_weights: Path, paint_red: PaintRed) -> None:
    detector = FaceDetector(red_weights, threads=1)
    shrunk = detector(paint_red(1280, 720, (160, 80, 16)))
    np.testing.assert_allclose(shrunk.boxes, [[152, 72, 184, 104]], atol=1e-3)
    grown = detector(paint_red(160, 100, (40, 20, 2)))  # 8 pixels wide at 640
    best = grown[0]
    np.testing.assert_allclose(best.box, [39, 19, 43, 23], atol=1e-3)


def test_clipped_to_the_image(detector: FaceDetector, paint_red: PaintRed) -> None:
    faces = detector(paint_red(100, 100, (0, 0, 8), (96, 96, 8)))
    assert len(faces) == 1  # the red of the other fills only a quarter of its cell
    np.testing.assert_allclose(faces.boxes[0], [0, 0, 12, 12], atol=1e-4)
    assert (faces.landmarks >= 0).all()
    edge = detector(paint_red(40, 8, (32, 0, 8)))
    np.testing.assert_allclose(edge.boxes, [[28, 0, 40, 8]], atol=1e-4)
    np.testing.assert_allclose(edge.landmarks.max(axis=(0, 1)), [39.2, 7.2], atol=1e-4)


def test_suppression_and_order(detector: FaceDetector, paint_red: PaintRed) -> None:
    image = paint_red(256, 256, (80, 80, 8), (160, 160, 8))
    image[160:168, 160:168, 0] = 170
    faces = detector(image)
    assert len(faces) == 2
    assert (np.diff(faces.scores) < 0).all()
    assert faces.boxes[0, 0] == pytest.approx(76)
    close = detector(paint_red(256, 256, (80, 80, 16)))  # 4 cells, shifted by half a box
    assert 1 <= len(close) <= 4


def test_list_of_mixed_sizes_equals_one_by_one(detector: FaceDetector, paint_red: PaintRed) -> None:
    images = [
        paint_red(96, 64, (8, 8, 8)),
        paint_red(200, 100, (80, 40, 8), (160, 72, 8)),
        paint_red(90, 60),
        paint_red(80, 50, (40, 40, 8)),
    ] * 10  # fmt: skip
    together = detector(images)
    assert isinstance(together, list)
    for faces, image in zip(together, images, strict=True):
        alone = detector(image)
        np.testing.assert_allclose(faces.boxes, alone.boxes, atol=1e-4)
        np.testing.assert_allclose(faces.scores, alone.scores, atol=1e-6)
    assert detector([]) == []
    assert [len(faces) for faces in detector((images[0], images[2]))] == [1, 0]


def test_every_source(detector: FaceDetector, paint_red: PaintRed, tmp_path: Path) -> None:
    image = paint_red(96, 64, (40, 24, 8))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    swapped = np.ascontiguousarray(image[:, :, ::-1])
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue(), Image.open(buffer)]
    for source in sources:
        assert len(detector(source)) == 1
    assert len(detector(swapped)) == 0
    assert len(detector(swapped, bgr=True)) == 1


@pytest.mark.parametrize("input_size", [640, None])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 20), (20, 20_000)])
def test_extreme_shapes(red_weights: Path, width: int, height: int, input_size: int | None) -> None:
    detector = FaceDetector(red_weights, input_size=input_size, threads=1)
    faces = detector(np.full((height, width, 3), 90, np.uint8))
    assert len(faces) == 0


def test_absurd_inputs(red_weights: Path) -> None:
    wide = np.broadcast_to(np.uint8(0), (9000, 9000, 3))
    with pytest.raises(ImageError, match="9000x9000"):
        FaceDetector(red_weights, input_size=None)(wide)
    for options in ({"input_size": 0}, {"score_threshold": 2}, {"nms_iou": -1}, {"threads": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            FaceDetector(red_weights, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="NoSuchProvider"):
        FaceDetector(red_weights, providers=["NoSuchProvider"])


def test_bad_weights(tmp_path: Path, red_weights: Path) -> None:
    with pytest.raises(WeightsError, match="no such"):
        FaceDetector(tmp_path / "absent.onnx")
    whole = red_weights.read_bytes()
    cases = {"empty": b"", "noise": bytes(range(256)) * 9, "torn": whole[: len(whole) // 2]}
    for name, data in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=name) as caught:
            FaceDetector(path)
        assert "\n" not in str(caught.value)


def test_weights_of_another_model(tmp_path: Path) -> None:
    renamed = build_red_detector()
    renamed.graph.input[0].name = "input"
    for node in renamed.graph.node:
        node.input[:] = ["input" if name == "image" else name for name in node.input]
    onnx.save(renamed, tmp_path / "renamed.onnx")
    with pytest.raises(WeightsError, match="inputs input"):
        FaceDetector(tmp_path / "renamed.onnx")
    fewer = build_red_detector()
    del fewer.graph.output[2]
    onnx.save(fewer, tmp_path / "fewer.onnx")
    with pytest.raises(WeightsError, match="outputs scores, box_deltas"):
        FaceDetector(tmp_path / "fewer.onnx")


def test_detecting_needs_no_torch(red_weights: Path) -> None:
    code = (
        "import sys, numpy, featherface\n"
        "assert 'cv2' not in sys.modules\n"
        f"featherface.FaceDetector({str(red_weights)!r})(numpy.zeros((9, 9, 3), 'uint8'))\n"
        "assert featherface.__version__\n"
        "assert not {'torch', 'PIL', 'onnx', 'featherface.cli'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not PACKAGED_WEIGHTS.is_file(), reason="the weights are not there yet")
def test_packaged_weights_find_the_astronaut() -> None:
    photo = PACKAGED_WEIGHTS.parents[1] / "examples" / "astronaut.jpg"
    for input_size in (640, 320, None):
        faces = FaceDetector(input_size=input_size, threads=1)(photo)
        assert len(faces) == 1
        x1, y1, x2, y2 = faces.boxes[0]
        assert 155 < x1 < 195
        assert 40 < y1 < 95
        assert 255 < x2 < 290
        assert 160 < y2 < 215
        left_eye, right_eye, nose, *mouth = faces.landmarks[0]
        assert left_eye[0] < nose[0] < right_eye[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(point[1] for point in mouth)
