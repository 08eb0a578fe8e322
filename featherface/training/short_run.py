"""A short run of a part of a net: steps, their rate, gradients that the processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.training.matrix_steps import MatrixSteps
from featherface.training.schedules import learning_rate

WARMUP = 0.03
FINAL_RATE = 0.01


def learn(
    fabric: Fabric,
    optimiser: MatrixSteps,
    steps: int,
    loss_at: Callable[[int], Tensor],
    rate: float,
    clip_norm: float,
) -> tuple[float, float]:
    """Take ``steps`` steps; the mean losses of the first and of the last tenth of them.

    ``loss_at`` makes the loss of a step. Every process goes on with the mean of their gradients.
    """
    losses: list[float] = []
    for step in range(steps):
        loss = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        share_gradients(fabric, optimiser.values)
        nn.utils.clip_grad_norm_(optimiser.clipped, clip_norm)
        optimiser.step(learning_rate(step / steps, rate, WARMUP, FINAL_RATE))
        losses.append(float(loss.detach()))
    tenth = max(1, steps // 10)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


@contextmanager
def learning_alone(model: nn.Module, values: list[nn.Parameter]) -> Iterator[None]:
    """In evaluation mode let ``values`` of ``model`` learn and nothing else; then all as before.

    The mode stays.
    """
    before = {p: p.requires_grad for p in model.parameters()}
    model.eval().requires_grad_(False)
    for value in values:
        value.requires_grad_(True)
    yield
    for parameter, learns in before.items():
        parameter.requires_grad_(learns)


def values_of(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """All learned values of ``parts``."""
    return [p for part in parts for p in part.parameters()]


def share_gradients(fabric: Fabric, values: list[nn.Parameter]) -> None:
    """Every process goes on with the mean of their gradients."""
    if fabric.world_size == 1:
        return
    gradients = [p.grad for p in values if p.grad is not None]
    flat = fabric.all_reduce(torch.cat([x.flatten() for x in gradients]), reduce_op="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([x.numel() for x in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def share_values(fabric: Fabric, values: Iterable[Tensor]) -> None:
    """Every process goes on with the mean of their floating-point ``values``."""
    if fabric.world_size == 1:
        return
    for value in values:
        if value.is_floating_point():
            mean = fabric.all_reduce(value, reduce_op="mean")
            assert isinstance(mean, Tensor)
            value.copy_(mean)
