"""How far a student's maps are from V1's, and what each part of V1 is worth that V2 does without.

    python -m benchmarks.twin_distance --data data/train \
        --teacher featherface_v1_wider.safetensors featherface/weights/featherface_v2.safetensors

The distance is the one that distillation uses: the mean squared difference of a channel in units of
its variance in V1, so that 1 is no better than the channel's mean. It is taken on held-out photos,
for the maps that leave the neck and those that leave the context.

For each part, V1 runs with V2's way in its place. What follows the replaced part is fitted anew by
least squares on training photos where it is a 1x1 convolution, and V1's own where not, so a row
tells what the part's *information* is worth, before any training. Writes ``twin_distance.json`` and
``twin_distance.md``. A minute.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional

from benchmarks.comparison import Cache, Data, Out, detector_name, detector_table, write_comparison
from featherface.data.shards import PhotoStore
from featherface.evaluation.validation import (
    VALIDATION_FRACTION,
    VALIDATION_SEED,
    evenly,
    held_out_photos,
)
from featherface.images import ByteImage, fitted_size, resize_image
from featherface.models.backbone import MobileNetV1
from featherface.models.featherface_v1 import FeatherFaceV1, attend
from featherface.models.modules.bifpn import both_ways, shares
from featherface.models.pretrained import load_v1
from featherface.models.pretrained_v2 import load_v2
from featherface.training.distillation import teacher_input, twin_distance, twin_maps
from featherface.training.factored_start import copy_same, fit_blocks
from featherface.training.warm_start import important, outgoing_norm

SIDE = 320
COLUMNS = [f"{part}, stride {s}" for part in ("neck", "context") for s in (8, 16, 32)]

Maps = list[Tensor]


class TakenApart:
    """V1 on photos: the first ``fitted`` teach what is refitted, the others are measured."""

    def __init__(self, model: FeatherFaceV1, images: Tensor, fitted: int) -> None:
        self.model, self.fitted = model, fitted
        self.raw = model.backbone(teacher_input(images))
        self.attended = attend(model.backbone_attention, self.raw)
        first: Any = model.fusions[0]
        self.laterals, self.second = first.both_laterals(self.attended)
        self.maps = self.to_the_end(self.laterals, self.second)

    def to_the_end(
        self, laterals: Maps, second: Maps, node: Callable[..., Tensor] | None = None
    ) -> Maps:
        """Neck and context, ``[B, C, H, W]`` each, from what the laterals gave.

        ``node(layer, name, *maps)`` stands for a node of the fusion; V1's own without.
        """
        levels = laterals
        for layer in range(len(self.model.fusions)):
            levels = both_ways(levels, second, partial(node or self.node, layer))
            second = levels[1:]
        neck = attend(self.model.neck_attention, levels)
        parts = zip(self.model.context, self.model.shuffle, neck, strict=True)
        return [*neck, *(shuffle(context(x)) for context, shuffle, x in parts)]

    def node(self, layer: int, name: str, *maps: Tensor) -> Tensor:
        """V1's own."""
        fusion: Any = self.model.fusions[layer]
        result: Tensor = fusion.node(name, *maps)
        return result

    def refit(self, x: Tensor, target: Tensor) -> Tensor:
        """``target`` as the best 1x1 convolution of ``x`` gives it, by the photos to fit on."""
        inputs, wanted = (flat(y[: self.fitted]) for y in (x, target))
        ones = torch.ones(len(inputs), 1, dtype=inputs.dtype)
        weight = torch.linalg.lstsq(torch.cat([inputs, ones], 1), wanted).solution.float()
        return torch.einsum("bchw,co->bohw", x, weight[:-1]) + weight[-1][:, None, None]

    def distances(self, maps: Maps) -> list[float]:
        """Of ``maps`` from V1's, on the photos that nothing was fitted on."""
        measured = slice(self.fitted, None)
        return [
            float(twin_distance([ours[measured]], [theirs[measured]]))
            for ours, theirs in zip(maps, self.maps, strict=True)
        ]


