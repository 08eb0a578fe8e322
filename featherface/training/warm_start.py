"""V2's first weights from V1's, layer by layer, wherever a layer survives.

Backbone: stages 1 and 2 as they are; of stage 3's channels the most important ones (by the scale of
their batch normalisation times the norm of what reads them, after Liu et al., ICCV 2017). Laterals,
BiFPN nodes and predictors as they are, with these changes folded in: colours in RGB order, no mean
subtraction, attention after the backbone (its gates hardly depend on the photo) and edge weights of
the BiFPN as their usual values, biases before a batch normalisation, one logit for two.
Reads the public code's names (``featherface_v1_wider.safetensors``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featherface.errors import WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.bifpn import shares
from featherface.models.modules.factored_pointwise import FactoredPointwise
from featherface.models.modules.interpolative_pointwise import InterpolativePointwise
from featherface.models.modules.light_bifpn import FusionNode
from featherface.models.weight_files import first_line
from featherface.training.distillation import V1_CHANNEL_MEANS

NODES = {"down_16": "conv4_up", "out_8": "conv3_up", "out_16": "conv4_down", "out_32": "conv5_down"}
EDGES = {"down_16": "p4_w1", "out_8": "p3_w1", "out_16": "p4_w2", "out_32": "p5_w2"}

LAST_READER = "bifpn.0.p5_down_channel.0.conv.weight"  # of the last stage

STATISTICS = ("weight", "bias", "running_mean", "running_var")
V1_BIFPN_EPSILON = 1e-3

# x + x * channel gate * spatial gate, both near a half.
GATED = 1.25

State = dict[str, Tensor]


def warm_start_from_v1(model: FeatherFaceV2, path: Path) -> None:
    """Fill ``model`` from V1's weight file, in place.

    Raises:
        WeightsError: the file cannot be read or lacks a layer, or a layer here is in two factors.
    """
    refuse_factors(model.backbone, model.laterals)
    state = read_state(path)
    try:
        with torch.no_grad():
            kept = copy_backbone(model, state, "body.", reader=LAST_READER)
            copy_neck(model, state, kept)
            copy_heads(model, state)
    except KeyError as error:
        raise WeightsError(f"{path}: no layer {error} in it; is it FeatherFace V1?") from None


def warm_start_from_imagenet(model: FeatherFaceV2, path: Path) -> None:
    """Fill the backbone of ``model`` from a MobileNetV1 x0.25 classifier, in place."""
    refuse_factors(model.backbone)
    state = read_state(path)
    try:
        with torch.no_grad():
            copy_backbone(model, state, "", reader="fc.weight")
    except KeyError as error:
        raise WeightsError(f"{path}: no layer {error} in it; is it MobileNetV1 x0.25?") from None


def refuse_factors(*parts: nn.Module) -> None:
    """Only whole convolutions can be copied."""
    of_lower_rank = FactoredPointwise | InterpolativePointwise
    if any(isinstance(module, of_lower_rank) for part in parts for module in part.modules()):
        raise WeightsError(
            "whole convolutions cannot be copied to those in two factors: set the ranks of the "
            "model's section to 0, or begin with start.factored_crops"
        )


def read_state(path: Path) -> State:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({first_line(error)})"
        ) from None


def copy_backbone(model: FeatherFaceV2, state: State, prefix: str, reader: str) -> Tensor | None:
    """Stages 1 to 3; ``reader`` names the weights ``[out, 256, ...]`` that read stage 3.

    Returns the indices of stage 3's channels that were kept, None for all.
    """
    backbone = model.backbone
    stem = state[f"{prefix}stage1.0.0.weight"]
    layers = {1: 11, 2: 12, 3: 4}
    for stage, count in layers.items():
        module = getattr(backbone, f"stage{stage}")
        convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        names = layer_names(state, f"{prefix}stage{stage}.")
        if not len(convolutions) == len(norms) == len(names) == count:
            raise WeightsError(f"stage {stage} has {len(names)} layers in the file, {count} here")
        keep_in: Tensor | None = None
        for convolution, norm, name in zip(convolutions, norms, names, strict=True):
            weight = state[f"{name}.weight"]
            norm_name = next_layer(name)
            keep_out = None
            if stage == 3:
                width = len(convolution.weight)
                if weight.shape[1] == 1:  # depthwise: the channels that come in go out
                    keep_out = keep_in
                elif width < len(weight):
                    readers = (
                        state[f"{prefix}stage3.1.3.weight"]
                        if name.endswith("stage3.0.3")
                        else state[reader]
                    )
                    keep_out = important(
                        state[f"{norm_name}.weight"], outgoing_norm(readers), width
                    )
                    if keep_in is not None:
                        weight = weight[:, keep_in]
                    keep_in = keep_out
            if keep_out is not None:
                weight = weight[keep_out]
            if weight.shape[1] == 3 and weight.shape[2] == 3:
                weight = weight.flip(1)
            convolution.weight.copy_(weight)
            copy_norm(norm, state, norm_name, keep_out)
    # The stem now sees colours as they are; its normalisation takes the mean out.
    first_norm = next(m for m in backbone.stage1.modules() if isinstance(m, nn.BatchNorm2d))
    offset = torch.einsum("ocij,c->o", stem, torch.tensor(V1_CHANNEL_MEANS))
    first_norm.running_mean.add_(offset)  # type: ignore[union-attr]
    return keep_in


def important(norm_scale: Tensor, reader_norm: Tensor, count: int) -> Tensor:
    """Sorted indices of the ``count`` channels with the largest scale times outgoing norm."""
    return (norm_scale.abs() * reader_norm).topk(count).indices.sort().values


def outgoing_norm(readers: Tensor) -> Tensor:
    """How much each channel ``[in]`` weighs in the layer ``[out, in]`` or ``[out, in, H, W]``."""
    return readers.reshape(*readers.shape[:2], -1).norm(dim=(0, 2))


def copy_neck(model: FeatherFaceV2, state: State, kept: Tensor | None) -> None:
    """Laterals and V1's three BiFPN layers, or the first and the last where there are two."""
    for level, lateral in zip((3, 4, 5), model.laterals, strict=True):
        name = f"bifpn.0.p{level}_down_channel"
        weight = state[f"{name}.0.conv.weight"]
        if level == 5 and kept is not None:
            weight = weight[:, kept]
        parts: list[Any] = list(lateral.children())
        convolution, norm = parts
        if convolution.weight.shape != weight.shape:
            return
        convolution.weight.copy_(GATED * weight)
        copy_norm(norm, state, f"{name}.1", None, state[f"{name}.0.conv.bias"], V1_BIFPN_EPSILON)
    for level, lateral in zip((4, 5), model.second_laterals, strict=False):
        copy_second_lateral(lateral, state, f"bifpn.0.p{level}_down_channel")
    sources = {1: (0,), 2: (0, 2), 3: (0, 1, 2)}.get(len(model.fusions), (0,))
    for fusion, source in zip(model.fusions, sources, strict=False):
        for ours, theirs in NODES.items():
            node: FusionNode = getattr(fusion, ours)
            name = f"bifpn.{source}.{theirs}"
            edges = state[f"bifpn.{source}.{EDGES[ours]}"]
            depthwise = state[f"{name}.depthwise_conv.conv.weight"]
            if node.edges is None:
                depthwise = depthwise / len(edges)
            else:
                # At stride 32 V1 normalises three weights and uses two.
                node.edges.copy_(shares(edges)[: len(node.edges)])
            node.depthwise.weight.copy_(depthwise)
            node.pointwise.weight.copy_(state[f"{name}.pointwise_conv.conv.weight"])
            copy_norm(
                node.norm,
                state,
                f"{name}.bn",
                None,
                state[f"{name}.pointwise_conv.conv.bias"],
                V1_BIFPN_EPSILON,
            )


