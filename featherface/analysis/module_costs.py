"""What each part of a network costs on paper: parameters, multiply-adds, memory written.

PyTorch's own counters watch one forward pass: ``FlopCounterMode`` for the work, and a dispatch mode
with ``ModuleTracker`` for every tensor that is made, also those inside a module's own code, such as
the nine samples a pixel of a deformable convolution, which hooks on layers do not see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2

Model = BaselineV1 | FeatherFaceV2
BETWEEN = "between parts"


@dataclass(frozen=True)
class ModuleCost:
    """One part, for one image.

    ``multiply_adds``: of convolutions and matrix products; sampling, sums and gates have no formula
    in PyTorch's counter and count nothing. ``written_bytes``: all tensors that the part makes, in
    float32; a runtime reuses most of them. ``blocks``: the same for what the part is made of.
    """

    parameters: int
    multiply_adds: int
    written_bytes: int
    blocks: dict[str, ModuleCost]


def parts_of_model(model: Model) -> dict[str, nn.Module]:
    """The network's parts in the order of the data, the backbone by stages."""
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if name == "backbone":
            parts |= {f"{name}.{stage}": module for stage, module in child.named_children()}
        elif any(True for _ in child.parameters()):
            parts[name] = child
    return parts


@torch.no_grad()
def module_costs(model: Model, width: int, height: int) -> dict[str, ModuleCost]:
    """Costs by part for an image of ``width`` x ``height`` pixels (multiples of 32).

    The last entry is what happens between the parts: residual sums, reshapes, concatenation.
    """
    image = torch.zeros(1, 3, height, width)
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(image)
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    with ModuleTracker() as tracker, _Written(tracker) as written:
        model(image)
    root = type(model).__name__
    seen: set[int] = set()
    costs = {
        name: _cost(module, f"{root}.{name}", flops, written.bytes, seen)
        for name, module in parts_of_model(model).items()
    }
    costs[BETWEEN] = ModuleCost(
        0,
        flops.get(root, 0) // 2 - sum(cost.multiply_adds for cost in costs.values()),
        written.bytes[root] - sum(cost.written_bytes for cost in costs.values()),
        {},
    )
    return costs


def _cost(
    module: nn.Module,
    name: str,
    flops: Mapping[str, int],
    written: Mapping[str, int],
    seen: set[int],
    depth: int = 1,
) -> ModuleCost:
    """Shared parameters count where they are met first."""
    blocks = {}
    if depth:
        blocks = {
            child_name: _cost(child, f"{name}.{child_name}", flops, written, seen, depth - 1)
            for child_name, child in module.named_children()
        }
    own = [p for p in module.parameters() if id(p) not in seen]
    seen.update(id(p) for p in own)
    return ModuleCost(
        sum(p.numel() for p in own) + sum(block.parameters for block in blocks.values()),
        _of_module(module, name, flops) // 2,
        _of_module(module, name, written),
        blocks,
    )


def _of_module(module: nn.Module, name: str, counts: Mapping[str, int]) -> int:
    """The count of a module; of one that is only a holder of others, theirs."""
    if name in counts:
        return counts[name]
    return sum(_of_module(child, f"{name}.{key}", counts) for key, child in module.named_children())


class _Written(TorchDispatchMode):
    """Counts the bytes of every new storage, for all modules that are being run."""

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()
        self.tracker = tracker
        self.bytes: defaultdict[str, int] = defaultdict(int)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        old = {_place(x) for x in torch.utils._pytree.tree_leaves((args, kwargs or {}))}
        new = {
            _place(x): x.untyped_storage().nbytes()
            for x in torch.utils._pytree.tree_leaves(output)
            if isinstance(x, Tensor)
        }
        size = sum(count for place, count in new.items() if place not in old)
        for name in self.tracker.parents:
            self.bytes[name] += size
        return output


def _place(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None
