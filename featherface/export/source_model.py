"""What every export starts from: the ONNX graph in float32 with raw outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime

from featherface.errors import MissingExtraError, WeightsError

PACKAGED = Path(__file__).parents[1] / "weights" / "featherface_v2.onnx"
OUTPUTS = ("scores", "box_deltas", "landmark_deltas")


def read_source(weights: Path | None = None) -> onnx.ModelProto:
    """The graph of ``weights``: an ONNX file of ours in float32, or V2's ``.safetensors``.

    None takes the ONNX file in the package. A ``.safetensors`` file needs PyTorch. Raises
    ``WeightsError`` for a file that is missing, corrupt, quantized or of another model.
    """
    path = Path(weights) if weights is not None else PACKAGED
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give a .safetensors or .onnx file")
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker share no base class
        raise WeightsError(f"{path}: not a readable ONNX file ({type(error).__name__})") from error
    if not set(OUTPUTS) <= {output.name for output in model.graph.output}:
        names = ", ".join(output.name for output in model.graph.output)
        raise WeightsError(
            f"{path}: has the outputs {names}; export starts from a graph with raw outputs, "
            f"{', '.join(OUTPUTS)}"
        )
    types = {initializer.data_type for initializer in model.graph.initializer}
    if types & {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8}:
        raise WeightsError(f"{path}: reduced to 16 or 8 bits already; give the float32 file")
    return model


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its constants folded and copies removed, by ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        simple = onnx.load(path)
    used = {node.domain for node in simple.graph.node}
    kept = [entry for entry in simple.opset_import if entry.domain in used]
    del simple.opset_import[:]
    simple.opset_import.extend(kept)
    simple.producer_name = model.producer_name
    del simple.metadata_props[:]
    simple.metadata_props.extend(model.metadata_props)
    return simple


def add_metadata(model: onnx.ModelProto, **entries: str) -> None:
    """Write ``entries`` beside the weights, where ``session.get_modelmeta()`` finds them."""
    for key, value in entries.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def _from_safetensors(path: Path) -> onnx.ModelProto:
    try:
        from featherface.export.onnx_file import export_onnx
        from featherface.models.pretrained_v2 import load_v2
    except ImportError as error:
        if (error.name or "").startswith("featherface"):
            raise
        raise MissingExtraError(
            f"{path}: a .safetensors file needs PyTorch: pip install 'featherface[train]', or give "
            "the .onnx file"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(export_onnx(load_v2(path), Path(folder) / "source.onnx"))
