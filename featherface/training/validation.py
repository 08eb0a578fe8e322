"""The AP of a model in training, by the detector that users run: exported, then ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from featherface.detector import FaceDetector
from featherface.evaluation.validation import Progress, SplitPhotos, ValidationResult, validate
from featherface.export.onnx_file import export_onnx
from featherface.export.v1_onnx import export_v1_onnx
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2

LOWEST_SCORE = 0.02


def detector_of(
    model: FeatherFaceV2 | BaselineV1, threads: int = 1, score_threshold: float = LOWEST_SCORE
) -> FaceDetector:
    """``model`` as a detector that looks at photos at their own size; the model stays as it is."""
    with TemporaryDirectory(prefix="featherface-") as folder:
        path = Path(folder) / "model.onnx"
        if isinstance(model, BaselineV1):
            export_v1_onnx(model, path)  # deformable convolutions run best as one node each
        else:
            export_onnx(model, path)
        return FaceDetector(path, input_size=None, score_threshold=score_threshold, threads=threads)


def validate_model(
    model: FeatherFaceV2 | BaselineV1,
    store: SplitPhotos,
    fraction: float,
    limit: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> ValidationResult:
    """AP of ``model`` on the held-out ``fraction`` of ``store``, see ``evaluation.validation``."""
    return validate(detector_of(model, threads), store, fraction, limit, progress)
