"""A factored V2's first weights, fitted to a whole V2 and to V1.

Layers that both V2s have are copied. A convolution in two factors is the best of its rank: reduced
rank regression (Izenman, 1975) of what the whole one makes on what the factored one sees, in units
of the batch normalisation behind it. Layer after layer, so each makes up for what those before it
lost. The last stage and its laterals are V1's where the whole V2 had cut it to fewer channels.
Where it had not, the factored stages then learn what the whole ones make of crops, minutes that
bring them a third nearer, and activations may get another slope on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.dataset import collate
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.factored_pointwise import FactoredPointwise
from featherface.models.pretrained import load_v1
from featherface.models.pretrained_v2 import load_mean_v2
from featherface.training.batches import crops_of_side
from featherface.training.config import RunConfig
from featherface.training.context_start import AFTER_SAMPLES, SIDE
from featherface.training.distillation import (
    channel_spread,
    spread_distance,
    teacher_input,
    twin_distance,
)
from featherface.training.joined_teacher import JoinedTeacher, laterals_of_v1
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, values_of
from featherface.training.warm_start import warm_start_from_v1

MOST_ROWS = 200_000
RIDGE = 1e-6  # of the mean variance of the inputs
TINY = 1e-9  # a channel may be dead
FITTED_CROPS = 400  # more change no factor
CROPS_A_STEP = 6
LEARNING_RATE = 2e-3


def start_factored(
    fabric: Fabric,
    model: FeatherFaceV2,
    config: RunConfig,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> JoinedTeacher | None:
    """Fill ``model`` in place, by ``start.factored_crops`` crops of ``config`` at 320 pixels.

    The whole V2 is that of ``start.weights``. With a last stage of the model's channels it is all
    that the model is fitted to, and teaches it for ``start.factored_steps``. With fewer, the last
    stage is V1's, ``start.v1``; the V2 joined with V1 may teach the model further, and is returned.
    Without ``start.weights`` all is V1's, and so are all laterals.

    Raises:
        ConfigError: ``start.v1`` names no file where V1 is needed, or the whole V2 has a detail
            stem.
        WeightsError: a file is missing or wrong.
    """
    start = config.start
    if start.weights is None:
        shape: dict[str, Any] = config.model.model_dump()
        shape |= {name: 0 for name in shape if name.endswith("_rank")} | {"detail_channels": 0}
        whole = FeatherFaceV2(**shape)
        if start.v1 is not None:
            warm_start_from_v1(whole, start.v1)
    else:
        whole = load_mean_v2(start.weight_files)
    if whole.detail is not None:
        raise ConfigError("start.factored_crops: start.weights have a detail stem, which it is for")
    alone = start.weights is not None and same_last_stage(model, whole)
    if start.v1 is None and not alone:
        raise ConfigError("start.factored_crops: needs start.v1, the weights of V1")
    v1 = None if alone or start.v1 is None else load_v1(start.v1)
    crops = crops_of_side(config, store, indices, SIDE)
    samples = [crops[AFTER_SAMPLES + i] for i in range(start.factored_crops)]
    device = next(model.parameters()).device
    images = collate(samples).images.to(device)
    whole.to(device).eval()
    if alone:
        set_slope(model, slope_of(whole))
    distance = fit_factors(
        model,
        whole,
        None if v1 is None else v1.to(device),
        images[:FITTED_CROPS].float(),
        all_laterals=start.weights is None,
    )
    report(f"Factors fitted: the lateral of stride 32 is {distance:.2f} from its teacher's")
    if v1 is None:
        teach_factors(fabric, model, whole, images, config, report)
        set_slope(model, config.model.negative_slope)
        return None
    return None if start.weights is None else JoinedTeacher(whole, v1).requires_grad_(False)


def same_last_stage(model: FeatherFaceV2, whole: FeatherFaceV2) -> bool:
    """Whether the last stages of both have as many channels."""
    one, other = (list(x.backbone.stage3.parameters())[-1] for x in (model, whole))
    return one.shape == other.shape


def teach_factors(
    fabric: Fabric,
    model: FeatherFaceV2,
    whole: FeatherFaceV2,
    images: Tensor,
    config: RunConfig,
    report: Callable[[str], None],
) -> None:
    """Let ``model`` learn what ``whole`` makes up to its laterals, and of its context, in place.

    ``start.factored_steps`` steps by the RGB ``images`` uint8 ``[N, 3, H, W]``. Layers that both
    have alike stand still, unless the activations have another slope: then the slope goes from the
    whole V2's to the model's over half of the steps, and all learns up to the laterals and in the
    context.
    """
    steps = config.start.factored_steps
    if not steps:
        return
    slopes = slope_of(whole), config.model.negative_slope
    moves = slopes[0] != slopes[1]
    learning: list[nn.Module] = [model.backbone.stage2, model.backbone.stage3, model.laterals[2]]
    if moves:
        learning = [model.backbone, model.laterals, model.context]
    values = values_of(learning)

    def made_of(net: FeatherFaceV2, stage_8: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The maps up to the laterals that count, and what enters the neck."""
        maps = net.backbone.behind_first_stage(stage_8)
        levels, again = net.both_laterals(maps)
        return [*(x.relu() for x in maps[:2]), *levels, *again], [levels, again]

    def context_of(net: FeatherFaceV2, neck: list[Tensor]) -> list[Tensor]:
        return [part(x) for part, x in zip(net.context, neck, strict=True)]

    order = np.random.default_rng((config.seed, fabric.global_rank))
    spreads: list[Tensor] = []

    def loss_at(step: int) -> Tensor:
        along = min(1.0, 2 * step / steps)
        set_slope(model, slopes[0] + along * (slopes[1] - slopes[0]))
        chosen = order.integers(len(images), size=CROPS_A_STEP)
        pixels = images[chosen].float().contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            stage_8 = whole.backbone.stage1(pixels)
            wanted, into_neck = made_of(whole, stage_8)
            if moves:  # the context reads the whole V2's neck in both
                neck = whole.fused(*into_neck)
                wanted += context_of(whole, neck)
            if not spreads:
                spreads.extend(channel_spread(x) for x in wanted)
        if moves:
            made, _ = made_of(model, model.backbone.stage1(pixels))
            made += context_of(model, neck)
        else:  # the first stage is the same
            made, _ = made_of(model, stage_8)
        return spread_distance(made, wanted, spreads)

    optimiser = MatrixSteps([Part(1.0, values)])
    with learning_alone(model, values):
        first, last = learn(
            fabric, optimiser, steps, loss_at, LEARNING_RATE, config.optimiser.clip_norm
        )
    report(f"Factors: {steps:,} steps, loss {first:.2f} to {last:.2f}")


