"""BiFPN: weighted fusion of three levels, both ways (EfficientDet, Tan et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-4


class SeparableConv(nn.Module):
    """Depthwise 3x3, pointwise 1x1, batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels, momentum=0.01, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(x)))


class Lateral(nn.Sequential):
    """1x1 convolution to the neck's width, batch normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs, momentum=0.01, eps=1e-3)
        )


class BiFPN(nn.Module):
    """Maps at strides 8, 16, 32 to maps of ``channels`` at the same strides.

    The first layer of a stack (``inputs`` given) brings the backbone's channels to the neck's; it
    has laterals of its own for the bottom-up pass at strides 16 and 32.
    """

    def __init__(self, channels: int, inputs: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.laterals: nn.ModuleList | None = None
        self.second_laterals: nn.ModuleList | None = None
        if inputs is not None:
            self.laterals = nn.ModuleList(Lateral(n, channels) for n in inputs)
            self.second_laterals = nn.ModuleList(Lateral(n, channels) for n in inputs[1:])
        self.down_16 = SeparableConv(channels)
        self.out_8 = SeparableConv(channels)
        self.out_16 = SeparableConv(channels)
        self.out_32 = SeparableConv(channels)
        self.weights_down_16 = nn.Parameter(torch.ones(2))
        self.weights_out_8 = nn.Parameter(torch.ones(2))
        self.weights_out_16 = nn.Parameter(torch.ones(3))
        # The public code normalises three weights here and uses two; trained weights rely on it.
        self.weights_out_32 = nn.Parameter(torch.ones(3))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return both_ways(*self.both_laterals(maps), self.node)

    def both_laterals(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What enters the way down, and what the way up adds at strides 16 and 32."""
        if self.laterals is None or self.second_laterals is None:
            return maps, maps[1:]
        return (
            [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)],
            [lateral(x) for lateral, x in zip(self.second_laterals, maps[1:], strict=True)],
        )

    def node(self, name: str, *maps: Tensor) -> Tensor:
        """The node ``name`` on the maps that its edges bring."""
        convolution: SeparableConv = getattr(self, name)
        result: Tensor = convolution(fuse(getattr(self, f"weights_{name}"), *maps))
        return result


def both_ways(
    levels: list[Tensor], second: list[Tensor], node: Callable[..., Tensor]
) -> list[Tensor]:
    """Top-down, then bottom-up, by ``node(name, *maps)``; ``second`` are the maps of strides 16
    and 32 for the way up.
    """
    stride_8, stride_16, stride_32 = levels
    second_16, second_32 = second
    middle = node("down_16", stride_16, upsample_to(stride_32, stride_16))
    out_8 = node("out_8", stride_8, upsample_to(middle, stride_8))
    out_16 = node("out_16", second_16, middle, downsample(out_8))
    out_32 = node("out_32", second_32, downsample(out_16))
    return [out_8, out_16, out_32]


def shares(weights: Tensor) -> Tensor:
    """What the edges of a node weigh, positive and together one."""
    weights = weights.relu()
    return weights / (weights.sum() + EPSILON)


def fuse(weights: Tensor, *maps: Tensor) -> Tensor:
    """Fast normalised fusion (EfficientDet, section 3.3), then swish."""
    weights = shares(weights)
    total = weights[0] * maps[0]
    for weight, x in zip(weights[1:], maps[1:], strict=False):
        total = total + weight * x
    return functional.silu(total)


def upsample_to(x: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbour to the height and width of ``like``."""
    return functional.interpolate(x, size=like.shape[2:], mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Maximum over 3x3 cells, stride 2, zeros around as TensorFlow's "same" padding has them."""
    padding = []
    for side in (x.shape[3], x.shape[2]):
        total = 2 if side % 2 else 1
        padding += [total // 2, total - total // 2]
    return functional.max_pool2d(functional.pad(x, padding), 3, 2)
