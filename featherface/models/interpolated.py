"""A V2 in factors as one of interpolative convolutions: the same network in fewer values.

A basis of a convolution's outputs has to come first among them. Their order is nobody's business
but that of the layers behind, which are put in order with it.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from featherface.errors import WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.factored_pointwise import FactoredPointwise
from featherface.models.modules.interpolative_pointwise import InterpolativePointwise, basis_first


class Chain(NamedTuple):
    """Layers in a row, and those in a row that read the last one's map, each of one reader.

    ``skipped`` are the channels before that map which the last layer of the readers reads.
    """

    layers: list[nn.Module]
    readers: list[list[nn.Module]]
    skipped: int = 0


@torch.no_grad()
def interpolate(model: FeatherFaceV2, factored: FeatherFaceV2) -> None:
    """Let ``model`` compute what ``factored`` does, in place.

    Raises:
        WeightsError: ``factored`` is not a V2 of the same shape in factors.
    """
    ordered = copy.deepcopy(factored).eval()
    for chain in chains_of(ordered):
        put_in_order(chain)
    values, parts = ordered.state_dict(), dict(ordered.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, InterpolativePointwise):
            factors = parts.get(name)
            if not isinstance(factors, FactoredPointwise):
                raise WeightsError(f"{name}: no convolution in two factors in these weights")
            twin = InterpolativePointwise.like(factors)
            twin.fill(factors)
            for key in factors.state_dict():
                del values[f"{name}.{key}"]
            values |= {f"{name}.{key}": value for key, value in twin.state_dict().items()}
    try:
        model.load_state_dict(values)
    except RuntimeError:
        raise WeightsError("weights in factors of another shape than the model") from None


def chains_of(model: FeatherFaceV2) -> list[Chain]:
    """All layers in rows between two maps that several layers read."""
    backbone, laterals, branch = model.backbone, model.laterals, model.branch
    stage3 = layers_of(backbone.stage3)
    chains = [
        Chain(layers_of(backbone.stage2), [stage3, layers_of(laterals[1])]),
        Chain(stage3, [layers_of(laterals[2])]),
    ]
    for context, predictor in zip(model.context, model.heads.predictors, strict=True):
        chains.append(Chain(layers_of(context), [[predictor]]))
    if branch is not None:
        first, tower = model.heads.predictors[0], layers_of(branch.tower)
        skipped = model.heads.read[0] // 2
        chains.append(Chain(layers_of(branch.stage_4), [layers_of(branch.stages[0])]))
        chains.append(Chain(layers_of(branch.neck[0]), [tower]))
        chains.append(Chain(tower, [[first]], skipped))
    return chains


def layers_of(part: nn.Module) -> list[nn.Module]:
    """Its layers in their order, a convolution in factors as one."""
    if isinstance(part, FactoredPointwise) or not list(part.children()):
        return [part]
    return [layer for child in part.children() for layer in layers_of(child)]


def put_in_order(chain: Chain) -> None:
    """Order the outputs of all convolutions in factors, and all that comes behind."""
    for place, layer in enumerate(chain.layers):
        if not isinstance(layer, FactoredPointwise):
            continue
        behind = chain.layers[place + 1 :]
        order = basis_first(layer, scale_of(behind, layer.wide.weight))
        select(layer.wide, order)
        if not carry(order, behind):
            for reader in chain.readers:
                carry(order, reader, chain.skipped)


def scale_of(behind: list[nn.Module], like: Tensor) -> Tensor:
    """What a batch normalisation behind multiplies with, ``[C]``; 1 if there is none."""
    norm = behind[0] if behind else None
    if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
        return norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return torch.ones(len(like), device=like.device)


def carry(order: Tensor, behind: list[nn.Module], skipped: int = 0) -> bool:
    """Order layers of one value a channel up to the first that mixes channels; whether one did."""
    for layer in behind:
        mixing = layer.narrow if isinstance(layer, FactoredPointwise) else layer
        if isinstance(mixing, nn.Conv2d) and mixing.groups == 1:
            columns = slice(skipped, skipped + len(order))
            mixing.weight[:, columns] = mixing.weight[:, columns][:, order]
            return True
        select(layer, order)
    return False


def select(layer: nn.Module, order: Tensor) -> None:
    """Order all that ``layer`` has a value or a kernel a channel of."""
    for value in layer.state_dict().values():
        if value.ndim:
            value.copy_(value[order])
