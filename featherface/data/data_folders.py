"""Where the data of a study lies: the real sets where they are, else the drawn ones.

The real ones are found under ``FEATHERFACE_DATA``, ``FEATHERFACE_SHARED`` or the working folder:

    data/train/*.tar  data/wider_mini  data/masks  weights/*.safetensors  peers/*.onnx
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featherface.data.example_data import make_example_data
from featherface.errors import DataError

VARIABLES = ("FEATHERFACE_DATA", "FEATHERFACE_SHARED")


@dataclass(frozen=True)
class DataFolders:
    """Paths to train on and to measure with; None where there is nothing.

    Attributes:
        real: False for the drawn example data.
        train: folder of shards.
        wider_mini: subset in WIDER FACE's protocol. labelled: another labelled folder.
        v1: V1's weights. imagenet: the backbone's. peers: folder of other detectors' ONNX files.
    """

    real: bool
    train: Path
    wider_mini: Path
    labelled: Path
    v1: Path | None
    imagenet: Path | None
    peers: Path | None


def find_data_folders(
    scratch: Path, quick: bool = False, environment: Mapping[str, str] = os.environ
) -> DataFolders:
    """The real data, or the example data in ``scratch / "example"``, which ``quick`` always takes.

    Raises:
        DataError: a variable names a folder without data/train.
    """
    for variable in VARIABLES:
        named = environment.get(variable)
        if named and not quick:
            if not (Path(named) / "data" / "train").is_dir():
                raise DataError(f"{variable}={named}: no data/train in it; name its parent folder")
            return _real(Path(named))
    if not quick and (Path("data") / "train").is_dir():
        return _real(Path())
    example = make_example_data(scratch / "example")
    return DataFolders(
        False, example / "train", example / "wider_mini", example / "labelled", None, None, None
    )


def _real(root: Path) -> DataFolders:
    weights = root / "weights"
    return DataFolders(
        True,
        root / "data" / "train",
        root / "data" / "wider_mini",
        root / "data" / "masks",
        _present(weights / "featherface_v1_wider.safetensors"),
        _present(weights / "mobilenet_v1_x025_imagenet.safetensors"),
        _present(root / "peers"),
    )


def _present(path: Path) -> Path | None:
    return path if path.exists() else None
