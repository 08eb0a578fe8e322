"""A run at its end: measured on the held-out photos, and a row of the table of experiments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from featherface.errors import FeatherFaceError
from featherface.models.featherface_v2 import parameter_count
from featherface.training.config import RunConfig
from featherface.training.experiments import append_experiment, experiment_row, is_recorded
from featherface.training.validation import validate_model


def record_run(
    path: Path,
    config: RunConfig,
    model: Any,
    store: Any,
    device: str,
    trained: bool,
    report: Callable[[str], None],
) -> None:
    """Measure ``model`` on the held-out photos and append the run to the table at ``path``.

    A run that had nothing left to do is recorded only if it is not there yet. The weights are
    written by now: what goes wrong here is told, and ends nothing.
    """
    try:
        if not trained and is_recorded(path, config):
            return
        training, held_out = store.split(config.data.validation_fraction, seed=0)
        result = None
        if len(held_out):
            report(f"Measuring on {len(held_out):,} held-out photos")
            result = validate_model(model, store, config.data.validation_fraction)
        row = experiment_row(config, parameter_count(model), len(training), device, result)
        append_experiment(path, row)
        report(f"Experiment: {path}, validation AP {row['ap'] or 'without photos'}")
    except FeatherFaceError as error:
        report(f"Not recorded: {error}")


def describe_device(device: torch.device, count: int) -> str:
    """Such as ``2 x CPU`` or ``1 x NVIDIA H100``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{count} x {name}"
