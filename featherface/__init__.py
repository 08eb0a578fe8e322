"""FeatherFace: a face detector with at most 250,000 parameters.

>>> from featherface import FaceDetector
>>> faces = FaceDetector()("photo.jpg")
>>> faces.boxes, faces.scores, faces.landmarks

The names below load on first use, so that ``import featherface`` costs nothing; PyTorch is needed
for training only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featherface.detector import FaceDetector
    from featherface.faces import Face, Faces

    __version__: str

__all__ = ["Face", "FaceDetector", "Faces", "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("featherface")
    if name == "FaceDetector":
        from featherface.detector import FaceDetector

        return FaceDetector
    if name in ("Face", "Faces"):
        from featherface import faces

        return getattr(faces, name)
    raise AttributeError(f"module 'featherface' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
