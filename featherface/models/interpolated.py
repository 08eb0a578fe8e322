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
from featherface.models.modules.detail_branch import DetailBranch
from featherface.models.modules.factored_pointwise import FactoredPointwise
from featherface.models.modules.folded_norms import fold_norms
from featherface.models.modules.interpolative_pointwise import InterpolativePointwise, basis_first


class Chain(NamedTuple):
    """Layers in a row, and those in a row that read the last one's map, each of one reader.

    ``skipped`` are the channels before that map which the last layer of the readers reads.
    ``beside`` are other layers in rows, whose maps are added to it, channel by channel.
    """

    layers: list[nn.Module]
    readers: list[list[nn.Module]]
    skipped: int = 0
    beside: tuple[list[nn.Module], ...] = ()


@torch.no_grad()
def interpolate(model: FeatherFaceV2, factored: FeatherFaceV2) -> None:
    """Let ``model`` compute what ``factored`` does, in place.

    Raises:
        WeightsError: ``factored`` is not a V2 of the same shape in factors, or in the same form.
    """
    ordered = copy.deepcopy(factored).eval()
    for chain in chains_of(ordered) if model.interpolative else []:
        put_in_order(chain)
    parts = dict(ordered.named_modules())
    for name, module in model.named_modules():
        factors = parts.get(name)
        if isinstance(module, InterpolativePointwise) and isinstance(factors, FactoredPointwise):
            twin = InterpolativePointwise.like(factors)
            twin.fill(factors)
            ordered.set_submodule(name, twin)
    if model.folded_norms and not ordered.folded_norms:
        fold_norms(ordered)
    try:
        model.load_state_dict(ordered.state_dict())
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
    return chains if branch is None else [*chains, *chains_of_branch(model, branch)]


def chains_of_branch(model: FeatherFaceV2, branch: DetailBranch) -> list[Chain]:
    """Those of the detail branch; what its neck adds has the order of what it is added to."""
    stages, necks = ([layers_of(x) for x in part] for part in (branch.stages, branch.neck))
    towers = [layers_of(x) for x in (branch.tower, branch.coarse_tower) if x is not None]
    chains = [Chain(layers_of(branch.stage_4), [stages[0]]), Chain(necks[0], [towers[0]])]
    if len(towers) > 1:
        told = layers_of(branch.detail)
        chains += [
            Chain(stages[2], [necks[2]]),
            Chain(stages[1], [stages[2], necks[1]], beside=(necks[2],)),
            Chain(necks[1], [stages[1], told, necks[0], towers[1]], beside=(stages[0],)),
        ]
    for tower, predictor in zip(towers, model.heads.predictors, strict=False):
        chains.append(Chain(tower, [[predictor]], model.heads.read[0] // 2))
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
        last = not any(mixes(x) for x in behind)
        rows = [(layer, behind), *(end_of(x) for x in chain.beside if last)]
        order = basis_first(
            [
                (one, scale_of(after, one.wide.weight))
                for one, after in rows
                if isinstance(one, FactoredPointwise)
            ]
        )
        for one, after in rows:
            select(one.wide if isinstance(one, FactoredPointwise) else one, order)
            carry(order, after)
        for reader in chain.readers if last else []:
            carry(order, reader, chain.skipped)


def mixes(layer: nn.Module) -> bool:
    """Whether it mixes channels."""
    return isinstance(layer, FactoredPointwise) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1
    )


def end_of(row: list[nn.Module]) -> tuple[nn.Module, list[nn.Module]]:
    """The last layer that mixes channels, and those behind it."""
    place = max(i for i, layer in enumerate(row) if mixes(layer))
    return row[place], row[place + 1 :]


def scale_of(behind: list[nn.Module], like: Tensor) -> Tensor:
    """What a batch normalisation behind multiplies with, ``[C]``; 1 if there is none."""
    norm = behind[0] if behind else None
    if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
        return norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return torch.ones(len(like), device=like.device)


def carry(order: Tensor, behind: list[nn.Module], skipped: int = 0) -> None:
    """Order layers of one value a channel, and what the first that mixes channels reads."""
    for layer in behind:
        if mixes(layer):
            mixing = layer.narrow if isinstance(layer, FactoredPointwise) else layer
            assert isinstance(mixing, nn.Conv2d)
            columns = slice(skipped, skipped + len(order))
            mixing.weight[:, columns] = mixing.weight[:, columns][:, order]
            return
        select(layer, order)


def select(layer: nn.Module, order: Tensor) -> None:
    """Order all that ``layer`` has a value or a kernel a channel of."""
    for value in layer.state_dict().values():
        if value.ndim:
            value.copy_(value[order])
