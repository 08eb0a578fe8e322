"""ncnn, for phones: a ``.param`` and a ``.bin`` file, by pnnx.

Input ``image`` ``[3, H, W]`` float32, RGB 0..255, one image at a time; outputs ``scores`` ``[A]``,
``box_deltas`` ``[A, 4]`` and ``landmark_deltas`` ``[A, 10]``, as in the ONNX file. Weights keep 32
bits: pnnx's 16 move scores by up to 0.07.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import onnx

from featherface.errors import ExportError
from featherface.export.source_model import OUTPUTS, simplified
from featherface.images import write_file

SIZES = ("[1,3,320,256]f32", "[1,3,640,480]f32")  # two, so that pnnx sees that sizes differ


def export_ncnn(model: onnx.ModelProto, path: Path) -> tuple[Path, Path]:
    """Write ``model`` (float32, raw outputs) to ``path`` (``.param``) and the ``.bin`` beside it.

    Raises ``ExportError`` with pnnx's last words if it fails.
    """
    import pnnx

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(simplified(model), source)
        shapes = [f"inputshape={SIZES[0]}", f"inputshape2={SIZES[1]}"]
        command = [pnnx.EXEC_PATH, source.name, *shapes, "fp16=0"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        graph, weights = Path(folder) / "model.ncnn.param", Path(folder) / "model.ncnn.bin"
        if not (graph.is_file() and weights.is_file()):
            words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise ExportError(
                f"pnnx could not convert the model (exit {done.returncode}): {words[-1]}"
            )
        beside = path.with_suffix(".bin")
        write_file(beside, weights.read_bytes())
        write_file(path, _with_names(graph.read_text()).encode())
    return path, beside


def _with_names(graph: str) -> str:
    """The text of a ``.param`` file with our names for its inputs and outputs."""
    names = {"in0": "image", **{f"out{index}": name for index, name in enumerate(OUTPUTS)}}
    lines = []
    for line in graph.splitlines():
        words = line.split(" ")
        lines.append(" ".join(names.get(word, word) for word in words))
    return "\n".join(lines) + "\n"
