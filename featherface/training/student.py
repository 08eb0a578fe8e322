"""The student of a run: its first weights, and what of it stands still."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from featherface.data.labelled_photo import Photos
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.interpolated import interpolate
from featherface.models.pretrained_v2 import load_mean_v2, load_v2
from featherface.models.weight_files import load_mean_weights
from featherface.training.branch_start import fit_branch
from featherface.training.config import RunConfig, StartConfig
from featherface.training.context_start import fit_context
from featherface.training.council_start import learn_from_council
from featherface.training.detail_start import fit_detail
from featherface.training.factored_start import start_factored
from featherface.training.grown_start import grow
from featherface.training.joined_start import join_ways
from featherface.training.learner import Learner
from featherface.training.shared_start import start_shared
from featherface.training.shortened_start import start_shortened
from featherface.training.twin_start import fit_twin
from featherface.training.warm_start import warm_start_from_imagenet, warm_start_from_v1


def build_student(config: RunConfig) -> FeatherFaceV2:
    """V2 with the first weights that the configuration asks for.

    Raises:
        ConfigError: weights cannot be fitted to such a model.
        WeightsError: a file is missing or wrong.
    """
    model = FeatherFaceV2(**config.model.model_dump())
    start = config.start
    if start.fits_factors:
        return model  # fitted to other weights when there are crops
    if start.weights is not None and start.detail_crops and not has_stem(start.weight_files):
        plain = FeatherFaceV2(**config.model.model_dump() | {"detail_channels": 0})
        load_mean_weights(plain, start.weight_files)
        model.load_state_dict(plain.state_dict(), strict=False)  # all but the stem
    elif start.weights is not None and start.grown:
        grow(model, load_mean_v2(start.weight_files), start.v1)
    elif start.weights is not None and in_more_values(start.weight_files, model):
        interpolate(model, load_mean_v2(start.weight_files))
    elif start.weights is not None:
        load_mean_weights(model, start.weight_files)
    elif start.v1 is not None:
        warm_start_from_v1(model, start.v1)
    elif start.imagenet is not None:
        warm_start_from_imagenet(model, start.imagenet)
    return model


def fit_first_weights(
    fabric: Fabric,
    learner: Learner,
    student: FeatherFaceV2,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Fit parts of ``student``, in place, before the first step: what ``start`` asks crops for.

    Raises:
        ConfigError: a part needs another model, teacher or file.
        WeightsError: a file is missing or wrong.
    """
    config = learner.config
    start = config.start
    joined = None
    fitted = student
    taught_plain = start.council and in_more_values(start.weight_files, student)
    if (student.interpolative or student.folded_norms) and (start.fits_factors or taught_plain):
        # Factors are easier to fit than a basis: whatever is one of the two is also the other.
        plain = {"interpolative": False, "folded_norms": False}
        fitted = FeatherFaceV2(**config.model.model_dump() | plain)
        if not start.fits_factors:
            load_mean_weights(fitted, start.weight_files)
        fitted.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fitted.to(fabric.device)
        learner.student = fitted
    if start.factored_crops:
        joined = start_factored(fabric, fitted, config, store, indices, report)
    if start.shared_steps:
        start_shared(fabric, fitted, config, store, indices, report)
    if start.branch_crops:
        fit_branch(fabric, learner, store, indices, report)
    if start.shortened:  # reads what the branch makes
        start_shortened(fabric, learner, store, indices, report)
    if start.joined_crops:
        join_ways(fabric, learner, store, indices, report)
    if start.council:
        learn_from_council(fabric, fitted, start.council, config, store, indices, report)
    if start.context_crops:
        fit_context(fitted.context, learner.maps_of_teacher, config, store, indices, report)
    if start.twin_crops:
        fit_twin(fabric, learner, store, indices, report, joined)
    if start.detail_crops:
        fit_detail(fabric, learner, store, indices, report)
    if fitted is not student:
        interpolate(student, fitted)
        learner.student = student


def has_stem(weights: list[Path]) -> bool:
    """Whether the V2 in the first of the files has a detail stem."""
    return bool(weights) and load_v2(weights[0]).detail is not None


def in_more_values(weights: list[Path], model: FeatherFaceV2) -> bool:
    """Whether the V2 in the first of the files has factors or batch normalisations where ``model``
    has fewer values.
    """
    if not weights or not (model.interpolative or model.folded_norms):
        return False
    one = load_v2(weights[0])
    return one.interpolative < model.interpolative or one.folded_norms < model.folded_norms


def freeze(student: FeatherFaceV2 | BaselineV1, start: StartConfig) -> None:
    """Keep the first blocks as they are: the largest maps cost the most and change the least."""
    backbone = student.backbone
    kept: list[nn.Module] = [*backbone.stage1, *backbone.stage2, *backbone.stage3]
    kept = kept[: start.frozen_blocks]
    if start.frozen_branch and isinstance(student, FeatherFaceV2) and student.branch is not None:
        kept += [student.branch.stem, student.branch.stage_4]
    for block in kept:
        block.eval().requires_grad_(False)