def flat(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to float64 ``[B * H * W, C]``."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()


def attention_as_numbers(v1: TakenApart) -> Maps:
    """No gate on the backbone's maps; the laterals may scale their inputs."""
    plain = [x.relu() for x in v1.raw]
    laterals = [v1.refit(x, y) for x, y in zip(plain, v1.laterals, strict=True)]
    return v1.to_the_end(
        laterals, [v1.refit(x, y) for x, y in zip(plain[1:], v1.second, strict=True)]
    )


def one_set_of_laterals(v1: TakenApart) -> Maps:
    """What goes down goes up again."""
    return v1.to_the_end(v1.laterals, v1.laterals[1:])


def second_from_first(v1: TakenApart) -> Maps:
    """The second laterals read the first, 64 channels, not the backbone."""
    pairs = zip(v1.laterals[1:], v1.second, strict=True)
    return v1.to_the_end(v1.laterals, [v1.refit(x, y) for x, y in pairs])


def relu_for_swish(v1: TakenApart) -> Maps:
    """Pointwise convolutions refitted one after the other, to V1's node outputs."""
    wanted: dict[tuple[int, str], Tensor] = {}

    def note(layer: int, name: str, *maps: Tensor) -> Tensor:
        wanted[layer, name] = v1.node(layer, name, *maps)
        return wanted[layer, name]

    def with_relu(layer: int, name: str, *maps: Tensor) -> Tensor:
        fusion: Any = v1.model.fusions[layer]
        weights = shares(getattr(fusion, f"weights_{name}"))
        total = sum(w * x for w, x in zip(weights, maps, strict=False))
        depthwise = getattr(fusion, name).depthwise(functional.relu(total))
        return v1.refit(depthwise, wanted[layer, name])

    v1.to_the_end(v1.laterals, v1.second, note)
    return v1.to_the_end(v1.laterals, v1.second, with_relu)


def narrow_stage3(v1: TakenApart, channels: int) -> Maps:
    """Both blocks of the last stage cut; what is left is fitted to V1's maps again."""
    stage: Any = v1.model.backbone.stage3
    neck: Any = v1.model.fusions[0]
    first, layers = list(stage[0]), list(stage[1])
    inner = layers[2](layers[1](layers[0](stage[0](v1.raw[1]))))
    kept = important(first[4].weight, outgoing_norm(layers[3].weight), channels)
    outer = important(layers[4].weight, outgoing_norm(neck.laterals[2][0].weight), channels)
    sums = layers[3](inner)
    refitted = sums.clone()
    refitted[:, outer] = v1.refit(inner[:, kept], sums[:, outer])
    x = layers[5](layers[4](refitted))[:, outer].relu()
    return v1.to_the_end(
        [*v1.laterals[:2], v1.refit(x, v1.laterals[2])], [v1.second[0], v1.refit(x, v1.second[1])]
    )


def factored(v1: TakenApart, stage2_rank: int, stage3_rank: int) -> Maps:
    """The backbone's 1x1 convolutions in two factors, all channels kept."""
    backbone = MobileNetV1(stage2_rank=stage2_rank, stage3_rank=stage3_rank).eval()
    theirs = v1.model.backbone
    copy_same(backbone, theirs)
    maps = [v1.raw[0]]
    for ours, wanted in ((backbone.stage2, theirs.stage2), (backbone.stage3, theirs.stage3)):
        x, y = maps[-1], v1.raw[len(maps) - 1]
        fit_blocks(ours, wanted, x[: v1.fitted], y[: v1.fitted])
        maps.append(ours(x.clone()))
    plain = [x.relu() for x in maps]
    laterals = [v1.refit(x, y) for x, y in zip(plain[1:], v1.laterals[1:], strict=True)]
    second = [v1.refit(x, y) for x, y in zip(plain[1:], v1.second, strict=True)]
    return v1.to_the_end([v1.laterals[0], *laterals], second)


PARTS: dict[str, Callable[[TakenApart], Maps]] = {
    "V1, backbone's attention as numbers": attention_as_numbers,
    "V1, second laterals read the first": second_from_first,
    "V1, one set of laterals": one_set_of_laterals,
    "V1, ReLU for swish": relu_for_swish,
    "V1, 128 channels in stage 3": partial(narrow_stage3, channels=128),
    "V1, 80 channels in stage 3": partial(narrow_stage3, channels=80),
    "V1, 64 channels in stage 3": partial(narrow_stage3, channels=64),
    "V1, rank 40 in stage 3": partial(factored, stage2_rank=0, stage3_rank=40),
    "V1, rank 48 in stage 2": partial(factored, stage2_rank=48, stage3_rank=0),
    "V1, both": partial(factored, stage2_rank=48, stage3_rank=40),
}


def main(
    weights: Annotated[list[Path], typer.Argument(help="safetensors of students")],
    data: Data,
    teacher: Annotated[Path, typer.Option(help="V1's weights, safetensors")],
    cache: Cache = Path("cache"),
    out: Out = Path("results"),
    photos: Annotated[int, typer.Option(min=1, help="photos to fit, and as many to measure")] = 48,
) -> None:
    """Measure and write."""
    store = PhotoStore(data, cache)
    held_out = held_out_photos(store, limit=photos)
    training, _ = store.split(VALIDATION_FRACTION, VALIDATION_SEED)
    fitted = evenly(training, photos)
    images = torch.stack([padded(store[int(i)].image) for i in (*fitted, *held_out)])
    with torch.no_grad():
        v1 = TakenApart(load_v1(teacher).eval(), images, len(fitted))
        rows = {name: v1.distances(change(v1)) for name, change in PARTS.items()}
        for path in weights:
            maps = load_v2(path).forward_with_features(images)[1]
            rows[detector_name(path)] = v1.distances(twin_maps(maps))
    result = {"photos": len(held_out), "columns": COLUMNS, "distance": rows}
    write_comparison(out, "twin_distance", result, markdown(result))


def padded(image: ByteImage) -> Tensor:
    """RGB ``[3, SIDE, SIDE]``, 0..255: the long side brought to ``SIDE``, black right and below."""
    width, height = fitted_size(image.shape[1], image.shape[0], SIDE)
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    canvas[:height, :width] = resize_image(np.ascontiguousarray(image), width, height)
    return torch.from_numpy(canvas).permute(2, 0, 1).float()


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    rows = {name: [f"{x:.2f}" for x in row] for name, row in result["distance"].items()}
    note = (
        "Mean squared difference of a channel over its variance in V1, "
        f"{result['photos']} held-out photos at {SIDE} pixels; 0: V1's own maps, 1: no better than "
        "the mean."
    )
    return detector_table(result["columns"], rows, note)


if __name__ == "__main__":
    typer.run(main)
