"""Every exported format, run by its own runtime, against PyTorch and ``FaceDetector``."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from featherface.boxes import box_iou
from featherface.cli import app
from featherface.detector import FaceDetector
from featherface.export.calibration import calibration_images
from featherface.export.channel_equalization import channel_ranges, equalize_channels
from featherface.export.decoded import with_decoding
from featherface.export.quantization import EXACT_SUMS
from featherface.export.source_model import OUTPUTS, PACKAGED, read_source, simplified

PHOTO = Path(__file__).parents[1] / "featherface" / "examples" / "astronaut.jpg"
SAFETENSORS = PACKAGED.with_suffix(".safetensors")
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(PHOTO))[:, :, ::-1])


def network_input(photo: NDArray[np.uint8], width: int, height: int) -> Floats:
    resized = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(resized.transpose(2, 0, 1), np.float32)[None]


def session(model: Path | onnx.ModelProto) -> onnxruntime.InferenceSession:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*EXACT_SUMS)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def export(*arguments: object) -> None:
    """Run the command; it must succeed."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def float32(folder: Path) -> Path:
    pytest.importorskip("torch")
    export("--weights", SAFETENSORS, "--out", folder / "float32.onnx")
    return folder / "float32.onnx"


@pytest.fixture(scope="module")
def float16(folder: Path) -> Path:
    export("--format", "fp16", "--out", folder / "float16.onnx")
    return folder / "float16.onnx"


@pytest.fixture(scope="module")
def int8(folder: Path) -> Path:
    photos = folder / "photos"
    photos.mkdir()
    shutil.copy(PHOTO, photos)
    (photos / "broken.jpg").write_bytes(b"no picture")
    export("--format", "int8", "--calibrate", photos, "--out", folder / "int8.onnx")
    return folder / "int8.onnx"


@pytest.mark.parametrize(("batch", "width", "height"), [(1, 320, 256), (2, 96, 160), (3, 64, 64)])
def test_float32_agrees_with_pytorch_at_any_size(
    float32: Path, photo: NDArray[np.uint8], batch: int, width: int, height: int
) -> None:
    torch = pytest.importorskip("torch")
    from featherface.models.pretrained_v2 import load_v2

    image = np.repeat(network_input(photo, width, height), batch, axis=0)
    with torch.no_grad():
        expected = load_v2(SAFETENSORS)(torch.from_numpy(image))
    scores, boxes, landmarks = session(float32).run(list(OUTPUTS), {"image": image})
    np.testing.assert_allclose(scores, expected.logits.sigmoid().numpy(), atol=1e-4)
    for found, wanted in ((boxes, expected.box_deltas), (landmarks, expected.landmark_deltas)):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4, rtol=1e-4)


def test_float32_is_simple(float32: Path) -> None:
    graph = onnx.load(float32)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 17)]
    operators = {node.op_type for node in graph.graph.node}
    assert not operators & {"BatchNormalization", "Identity", "Constant"}


@pytest.mark.parametrize(("width", "height"), [(320, 256), (512, 512), (640, 480)])
def test_float16_scores_agree(
    float16: Path, photo: NDArray[np.uint8], width: int, height: int
) -> None:
    image = network_input(photo, width, height)
    found = session(float16).run(["scores"], {"image": image})[0]
    np.testing.assert_allclose(found, session(PACKAGED).run(["scores"], {"image": image})[0],
                               atol=5e-3)  # fmt: skip
    assert float16.stat().st_size < 0.65 * PACKAGED.stat().st_size


def test_detector_runs_float16(float16: Path) -> None:
    ours, theirs = FaceDetector(float16)(PHOTO), FaceDetector()(PHOTO)
    assert len(ours) == len(theirs) >= 1
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=5e-3)


def test_detector_runs_int8_and_finds_the_same(int8: Path) -> None:
    ours, theirs = FaceDetector(int8)(PHOTO), FaceDetector()(PHOTO)
    assert len(theirs) >= 1
    overlaps = box_iou(ours.boxes, theirs.boxes)
    sure = theirs.scores >= 0.6
    assert (overlaps.max(axis=0)[sure] >= 0.7).all()
    assert (overlaps.max(axis=1)[ours.scores >= 0.6] >= 0.7).all()
    best = overlaps.argmax(axis=0)[sure]
    np.testing.assert_allclose(ours.scores[best], theirs.scores[sure], atol=0.1)


