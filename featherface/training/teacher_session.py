"""A teacher's network in ONNX Runtime: one thread, as a process trains on each core."""

from __future__ import annotations

import onnxruntime


def open_session(network: bytes) -> onnxruntime.InferenceSession:
    """The ``network`` of an ONNX file, for images of any size in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # it would plan anew for every size of image
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
