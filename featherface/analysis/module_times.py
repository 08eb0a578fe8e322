"""How long each part of a network takes in PyTorch, by hooks, on one thread.

Counted is the processor time of the thread, which a busy machine does not stretch.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from featherface.analysis.module_costs import BETWEEN, Model, parts_of_model


@torch.no_grad()
def module_times(model: Model, width: int, height: int, rounds: int = 9) -> dict[str, float]:
    """Median milliseconds by part over ``rounds`` forward passes, after one to warm up."""
    image = torch.zeros(1, 3, height, width).uniform_(0, 255)
    model.eval()
    watched = {
        name: list(_called(part, run_modules(model)))
        for name, part in parts_of_model(model).items()
    }
    rows: list[dict[str, float]] = []
    with one_thread():
        for _ in range(rounds + 1):
            spent: defaultdict[str, float] = defaultdict(float)
            handles = [
                handle
                for name, modules in watched.items()
                for module in modules
                for handle in _stopwatch(module, name, spent)
            ]
            started = time.thread_time()
            try:
                model(image)
            finally:
                for handle in handles:
                    handle.remove()
            whole = time.thread_time() - started
            rows.append({**spent, BETWEEN: max(0.0, whole - sum(spent.values()))})
    names = [*watched, BETWEEN]
    return {name: 1e3 * statistics.median(row[name] for row in rows[1:]) for name in names}


@torch.no_grad()
def run_modules(model: nn.Module) -> set[int]:
    """``id`` of every module whose forward runs for an image; holders of others are not among."""
    called: set[int] = set()

    def note(module: nn.Module, *_: Any) -> None:
        called.add(id(module))

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        model(torch.zeros(1, 3, 64, 64))
    finally:
        for handle in handles:
            handle.remove()
    return called


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread while it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _called(module: nn.Module, called: set[int]) -> Iterator[nn.Module]:
    """The outermost modules of a part that run."""
    if id(module) in called:
        yield module
        return
    for child in module.children():
        yield from _called(child, called)


def _stopwatch(module: nn.Module, name: str, spent: Mapping[str, float]) -> list[Any]:
    started = 0.0
    totals: Any = spent

    def start(*_: Any) -> None:
        nonlocal started
        started = time.thread_time()

    def stop(*_: Any) -> None:
        totals[name] += time.thread_time() - started

    hooks: list[Callable[..., Any]] = [
        module.register_forward_pre_hook,
        module.register_forward_hook,
    ]
    return [hooks[0](start), hooks[1](stop)]