def test_int8_keeps_the_worst_layers_in_float(int8: Path) -> None:
    graph = onnx.load(int8)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    weights = {one.name: one.data_type for one in graph.graph.initializer}
    floats = sum(
        weights.get(node.input[1]) == onnx.TensorProto.FLOAT
        for node in graph.graph.node
        if node.op_type == "Conv"
    )
    assert metadata["precision"] == "int8"
    assert floats == int(metadata["float_layers"]) < 79
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.graph.node}


def test_int8_spends_no_step_on_what_a_relu_takes_away(int8: Path) -> None:
    graph = onnx.load(int8).graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    zero_points = [
        int(values[node.input[2]])
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and {reader.op_type for reader in readers.get(node.output[0], [])} == {"Relu"}
    ]
    assert zero_points
    assert set(zero_points) == {0}


@pytest.mark.parametrize("fixture", ["float32", "float16", "int8"])
def test_dynamic_batch_height_and_width(
    fixture: str, photo: NDArray[np.uint8], request: pytest.FixtureRequest
) -> None:
    runtime = session(request.getfixturevalue(fixture))
    for width, height in ((64, 96), (160, 32)):
        one = network_input(photo, width, height)
        two = np.concatenate([one, one])
        alone, together = (runtime.run(list(OUTPUTS), {"image": image}) for image in (one, two))
        for single, double in zip(alone, together, strict=True):
            assert double.shape == (2, *single.shape[1:])
            np.testing.assert_allclose(double[1], single[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fixture", ["float32", "float16", "int8"])
@pytest.mark.parametrize("size", [(512, 512), (477, 300)])
def test_decoded_graph_agrees_with_the_detector(
    fixture: str, size: tuple[int, int], photo: NDArray[np.uint8], request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(fixture)
    decoded = session(with_decoding(onnx.load(path), score_threshold=0.1))
    view = np.ascontiguousarray(photo[: size[1], : size[0]])
    faces = FaceDetector(path, input_size=None, score_threshold=0.1)(view)
    blob = view.transpose(2, 0, 1)[None].astype(np.float32)
    boxes, scores, landmarks, image_index = decoded.run(None, {"image": blob})
    assert len(faces) >= 1
    np.testing.assert_allclose(boxes, faces.boxes, atol=1e-2)
    np.testing.assert_allclose(scores, faces.scores, atol=1e-4)
    np.testing.assert_allclose(landmarks, faces.landmarks, atol=1e-2)
    assert not image_index.any()


def test_decoded_batch_tells_the_images_apart(folder: Path, photo: NDArray[np.uint8]) -> None:
    path = folder / "decoded.onnx"
    export("--decode", "--out", path)
    graph = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 17)]
    face = photo.transpose(2, 0, 1).astype(np.float32)
    batch = np.stack([np.zeros_like(face), face, face[:, :, ::-1]])
    boxes, scores, landmarks, image_index = session(path).run(None, {"image": batch})
    assert set(image_index) == {1, 2}
    assert boxes.shape == (len(scores), 4)
    assert landmarks.shape == (len(scores), 5, 2)
    none = session(path).run(None, {"image": batch[:1]})
    assert [one.shape for one in none] == [(0, 4), (0,), (0, 5, 2), (0,)]


def test_equalized_channels_compute_the_same(photo: NDArray[np.uint8]) -> None:
    model = simplified(read_source())
    image = network_input(photo, 256, 192)
    expected = session(model).run(list(OUTPUTS), {"image": image})
    before = {one.name: one.SerializeToString() for one in model.graph.initializer}
    assert equalize_channels(model, channel_ranges(model, [image])) > 10
    changed = [
        one for one in model.graph.initializer if one.SerializeToString() != before.get(one.name)
    ]
    assert len(changed) > 40
    found = session(model).run(list(OUTPUTS), {"image": image})
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=1e-3)


