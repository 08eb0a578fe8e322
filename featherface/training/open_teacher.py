"""The teacher that a configuration names."""

from __future__ import annotations

from featherface.errors import ConfigError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.pretrained import load_v1
from featherface.models.pretrained_v2 import load_v2
from featherface.models.weight_files import read_metadata
from featherface.training.config import RunConfig
from featherface.training.learner import Teacher, has_features
from featherface.training.onnx_teacher import OnnxTeacher
from featherface.training.twin_teacher import TwinTeacher


def open_teacher(config: RunConfig, on_cpu: bool) -> Teacher | None:
    """V1 or a V2 from its weights, or any ONNX file with the same anchors, which shows no features.

    On a CPU the others, too, run in ONNX Runtime.
    """
    path = config.distillation.teacher
    if path is None:
        return None
    if path.suffix == ".onnx":
        if has_features(config):
            raise ConfigError(
                f"distillation.schedule: {path.name} shows no features; let their weight be 0 at "
                "every point"
            )
        return OnnxTeacher(path)
    teacher: FeatherFaceV1 | FeatherFaceV2
    of_v2 = read_metadata(path).get("model") == "FeatherFaceV2"
    teacher = (load_v2 if of_v2 else load_v1)(path).eval().requires_grad_(False)
    return TwinTeacher(teacher) if on_cpu else teacher
