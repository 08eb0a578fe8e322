"""Checkpoints of a run: written whole or not at all, read without unpickling."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from featherface.errors import WeightsError
from featherface.models.weight_files import first_line


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors, numbers and texts to ``path``, through a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote.

    Raises:
        WeightsError: not a checkpoint, or one that would need unpickling of code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path}: not a checkpoint ({first_line(error)})") from None
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: not a checkpoint of a training run")
    return state