def test_ncnn_agrees(folder: Path, photo: NDArray[np.uint8]) -> None:
    pytest.importorskip("pnnx")
    ncnn = pytest.importorskip("ncnn")
    path = folder / "v2.ncnn.param"
    export("--format", "ncnn", "--out", path)
    net = ncnn.Net()
    net.opt.num_threads = 1
    assert net.load_param(str(path)) == 0
    assert net.load_model(str(path.with_suffix(".bin"))) == 0
    for width, height in ((320, 256), (480, 640)):
        image = network_input(photo, width, height)
        extractor = net.create_extractor()
        extractor.input("image", ncnn.Mat(image[0]))
        expected = session(PACKAGED).run(list(OUTPUTS), {"image": image})
        found = [np.array(extractor.extract(name)[1]) for name in OUTPUTS]
        np.testing.assert_allclose(found[0], expected[0][0], atol=1e-4)
        np.testing.assert_allclose(found[1], expected[1][0], atol=1e-3, rtol=1e-4)
        np.testing.assert_allclose(found[2], expected[2][0], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("decode", [False, True])
def test_openvino_agrees(folder: Path, photo: NDArray[np.uint8], decode: bool) -> None:
    openvino = pytest.importorskip("openvino")
    path = folder / f"v2_{decode}.xml"
    export("--format", "openvino", "--out", path, *(["--decode"] if decode else []))
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    model = with_decoding(read_source()) if decode else read_source()
    for width, height in ((320, 256), (480, 640)):
        image = network_input(photo, width, height)
        runtime = session(model)
        names = [output.name for output in runtime.get_outputs()]
        found = compiled(image)
        for name, expected in zip(names, runtime.run(names, {"image": image}), strict=True):
            np.testing.assert_allclose(found[name], expected, atol=1e-3, rtol=1e-4, err_msg=name)
            if name == "scores":
                np.testing.assert_allclose(found[name], expected, atol=1e-4)


def test_calibration_reads_shards_like_folders() -> None:
    pytest.importorskip("webdataset")
    import os

    shared = Path(os.environ.get("FEATHERFACE_SHARED", Path(__file__).parents[1].parent / "shared"))
    shards = shared / "data" / "train"
    if not shards.is_dir():
        pytest.skip("no training shards here")
    images = calibration_images(shards, 4, long_side=320)
    assert len(images) == 4
    for image in images:
        assert image.dtype == np.float32
        assert image.shape[:2] == (1, 3)
        assert max(image.shape[2:]) == 320
        assert all(side % 32 == 0 for side in image.shape[2:])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "missing.onnx"], "missing.onnx: no such weights file"),
        (["--weights", "broken.onnx"], "broken.onnx: not a readable ONNX file"),
        (["--weights", "small.onnx"], "export starts from a graph with raw outputs"),
        (["--weights", "broken.safetensors"], "broken.safetensors"),
        (["--format", "tflite"], "--format tflite: unknown; give one of onnx, fp16, int8"),
        (["--format", "int8"], "needs --calibrate DIR"),
        (["--format", "fp16", "--calibrate", "empty"], "needs --calibrate DIR"),
        (["--format", "int8", "--calibrate", "nowhere"], "nowhere: no such folder"),
        (["--format", "int8", "--calibrate", "empty"], "empty: no readable photo"),
        (["--format", "ncnn", "--decode"], "ncnn"),
        (["--decode", "--score-threshold", "2"], "score_threshold=2.0"),
        (["--out", "broken.onnx/inside.onnx"], "broken.onnx"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken.onnx").write_bytes(b"not a model")
    Path("broken.safetensors").write_bytes(b"not a model")
    onnx.save(with_decoding(read_source()), "small.onnx")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert says in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_photo_without_faces_cannot_calibrate(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((64, 64, 3), 128, np.uint8))
    result = CliRunner().invoke(
        app, ["export", "--format", "int8", "--calibrate", str(tmp_path), "--out", "never.onnx"]
    )
    assert result.exit_code == 1
    assert "shows a face" in result.stderr
