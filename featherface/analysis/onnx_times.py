"""How long each part of a network takes in ONNX Runtime, by its own profiler, on one thread.

The exporter names a node for the module it comes from, ``/model/context.0/reduce/...``, and the
runtime keeps the name when it fuses nodes. Each node counts with its fastest run, so that what else
runs on the machine does not show.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime

from featherface.analysis.module_costs import BETWEEN, Model, parts_of_model
from featherface.export.onnx_file import export_onnx
from featherface.export.v1_onnx import export_v1_onnx
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2

# V2's heads are run in two steps and leave their own name out of their nodes' names.
HEAD_CHILDREN = ("depthwise", "tower", "predictors")
HEAD_OPERATORS = (
    "Split", "Shape", "Gather", "Unsqueeze", "Concat", "Transpose", "Reshape", "Flatten",
)  # fmt: skip


def onnx_times(model: Model, width: int, height: int, rounds: int = 15) -> dict[str, float]:
    """Milliseconds by part, as the exported graph runs; the last entry is what no part owns."""
    with TemporaryDirectory(prefix="featherface-") as folder:
        path = export_model(model, Path(folder) / "model.onnx")
        events = profile_nodes(path, width, height, rounds)
    parts = list(parts_of_model(model))
    with_heads = isinstance(model, FeatherFaceV2)
    times: dict[str, float] = dict.fromkeys([*parts, BETWEEN], 0.0)
    for name, milliseconds in events.items():
        times[part_of_node(name, parts, with_heads)] += milliseconds
    return times


def export_model(model: Model, path: Path) -> Path:
    """The graph that users run: V1 with one node for each deformable convolution."""
    if isinstance(model, BaselineV1):
        return export_v1_onnx(model, path)
    return export_onnx(model, path)


def profile_nodes(path: Path, width: int, height: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each node's fastest run of ``rounds``."""
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, height, width)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_name("profile"))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(rounds + 1):
        session.run(None, {"image": image})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            runs[f"{name}#{event['args']['node_index']}"].append(event["dur"] / 1e3)
    return {name.split("#")[0] + f"#{i}": min(v) for i, (name, v) in enumerate(runs.items())}


def part_of_node(name: str, parts: Sequence[str], head_children: bool) -> str:
    """The part that a node such as ``/model/fusions.0/Add_1#12`` belongs to."""
    found = re.search(r"/model/([^#]*)", name)
    if found is None:
        return BETWEEN
    first, *rest = found[1].split("/")
    first = re.sub(r"(\.\d+)?(_\d+)*(_output_.*)?$", "", first)
    if first == "backbone" and rest:
        return f"backbone.{rest[0]}"
    if first in parts:
        return first
    if head_children and (first in HEAD_CHILDREN or first in HEAD_OPERATORS):
        return "heads"
    return BETWEEN
