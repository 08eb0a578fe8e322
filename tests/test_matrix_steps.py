"""Muon for 1x1 convolutions, AdamW for everything else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featherface.training.matrix_steps import MATRIX_RATE, KernelMuon, MatrixSteps, Part
from featherface.training.schedules import set_learning_rate


def test_a_kernel_steps_along_an_orthogonal_matrix() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 16, 1, bias=False).to(memory_format=torch.channels_last)
    before = convolution.weight.detach().clone()
    steps = MatrixSteps([Part(0.5, [convolution.weight])])
    # A gradient whose strongest direction is a thousand times its weakest.
    left, right = torch.linalg.qr(torch.randn(16, 8))[0], torch.linalg.qr(torch.randn(8, 8))[0]
    gradient = left @ torch.diag(torch.logspace(0, -3, 8)) @ right
    convolution.weight.grad = gradient[..., None, None].clone()
    steps.step(0.01)
    moved = (before - convolution.weight.detach()).flatten(1)
    sizes = torch.linalg.svdvals(moved) / (0.5 * 0.01 * MATRIX_RATE * 2**0.5)
    assert sizes.max() < 1.4
    assert sizes[:5].min() > 0.5  # all but the weakest, which five iterations do not lift so far
    assert float((moved * gradient).sum()) > 0


def test_what_is_no_matrix_steps_as_adamw_says() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
    )
    predictor = net[3]
    steps = MatrixSteps([Part(1.0, list(net.parameters()))], list(predictor.parameters()))
    assert {id(p) for p in steps.clipped} == {id(p) for p in net.parameters()}
    before = [p.detach().clone() for p in net.parameters()]
    for value in net.parameters():
        value.grad = torch.randn_like(value)
    steps.step(0.01)
    for value, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(
            (value - old).abs(), torch.full_like(old, 0.01), rtol=0.01, atol=0
        )
    steps.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_a_part_without_gradient_stays() -> None:
    used, unused = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    steps = MatrixSteps([Part(1.0, [*used.parameters(), *unused.parameters()])])
    before = unused.weight.detach().clone()
    used(torch.ones(1, 4, 1, 1)).sum().backward()
    steps.step(0.1)
    torch.testing.assert_close(unused.weight.detach(), before)


def test_kernels_step_as_pytorchs_muon_says_and_go_on_after_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # in which theirs works
    torch.manual_seed(2)
    kernel = nn.Parameter(torch.randn(8, 4, 1, 1).contiguous(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    ours = KernelMuon([Part(0.5, [kernel])])
    theirs = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.0)
    for step in range(6):
        if step == 3:  # as a run that was stopped and goes on
            momenta = ours.state_dict()
            ours = KernelMuon([Part(0.5, [kernel])])
            ours.load_state_dict(momenta)
        gradient = torch.randn(8, 4)
        kernel.grad, matrix.grad = gradient[..., None, None].clone(), gradient
        set_learning_rate(ours, 0.02)
        ours.step()
        theirs.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())
