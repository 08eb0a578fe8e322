"""What the networks look at: attention of CBAM, feature maps of teacher and student, filters."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from featherface.analysis.figures import SOFT, V1_COLOUR, V2_COLOUR, new_figure
from featherface.anchors import STRIDES
from featherface.images import padded_size
from featherface.models.backbone import MobileNetV1
from featherface.models.baseline import CHANNEL_MEANS, BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.cbam import CBAM
from featherface.models.modules.cbam_lite import CBAMLite
from featherface.models.outputs import FeatureMaps
from featherface.training.distillation import normalise

Image = NDArray[np.uint8]
HEAT = "magma"


def to_tensor(image: Image) -> Tensor:
    """uint8 RGB ``[H, W, 3]`` to float32 ``[1, 3, H', W']``, padded to multiples of 32."""
    height, width = image.shape[:2]
    padded_width, padded_height = padded_size(width, height)
    x = torch.zeros(1, 3, padded_height, padded_width)
    x[0, :, :height, :width] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return x


@torch.no_grad()
def maps_of(model: BaselineV1 | FeatherFaceV2, image: Image) -> FeatureMaps:
    """The model's maps for one image, in evaluation mode."""
    model.eval()
    maps: FeatureMaps = model.forward_with_features(to_tensor(image))[1]
    return maps


@torch.no_grad()
def spatial_gates(model: BaselineV1 | FeatherFaceV2, image: Image) -> list[NDArray[np.float32]]:
    """The spatial gates of the neck's attention, ``[H/s, W/s]`` for strides 8, 16, 32."""
    gates: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        (x,) = inputs
        if isinstance(module, CBAM):
            gates.append(module.spatial_gate(x * module.channel_gate(x)))
        elif isinstance(module, CBAMLite):
            gates.append(torch.sigmoid(module.spatial(x)))

    attention = model.neck_attention if isinstance(model, BaselineV1) else model.attention
    hooks = [module.register_forward_hook(keep) for module in attention]
    try:
        model.eval()(to_tensor(image))
    finally:
        for hook in hooks:
            hook.remove()
    return [gate[0, 0].numpy() for gate in gates]


