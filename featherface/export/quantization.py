"""INT8 after training: static, QDQ, a scale a channel; the layers that bear it worst stay in float.

    images = calibration_images(Path("photos"), 24)
    quantized = quantize(read_source(), images)
    onnx.save(quantized.model, "featherface_v2_int8.onnx")

1. Channels are equalised (``channel_equalization``), which changes no output.
2. The calibration images give each map its range (moving average of minimum and maximum, so that
   one bright spot does not set the step for all).
   What a ReLU takes away is left out.
3. Each convolution is quantized alone, and the error it causes is measured.
4. From the worst on, convolutions stay in float until the whole network's error is in tolerance.

The error is the mean absolute difference of scores, over the anchors that either network scores
``CANDIDATE_SCORE`` or more. ONNX Runtime's quantizer does the work, and ``EXACT_SUMS`` makes it
run the result as it was measured: x86 processors without VNNI otherwise add pairs of products in
16 bits, and overflow. ``FaceDetector`` sets the same option.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from featherface.errors import DataError
from featherface.export.channel_equalization import channel_ranges, equalize_channels
from featherface.export.source_model import add_metadata, simplified

FloatArray = NDArray[np.float32]
Progress = Callable[[Sequence[str]], Iterable[str]]

CANDIDATE_SCORE = 0.1
FACE_SCORE = 0.5  # at least one in the calibration images, or they show nothing
TOLERANCE = 0.009
MEASURED_IMAGES = 6  # of the calibration images, for the errors
EXACT_SUMS = ("session.x64quantprecision", "1")
OPERATORS = ["Conv"]  # the rest runs between them on what they leave
MOVING_AVERAGE = 0.03


@dataclass(frozen=True)
class LayerError:
    """A convolution and the error of the network when it alone is quantized."""

    layer: str
    error: float


@dataclass(frozen=True, eq=False)
class Quantized:
    """The quantized graph and how it came about.

    ``layers``: every convolution, the worst first; the first ``kept_float`` stay in float.
    ``error``: of the whole graph, ``error_all``: of the graph with every convolution quantized.
    """

    model: onnx.ModelProto
    layers: tuple[LayerError, ...]
    kept_float: int
    error: float
    error_all: float


def quantize(
    model: onnx.ModelProto,
    images: Sequence[FloatArray],
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize ``model`` (float32, raw outputs) on ``images`` ``[1, 3, H, W]``.

    ``progress`` wraps the layers while they are measured. Raises ``DataError`` without images, or
    if no image shows anything that the network takes for a face.
    """
    if not images:
        raise DataError("No images to calibrate with; give at least one that shows faces")
    source = simplified(model)
    for number, node in enumerate(source.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    equalize_channels(source, channel_ranges(source, images))
    ranges = _tensor_ranges(source, images)
    _begin_at_zero(ranges, source)

    measured = _evenly(images, MEASURED_IMAGES)
    expected = _outputs(source, measured)
    if not any((scores >= FACE_SCORE).any() for scores in expected):
        raise DataError("No image to calibrate with shows a face; give photos of people")

    def error_of(layers: Sequence[str]) -> float:
        if not layers:
            return 0.0
        return _score_error(_outputs(_quantized(source, ranges, layers), measured), expected)

    names = [node.name for node in source.graph.node if node.op_type == "Conv"]
    errors = [LayerError(name, error_of([name])) for name in (progress or iter)(names)]
    errors.sort(key=lambda layer: -layer.error)
    order = [layer.layer for layer in errors]
    error_all = error = error_of(order)
    kept = 0
    if error > tolerance:  # the fewest that suffice; the error falls as their number rises
        low, high = 0, len(order)
        error = 0.0
        while high - low > 1:
            middle = (low + high) // 2
            found = error_of(order[middle:])
            if found > tolerance:
                low = middle
            else:
                high, error = middle, found
        kept = high
    result = _quantized(source, ranges, order[kept:]) if order[kept:] else source
    result.producer_name = model.producer_name
    add_metadata(result, precision="int8", float_layers=str(kept))
    onnx.checker.check_model(result)
    return Quantized(result, tuple(errors), kept, error, error_all)


class _Reader(CalibrationDataReader):
    """Hands the images to ONNX Runtime's calibrator."""

    def __init__(self, images: Sequence[FloatArray]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, FloatArray] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image}


def _tensor_ranges(model: onnx.ModelProto, images: Sequence[FloatArray]) -> TensorsData:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            OPERATORS,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"moving_average": True, "averaging_constant": MOVING_AVERAGE},
        )
        calibrator.collect_data(_Reader(images))
        return calibrator.compute_data()


def _begin_at_zero(ranges: TensorsData, model: onnx.ModelProto) -> None:
    """Spend no step on what a ReLU takes away: its input's range begins at zero, in place."""
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for name in ranges:
        if readers.get(name) == {"Relu"}:
            low, high = ranges[name].range_value
            least = np.maximum(high, np.float32(1e-6))  # a range has an extent
            ranges[name] = TensorData(lowest=np.zeros_like(low), highest=least)


def _quantized(
    model: onnx.ModelProto, ranges: TensorsData, layers: Sequence[str]
) -> onnx.ModelProto:
    """``model`` with the convolutions in ``layers`` quantized, the rest in float."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer warns of what we chose
    try:
        quantizer = QDQQuantizer(
            copied,
            True,  # a scale a channel
            False,  # all 8 bits, see EXACT_SUMS
            QuantType.QInt8,
            QuantType.QUInt8,
            ranges,
            list(layers),
            [],
            OPERATORS,
            {"WeightSymmetric": True},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # the quantizer leaves that to its own saving
    finally:
        root.setLevel(level)
    return quantizer.model.model


def _outputs(model: onnx.ModelProto, images: Sequence[FloatArray]) -> list[FloatArray]:
    """The scores ``[1, A]`` of each image."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT_SUMS)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [session.run(["scores"], {"image": image})[0] for image in images]


def _score_error(found: Sequence[FloatArray], expected: Sequence[FloatArray]) -> float:
    differences = [
        np.abs(ours - theirs)[np.maximum(ours, theirs) >= CANDIDATE_SCORE]
        for ours, theirs in zip(found, expected, strict=True)
    ]
    together = np.concatenate(differences)
    return float(together.mean()) if len(together) else 0.0


def _evenly(images: Sequence[FloatArray], count: int) -> list[FloatArray]:
    indices = np.unique(np.linspace(0, len(images) - 1, count).round().astype(int))
    return [images[index] for index in indices]
