"""OpenVINO, for Intel's processors and graphics: an ``.xml`` and a ``.bin`` file.

Names, shapes and values are those of the ONNX file; weights stay float32, and the runtime picks
the precision of the device.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx

from featherface.errors import ExportError


def export_openvino(model: onnx.ModelProto, path: Path) -> tuple[Path, Path]:
    """Write ``model`` to ``path`` (``.xml``) and the ``.bin`` beside it.

    Raises ``ExportError`` if OpenVINO cannot read the graph.
    """
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        graph = Path(folder) / "model.xml"
        try:
            openvino.save_model(
                openvino.Core().read_model(source), str(graph), compress_to_fp16=False
            )
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO could not read the graph: {str(error).splitlines()[-1]}"
            ) from error
        beside = path.with_suffix(".bin")
        os.replace(graph.with_suffix(".bin"), beside)
        os.replace(graph, path)
    return path, beside