def copy_second_lateral(lateral: Any, state: State, first: str) -> None:
    """V1's second lateral read off its ``first``: the best linear map for inputs that do not
    correlate; exact on average.
    """
    scaled = []
    for name in (first, f"{first}_2"):
        scale = (
            state[f"{name}.1.weight"] / (state[f"{name}.1.running_var"] + V1_BIFPN_EPSILON).sqrt()
        )
        scaled.append(scale[:, None] * state[f"{name}.0.conv.weight"].flatten(1))
    convolution, norm = lateral
    weight = scaled[1] @ torch.linalg.pinv(scaled[0])
    convolution.weight.copy_(weight[:, :, None, None])
    norm.running_mean.copy_(weight @ state[f"{first}.1.bias"])
    norm.bias.copy_(state[f"{first}_2.1.bias"])


def copy_heads(model: FeatherFaceV2, state: State) -> None:
    """Predictors: the face logit minus the background logit, boxes, landmarks."""
    for level, predictor in enumerate(model.heads.predictors):
        for part in ("weight", "bias"):
            classes, boxes, landmarks = (
                state[f"{head}.{level}.conv1x1.{part}"]
                for head in ("ClassHead", "BboxHead", "LandmarkHead")
            )
            values = torch.cat([classes[1::2] - classes[0::2], boxes, landmarks])
            target = getattr(predictor, part)
            if target.shape != values.shape:
                return
            target.copy_(values)


def copy_norm(
    norm: nn.BatchNorm2d,
    state: State,
    name: str,
    keep: Tensor | None,
    bias: Tensor | None = None,
    epsilon: float | None = None,
) -> None:
    """Batch normalisation, of the channels ``keep``; ``bias`` came before it and moves its mean.

    ``epsilon`` is the one that the weights were learned with, if it was not ours.
    """
    for part in STATISTICS:
        values = state[f"{name}.{part}"]
        if part == "running_mean" and bias is not None:
            values = values - bias
        if part == "running_var" and epsilon is not None:
            values = values + (epsilon - norm.eps)
        getattr(norm, part).copy_(values if keep is None else values[keep])


def layer_names(state: State, prefix: str) -> list[str]:
    """The convolutions under ``prefix`` in order: ``stage1.0.0``, ``stage1.1.0``, and so on."""
    names = {
        key.removesuffix(".weight")
        for key, tensor in state.items()
        if key.startswith(prefix) and key.endswith(".weight") and tensor.ndim == 4
    }
    return sorted(names, key=lambda name: [int(p) for p in name.removeprefix(prefix).split(".")])


def next_layer(name: str) -> str:
    """The layer after ``name`` in its sequence: ``stage1.1.3`` gives ``stage1.1.4``."""
    head, _, index = name.rpartition(".")
    return f"{head}.{int(index) + 1}"