def attention_plot(models: dict[str, BaselineV1 | FeatherFaceV2], image: Image) -> Figure:
    """The photo, and where each model's attention opens at strides 8, 16, 32."""
    figure, axes = new_figure(len(models), 4, 11.0, 2.9 * len(models))
    for row, (name, model) in zip(axes, models.items(), strict=True):
        for plot in row:
            plot.axis("off")
        row[0].imshow(image)
        row[0].set_title(name, fontsize=10, color=SOFT)
        for plot, gate, stride in zip(row[1:], spatial_gates(model, image), STRIDES, strict=True):
            height, width = -(-image.shape[0] // stride), -(-image.shape[1] // stride)
            shown = plot.imshow(gate[:height, :width], cmap=HEAT)
            plot.set_title(f"gate at stride {stride}", fontsize=10, color=SOFT)
            figure.colorbar(shown, ax=plot, shrink=0.7)
    return figure


def energy(x: Tensor) -> NDArray[np.float32]:
    """``[1, C, H, W]`` to ``[H, W]``: mean square over the channels, each normalised first."""
    return normalise(x)[0].square().mean(0).sqrt().numpy()


def feature_plot(models: dict[str, BaselineV1 | FeatherFaceV2], image: Image) -> Figure:
    """What the heads of each model read, stride by stride, one row a model."""
    figure, axes = new_figure(len(models), 4, 11.0, 2.9 * len(models))
    for row, (name, model) in zip(axes, models.items(), strict=True):
        for plot in row:
            plot.axis("off")
        row[0].imshow(image)
        row[0].set_title(name, fontsize=10, color=SOFT)
        for plot, x, stride in zip(row[1:], maps_of(model, image).context, STRIDES, strict=True):
            height, width = -(-image.shape[0] // stride), -(-image.shape[1] // stride)
            plot.imshow(energy(x)[:height, :width], cmap=HEAT)
            plot.set_title(f"stride {stride}", fontsize=10, color=SOFT)
    return figure


def linear_similarity(first: Tensor, second: Tensor) -> float:
    """Linear CKA (Kornblith et al., ICML 2019) of two maps ``[1, C, H, W]``: 0 to 1.

    It asks whether the same places look alike to both, whatever the channels are.
    """
    a, b = (x[0].flatten(1).t().double() for x in (first, second))
    a, b = a - a.mean(0), b - b.mean(0)
    shared = (a.t() @ b).square().sum()
    return float(shared / ((a.t() @ a).norm() * (b.t() @ b).norm()).clamp_min(1e-12))


def similarity_table(
    teacher: BaselineV1, students: dict[str, FeatherFaceV2], images: list[Image]
) -> dict[str, dict[str, float]]:
    """Mean linear CKA to the teacher by student, then by map (``neck, stride 8`` and so on)."""
    table: dict[str, dict[str, list[float]]] = {name: {} for name in students}
    for image in images:
        taught = maps_of(teacher, image)
        for name, student in students.items():
            ours = maps_of(student, image)
            for part in ("backbone", "neck", "context"):
                pairs = zip(getattr(ours, part), getattr(taught, part), STRIDES, strict=True)
                for mine, theirs, stride in pairs:
                    values = table[name].setdefault(f"{part}, stride {stride}", [])
                    values.append(linear_similarity(mine, theirs))
    return {
        name: {where: float(np.mean(values)) for where, values in rows.items()}
        for name, rows in table.items()
    }


def similarity_plot(table: dict[str, dict[str, float]]) -> Figure:
    """Bars of ``similarity_table``: how alike the places look to student and teacher."""
    figure, axes = new_figure(width=10.0, height=3.6)
    plot = axes[0, 0]
    places = np.arange(len(next(iter(table.values()))))
    width = 0.8 / len(table)
    for number, ((name, rows), colour) in enumerate(
        zip(table.items(), (SOFT, V2_COLOUR, V1_COLOUR), strict=False)
    ):
        plot.bar(places + (number + 0.5) * width - 0.4, rows.values(), width, label=name,
                 color=colour)  # fmt: skip
    names = [where.replace(", ", "\n") for where in next(iter(table.values()))]
    plot.set_xticks(places, names, fontsize=8.5)
    plot.set(ylabel="similarity to the teacher (CKA)", ylim=(0, 1))
    plot.legend(frameon=False, ncols=len(table))
    return figure


def filter_plot(backbones: dict[str, MobileNetV1]) -> Figure:
    """The eight 3x3 filters of each backbone's first layer, in their colours."""
    figure, axes = new_figure(len(backbones), 8, 9.0, 1.5 * len(backbones))
    for row, (name, backbone) in zip(axes, backbones.items(), strict=True):
        stem = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
        kernels = stem.weight.detach().flip(1)  # V1 reads blue, green, red
        kernels = kernels / kernels.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-9)
        for plot, kernel in zip(row, kernels, strict=True):
            plot.imshow((kernel.permute(1, 2, 0).numpy() + 1) / 2)
            plot.set_xticks([])
            plot.set_yticks([])
            plot.grid(False)
            plot.spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center", color=SOFT)
    return figure


def activation_plot(backbones: dict[str, MobileNetV1], image: Image) -> Figure:
    """The energy of each backbone's three stages for one BGR-trained input, one row a backbone."""
    figure, axes = new_figure(len(backbones), 4, 11.0, 2.9 * len(backbones))
    x = to_tensor(image).flip(1) - torch.tensor(CHANNEL_MEANS)[None, :, None, None]
    for row, (name, backbone) in zip(axes, backbones.items(), strict=True):
        for plot in row:
            plot.axis("off")
        row[0].imshow(image)
        row[0].set_title(name, fontsize=10, color=SOFT)
        with torch.no_grad():
            stages = backbone.eval()(x)
        for plot, stage, stride in zip(row[1:], stages, STRIDES, strict=True):
            plot.imshow(energy(stage), cmap=HEAT)
            plot.set_title(f"stride {stride}", fontsize=10, color=SOFT)
    return figure