def activations(model: FeatherFaceV2) -> list[nn.LeakyReLU]:
    """Those with a slope that learn by their teacher's; the detail stem has no teacher here."""
    parts: list[nn.Module] = [model.backbone, model.context]
    return [x for part in parts for x in part.modules() if isinstance(x, nn.LeakyReLU)]


def slope_of(model: FeatherFaceV2) -> float:
    """The slope that the activations of ``model`` have below zero."""
    return activations(model)[0].negative_slope


def set_slope(model: FeatherFaceV2, slope: float) -> None:
    """Give the activations of ``model`` another slope."""
    for activation in activations(model):
        activation.negative_slope = slope


@torch.no_grad()
def fit_factors(
    model: FeatherFaceV2,
    whole: FeatherFaceV2,
    v1: FeatherFaceV1 | None,
    images: Tensor,
    all_laterals: bool = False,
) -> float:
    """Fill ``model`` by RGB ``images`` ``[B, 3, H, W]``; how far its last lateral is from V1's.

    Without ``v1`` the last stage, too, is the whole V2's. ``all_laterals`` are fitted to V1's, not
    only those of stride 32.
    """
    for one in (model, whole, *(() if v1 is None else (v1,))):
        one.eval()
    copy_same(model, whole)
    stage_8 = model.backbone.stage1(images)
    stage_16 = fit_blocks(model.backbone.stage2, whole.backbone.stage2, stage_8, stage_8)
    if v1 is None:
        backbone = whole.backbone(images)
        first, second = whole.both_laterals(backbone)
        stage3 = whole.backbone.stage3
    else:
        backbone = v1.backbone(teacher_input(images))
        first, second = laterals_of_v1(v1, backbone)
        stage3 = v1.backbone.stage3
        copy_same(model.backbone.stage3, stage3)
    stage_32 = fit_blocks(model.backbone.stage3, stage3, stage_16, backbone[1])
    last = len(first) - 1
    levels = [
        fit_lateral(lateral, x.relu(), y) if all_laterals or level == last else lateral(x.relu())
        for level, (lateral, x, y) in enumerate(
            zip(model.laterals, [stage_8, stage_16, stage_32], first, strict=True)
        )
    ]
    again = [
        fit_lateral(lateral, x, y) if all_laterals or level == last else lateral(x)
        for level, (lateral, x, y) in enumerate(
            zip(model.second_laterals, levels[1:], second, strict=True), start=1
        )
    ]
    distance = float(twin_distance(levels[last:], first[last:]))
    neck = model.fused(levels, again)
    for ours, theirs, x in zip(model.context, whole.context, neck, strict=True):
        fit_layers(list(ours.children()), list(theirs.children()), x, x)
    return distance


