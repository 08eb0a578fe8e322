"""Who takes part in the benchmark, and how each is opened.

A contender takes uint8 RGB ``[H, W, 3]`` at the size to be searched and returns faces; it also
shows its two halves, ``prepare`` and ``run``, so that the network can be timed alone.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import featherface
from featherface.detector import FaceDetector
from featherface.errors import ConfigError, WeightsError
from featherface.faces import FacesLike

OURS = "featherface"
PACKAGE = Path(__file__).parents[1]
OUR_CODE = ("detector.py", "boxes.py", "anchors.py", "images.py")

Image = NDArray[np.uint8]


class Contender(Protocol):
    """A detector that is open, with a number of threads and a score threshold."""

    def __call__(self, image: Image) -> FacesLike:
        """Faces of uint8 RGB ``[H, W, 3]``, in its pixels."""
        ...

    def prepare(self, image: Image) -> NDArray[np.float32]:
        """The network's input for the image, ``[1, 3, H', W']``."""
        ...

    def run(self, blob: NDArray[np.float32]) -> Any:
        """The network alone."""
        ...


class FeatherFaceContender:
    """``FaceDetector`` at the image's own size."""

    def __init__(self, weights: Path, threads: int, score_threshold: float) -> None:
        self.detector = FaceDetector(
            weights, input_size=None, score_threshold=score_threshold, threads=threads
        )

    def __call__(self, image: Image) -> FacesLike:
        return self.detector(image)

    def prepare(self, image: Image) -> NDArray[np.float32]:
        return self.detector.prepare(image)

    def run(self, blob: NDArray[np.float32]) -> Any:
        return self.detector.run_network(blob)


@dataclass(frozen=True)
class Entry:
    """A model that takes part: ``name`` in tables and files, ``adapter``: ``OURS`` or a peer's."""

    name: str
    model: Path
    adapter: str = OURS

    def open(self, threads: int, score_threshold: float) -> Contender:
        """The detector, ready to run."""
        if self.adapter == OURS:
            return FeatherFaceContender(self.model, threads, score_threshold)
        peer: Contender = load_peers()[self.adapter](self.model, threads, score_threshold)
        return peer

    @property
    def sha256(self) -> str:
        """Of the model's file, in hexadecimal."""
        try:
            return hashlib.sha256(self.model.read_bytes()).hexdigest()
        except OSError as error:
            raise WeightsError(f"{self.model} cannot be read: {error.strerror}") from error

    @property
    def code_sha256(self) -> str:
        """Of the files that turn the network's outputs into faces."""
        files: Iterable[Path] = [PACKAGE / name for name in OUR_CODE]
        if self.adapter != OURS:
            files = [Path(str(import_module("benchmarks.peers").__file__)), PACKAGE / "boxes.py"]
        return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()


def load_peers() -> dict[str, Any]:
    """The peers' adapters by name, from ``benchmarks/peers.py`` of a checkout."""
    for root in (Path.cwd(), Path(featherface.__file__).parents[1]):
        if (root / "benchmarks" / "peers.py").is_file():
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            peers: dict[str, Any] = import_module("benchmarks.peers").PEERS
            return peers
    raise ConfigError(
        "The peers' adapters, benchmarks/peers.py, are not here: "
        "run in a checkout of the repository, or leave out --peers"
    )


def peer_entries(folder: Path) -> list[Entry]:
    """The peers whose ONNX files, ``NAME.onnx``, lie in ``folder``."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: give the folder of the peers' ONNX files")
    entries = [
        Entry(name, folder / f"{name}.onnx", name)
        for name in load_peers()
        if (folder / f"{name}.onnx").is_file()
    ]
    if not entries:
        raise ConfigError(
            f"{folder} holds none of the peers: {', '.join(f'{n}.onnx' for n in load_peers())}"
        )
    return entries


def child_environment() -> dict[str, str]:
    """Environment for a Python process that finds the same modules as this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
