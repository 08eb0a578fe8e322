"""Weight files of a model: safetensors, written whole or not at all, loaded strictly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featherface.errors import WeightsError


def save_weights(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the state of ``model`` as safetensors; values shared by modules are stored once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says of itself.

    Raises:
        WeightsError: missing or corrupt file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({first_line(error)})"
        ) from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what ``save_weights`` wrote; every value must be there and fit.

    Raises:
        WeightsError: missing or corrupt file, or one of another model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({first_line(error)})"
        ) from None
    by_id: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        twin = by_id.setdefault(id(tensor), name)
        if twin in tensors and name not in tensors:
            tensors[name] = tensors[twin]
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: holds other weights than {type(model).__name__} has "
            f"({shorten(str(error).splitlines()[1], 120, placeholder=' ...')})"
        ) from None


def load_mean_weights(model: nn.Module, paths: Sequence[Path]) -> None:
    """Load the mean of several files' weights (model soups, Wortsman et al., ICML 2022).

    It means something for runs that went on from one another, or from the same weights.

    Raises:
        WeightsError: no file given, or as :func:`load_weights`.
    """
    if not paths:
        raise WeightsError("no weight files to average: name at least one")
    states = []
    for path in paths:
        load_weights(model, path)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    with torch.no_grad():
        for name, value in model.state_dict().items():
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            value.copy_(mean.to(value.dtype))


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
