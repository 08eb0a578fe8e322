"""A larger V2's first weights: what a smaller one computes, in more channels and blocks.

Nothing has to be learned anew (Net2Net, Chen, Goodfellow and Shlens, ICLR 2016). Convolutions in
two factors are multiplied out. A last stage of more channels has the smaller one's first and then
those of V1 that it had left out; at first they read the others and nothing reads them. More blocks
of context pass on what they read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherface.errors import ConfigError, WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.factored_pointwise import FactoredPointwise
from featherface.training.warm_start import (
    LAST_READER,
    State,
    copy_backbone,
    important,
    next_layer,
    outgoing_norm,
    read_state,
    refuse_factors,
)

CLOSE = 1e-2  # of what the outputs differ from anchor to anchor


@torch.no_grad()
def grow(model: FeatherFaceV2, smaller: FeatherFaceV2, v1: Path | None) -> None:
    """Fill ``model`` so that it computes what ``smaller`` does, in place.

    ``v1`` is V1's weight file, where the last stage is to have more channels.

    Raises:
        ConfigError: no weights let ``model`` compute that, or ``v1`` is needed and not named.
        WeightsError: ``v1`` is missing or wrong, or the backbone has convolutions in two factors.
    """
    refuse_factors(model.backbone, model.laterals)
    values = smaller.state_dict() | multiplied_out(smaller)
    for name, value in model.state_dict().items():
        if name in values and values[name].shape == value.shape:
            value.copy_(values[name])
    if width_of(model) > width_of(smaller):
        if v1 is None:
            raise ConfigError("start.grown: the last stage is wider: needs start.v1, V1's weights")
        try:
            grow_last_stage(model, smaller, read_state(v1))
        except KeyError as error:
            raise WeightsError(f"{v1}: no layer {error} in it; is it FeatherFace V1?") from None
    for ours, theirs in zip(model.context, smaller.context, strict=True):
        pass_on(list(ours.children())[len(list(theirs.children())) :])
    check_same(model, smaller)


def multiplied_out(model: FeatherFaceV2) -> dict[str, Tensor]:
    """The kernels of convolutions in two factors, as those of one convolution by the same name."""
    made = {}
    for name, module in model.named_modules():
        if isinstance(module, FactoredPointwise):
            first, second = module.factors()
            made[f"{name}.weight"] = (second @ first)[..., None, None]
    return made


def width_of(model: FeatherFaceV2) -> int:
    """Channels of the last stage."""
    return len(list(model.backbone.stage3.parameters())[-1])


def grow_last_stage(model: FeatherFaceV2, smaller: FeatherFaceV2, state: State) -> None:
    """Both blocks of the last stage, and the lateral, which reads the first channels alone."""
    whole = FeatherFaceV2(stage3_channels=width_of(model))
    copy_backbone(whole, state, "body.", reader=LAST_READER)
    kept = width_of(smaller)
    orders = [
        kept_first(state, "body.stage3.0.3", "body.stage3.1.3.weight", kept),
        kept_first(state, "body.stage3.1.3", LAST_READER, kept),
    ]
    stages: list[Any] = [model.backbone.stage3, whole.backbone.stage3, smaller.backbone.stage3]
    come_in = None
    for ours, v1s, theirs, go_out in zip(*stages, orders, strict=True):
        kernel = v1s[3].weight[go_out]
        if come_in is not None:
            kernel = kernel[:, come_in]
            for place in (0, 1):
                lay(ours[place], v1s[place], theirs[place], come_in)
        ours[3].weight.copy_(kernel)
        place_first(ours[3].weight, theirs[3].weight)
        lay(ours[4], v1s[4], theirs[4], go_out)
        come_in = go_out
    readers: list[Any] = [model.laterals[-1], smaller.laterals[-1]]
    readers[0][0].weight.zero_()
    place_first(readers[0][0].weight, readers[1][0].weight)


def kept_first(state: State, layer: str, reader: str, count: int) -> Tensor:
    """All channels of V1's ``layer``, first the ``count`` that the warm start keeps."""
    scale = state[f"{next_layer(layer)}.weight"]
    kept = important(scale, outgoing_norm(state[reader]), count)
    others = torch.ones(len(scale), dtype=torch.bool)
    others[kept] = False
    return torch.cat([kept, others.nonzero().flatten()])


def lay(ours: nn.Module, v1s: nn.Module, theirs: nn.Module, order: Tensor) -> None:
    """A layer of one value or kernel a channel: V1's in this order, the first ones ``theirs``."""
    known, others = theirs.state_dict(), v1s.state_dict()
    for name, value in ours.state_dict().items():
        if value.ndim:
            value.copy_(others[name][order])
            value[: len(known[name])] = known[name]


def place_first(kernel: Tensor, known: Tensor) -> None:
    """Let the first outputs of ``[out, in, 1, 1]`` be ``known``, which read the first inputs."""
    outputs, inputs = known.shape[:2]
    kernel[:outputs] = 0
    kernel[:outputs, :inputs] = known


def pass_on(layers: list[nn.Module]) -> None:
    """Make separable blocks behind a ReLU the identity."""
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.constant_(layer.weight, (1 + layer.eps) ** 0.5)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight, layer.groups)


def check_same(model: FeatherFaceV2, smaller: FeatherFaceV2) -> None:
    """Raise ``ConfigError`` unless both say the same about noise."""
    image = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    modes = model.training, smaller.training
    ours, theirs = (one.eval()(image) for one in (model, smaller))
    model.train(modes[0])
    smaller.train(modes[1])
    unlike = any((x - y).abs().max() > CLOSE * y.std() for x, y in zip(ours, theirs, strict=True))
    if unlike or width_of(model) < width_of(smaller):
        raise ConfigError(
            "start.grown: the model cannot compute what start.weights do; give it their shape but "
            "for ranks, which may be 0, more channels in the last stage or more blocks of context"
        )