def copy_same(model: nn.Module, other: nn.Module) -> None:
    """Every value of ``other`` that ``model`` has by the same name and in the same shape."""
    values = other.state_dict()
    for name, value in model.state_dict().items():
        if name in values and values[name].shape == value.shape:
            value.copy_(values[name])


def fit_blocks(ours: nn.Sequential, theirs: nn.Sequential, x: Tensor, wanted: Tensor) -> Tensor:
    """A stage's blocks one after the other; what it makes of ``x``."""
    for block, other in zip(ours.children(), theirs.children(), strict=True):
        x, wanted = fit_layers(list(block.children()), list(other.children()), x, wanted)
    return x


def fit_layers(
    ours: list[nn.Module], theirs: list[nn.Module], x: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Factored convolutions of ``ours`` to what ``theirs`` make of ``wanted``; both results."""
    for place, (layer, other) in enumerate(zip(ours, theirs, strict=True)):
        wanted = other(wanted.clone())
        if isinstance(layer, FactoredPointwise):
            norm: Any = ours[place + 1]
            scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
            offset = fit_pointwise(layer, x, wanted, scale)
            norm.running_mean -= offset
        x = layer(x.clone())
    return x, wanted


def fit_lateral(lateral: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
    """A 1x1 convolution and its batch normalisation to ``wanted``; what they make of ``x``."""
    parts: list[Any] = list(lateral.children())
    convolution, norm = parts
    scale = 1 / wanted.std((0, 2, 3)).clamp_min(TINY)
    offset = fit_pointwise(convolution, x, wanted, scale)
    made = convolution(x)
    norm.running_mean.copy_(made.mean((0, 2, 3)))
    norm.running_var.copy_(made.var((0, 2, 3)))
    norm.weight.copy_((norm.running_var + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean + offset)
    result: Tensor = lateral(x)
    return result


def fit_pointwise(convolution: nn.Module, x: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
    """Weights of a 1x1 convolution, in two factors or whole, from ``x`` to ``wanted``.

    Errors count in units of ``1 / scale``, ``[C]``. Returns the constant ``[C]`` that is left to
    add.
    """
    inputs, outputs = rows_of(x), rows_of(wanted)
    keep = torch.linspace(0, len(inputs) - 1, min(len(inputs), MOST_ROWS)).long().to(x.device)
    inputs, outputs = inputs[keep].double(), outputs[keep].double()
    mean, target_mean, unit = inputs.mean(0), outputs.mean(0), scale.double()
    inputs, outputs = inputs - mean, (outputs - target_mean) * unit
    gram = inputs.T @ inputs
    ridge = RIDGE * gram.diagonal().mean() + TINY
    gram += ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, inputs.T @ outputs)  # [in, out]
    if isinstance(convolution, FactoredPointwise):
        made = weight.T @ gram @ weight
        basis = torch.linalg.eigh(made).eigenvectors[:, -convolution.rank :]
        narrow, wide = weight @ basis, basis.T / unit
        # Both factors of one size, so that one learning rate suits them.
        balance = (wide.norm() / narrow.norm().clamp_min(TINY)).sqrt().clamp_min(TINY)
        narrow, wide = narrow * balance, wide / balance
        convolution.narrow.weight.copy_(narrow.T[..., None, None])
        convolution.wide.weight.copy_(wide.T[..., None, None])
        weight = narrow @ wide
    elif isinstance(convolution, nn.Conv2d):
        weight = weight / unit
        convolution.weight.copy_(weight.T[..., None, None])
    return (target_mean - mean @ weight).float()


def rows_of(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B * H * W, C]``."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)
