"""The detail branch's first weights: another detector's maps, then labels.

The branch has YuNet's shape, so what each of its units makes can be learned by itself, from the
teacher's own input to that unit: a problem of one block that mostly has an exact answer (FitNets,
Romero et al., ICLR 2015, at every layer). From crops that are kept:

1. every unit learns alone, its inputs whitened and its outputs in units of their deviation;
2. the branch as a whole learns to make the same maps from the image;
3. its neck, its tower and a predictor of its own learn from the labels.

The heads then say what the branch says, until the other way begins (``start.shortened``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from featherface.data.dataset import Batch
from featherface.data.labelled_photo import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.detail_branch import DetailBranch, MixedDepthwise, halved
from featherface.models.modules.grouped_heads import GroupedHeads
from featherface.models.modules.light_bifpn import upsample
from featherface.training.kept_crops import (
    as_input,
    chosen_crops,
    crops_to_keep,
    images_alike,
)
from featherface.training.learner import Learner, refuse_dynamic
from featherface.training.map_teacher import MapTeacher
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, share_values

UNIT_CROPS, WHOLE_CROPS, LABELLED_CROPS = 2, 2, 4  # of a step
UNIT_RATE, WHOLE_RATE, LABELS_RATE = 3e-3, 1e-4, 6e-4
NECKS_SHARE, PREDICTORS_SHARE = 0.5, 4.0  # while labels teach
FIRST_CROPS = 48  # from which inputs and outputs are measured
FIRST_BATCHES = 4
SHORT_UNITS = 13  # of a branch that speaks at stride 8 alone
LEAST_VARIANCE = 0.003  # of a channel, as a share of its map's mean one
LEAST_EIGENVALUE = 1e-6  # of the inputs' second moments, as a share of the largest


def fit_branch(
    fabric: Fabric,
    learner: Learner,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Teach the detail branch of ``learner``'s student, in place, by ``start.branch_crops`` crops.

    ``start.branch_teacher`` names the maps that the teacher's units make, in the order of
    :func:`units_of`. Crops are seen ``start.branch_passes`` times by the units, the whole and with
    the labels.

    Raises:
        ConfigError: the student has no detail branch, its other way does not begin behind it, the
            matching is dynamic, or the teacher has other maps than its units.
        WeightsError: the teacher's file cannot be read.
    """
    config, student, start = learner.config, learner.student, learner.config.start
    if not isinstance(student, FeatherFaceV2) or student.branch is None:
        raise ConfigError("start.branch_crops: needs model.detail_branch: true")
    if not start.shortened:
        raise ConfigError("start.branch_crops: needs start.shortened, the other way's beginning")
    refuse_dynamic(config, "start.branch_crops", "stride 8")
    if start.branch_teacher is None:
        raise ConfigError("start.branch_crops: needs start.branch_teacher, whose maps are learned")
    branch = student.branch
    units = units_of(branch)
    if len(start.branch_teacher.maps) != len(units):
        raise ConfigError(
            f"start.branch_teacher: {len(start.branch_teacher.maps)} maps for {len(units)} units"
        )
    teacher = MapTeacher(start.branch_teacher)
    seen = crops_to_keep(fabric, config, store, indices, start.branch_crops, seed=3)
    order = np.random.default_rng((config.seed, fabric.global_rank))

    def run(
        name: str,
        passed: int,
        count: int,
        rate: float,
        optimiser: MatrixSteps,
        loss_of: Callable[[Batch], Tensor],
    ) -> None:
        """Passes by ``count`` crops."""
        steps = passed * sum(-(-len(one.images) // count) for one in seen)
        if not steps:
            return

        def loss_at(_: int) -> Tensor:
            batch = seen[order.integers(len(seen))]
            return loss_of(
                chosen_crops(batch, np.sort(order.permutation(len(batch.images))[:count]))
            )

        first, last = learn(fabric, optimiser, steps, loss_at, rate, config.optimiser.clip_norm)
        report(f"{name}: {steps:,} steps, loss {first:.3f} to {last:.3f}")

    with learning_alone(student, []):
        # 1. Every unit alone.
        images = torch.cat([as_input(x) for x in images_alike(seen)[:FIRST_BATCHES]])[:FIRST_CROPS]
        images = fabric.broadcast(images)  # all processes learn in the same coordinates
        shown = teacher(images)
        deviations = [deviation_of(x) for x in shown]
        learning = nn.ModuleList(
            WhitenedUnit(x, deviation, unit)
            for x, deviation, unit in zip(inputs_of(images, shown), deviations, units, strict=True)
        )

        share_values(fabric, learning.parameters())

        def units_loss(batch: Batch) -> Tensor:
            """How far each unit is from its teacher's, in units of the outputs' deviation."""
            images = as_input(batch.images)
            shown = teacher(images)
            inputs = inputs_of(images, shown)
            losses = [
                (unit(x) - y / deviation).square().mean()
                for unit, x, y, deviation in zip(learning, inputs, shown, deviations, strict=True)
            ]
            return torch.stack(losses).mean()

        of_units = MatrixSteps([Part(1.0, list(learning.parameters()))])
        run("Units", start.branch_passes[0], UNIT_CROPS, UNIT_RATE, of_units, units_loss)
        for unit, learned in zip(units, learning, strict=True):
            assert isinstance(learned, WhitenedUnit)
            learned.write_to(unit)

        # 2. The branch as a whole.
        branch.requires_grad_(True)

        def whole_loss(batch: Batch) -> Tensor:
            """How far the maps are that the branch makes from the image."""
            images = as_input(batch.images)
            losses = [
                ((x - y) / deviation).square().mean()
                for x, y, deviation in zip(
                    maps_of(branch, images), teacher(images), deviations, strict=True
                )
            ]
            return torch.stack(losses).mean()

        of_whole = MatrixSteps([Part(1.0, list(branch.parameters()))])
        run("Branch", start.branch_passes[1], WHOLE_CROPS, WHOLE_RATE, of_whole, whole_loss)

        # 3. Labels, for all behind the stages.
        branch.requires_grad_(False)
        parts = (branch.around, branch.neck, branch.tower, branch.coarse_tower)
        behind = [value for part in parts if part is not None for value in part.parameters()]
        for value in behind:
            value.requires_grad_(True)
        widths = [width // 2 for width in student.heads.read if width > student.heads.read[-1]]
        heads = GroupedHeads(widths, None).to(images.device)
        predictors = list(heads.parameters())
        share_values(fabric, predictors)

        def labels_loss(batch: Batch) -> Tensor:
            """The labels' losses of what the branch says alone."""
            towers = branch(as_input(batch.images)).towers
            return learner.finest_loss(batch, heads.predict(towers))

        of_labels = MatrixSteps(
            [Part(NECKS_SHARE, behind), Part(PREDICTORS_SHARE, predictors)], predictors
        )
        run(
            "Branch by labels",
            start.branch_passes[2],
            LABELLED_CROPS,
            LABELS_RATE,
            of_labels,
            labels_loss,
        )
        let_speak_alone(student, heads)


def units_of(branch: DetailBranch) -> list[nn.Sequential]:
    """Its units in the order of the data, the neck from its coarsest stride down."""
    convolution, activation, _ = branch.stem
    found = [nn.Sequential(convolution, activation)]
    for part in (branch.stem, branch.stage_4, branch.stages):
        found += [x for x in part.modules() if isinstance(x, MixedDepthwise)]
    necks = [x for x in branch.neck if isinstance(x, MixedDepthwise)]
    towers = [branch.tower, branch.coarse_tower]
    return [*found, *necks[::-1], *(x for x in towers if x is not None)]


def inputs_of(image: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """What each of the units reads if those before it made ``maps``, and nothing lies around."""
    stem, unit, *stage_4 = maps[:6]
    count = 2 if len(maps) == SHORT_UNITS else 3  # stages behind
    stages, necks = maps[6 : 6 + 2 * count], maps[6 + 2 * count :][:count]
    ends = stages[1::2]
    down = [
        one
        for before, (first, _) in zip(
            [stage_4[-1], *ends[:-1]], zip(stages[::2], ends, strict=True), strict=True
        )
        for one in (halved(before), first)
    ]
    coarser = [upsample(x) for x in necks[:-1]]
    levels = [ends[-1], *(x + y for x, y in zip(ends[-2::-1], coarser, strict=True))]
    towers = necks[::-1][: len(maps) - 6 - 3 * count]
    return [image, stem, halved(unit), *stage_4[:-1], *down, *levels, *towers]


def maps_of(branch: DetailBranch, image: Tensor) -> list[Tensor]:
    """What each of its units makes of an image."""
    made: dict[int, Tensor] = {}
    # Their ReLUs, as the stem's convolution and its ReLU are no module of their own.
    ends = [unit[-1] for unit in units_of(branch)]

    def keep(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        made[id(module)] = output

    hooks = [end.register_forward_hook(keep) for end in ends]
    branch(image)
    for hook in hooks:
        hook.remove()
    return [made[id(end)] for end in ends]


class WhitenedUnit(nn.Module):
    """A unit of the branch that learns in the best coordinates of its inputs and outputs.

    Its first convolution reads whitened inputs, and it makes what the unit is to make over the
    ``deviation`` ``[C, 1, 1]`` of that.
    """

    def __init__(self, inputs: Tensor, deviation: Tensor, unit: nn.Sequential) -> None:
        super().__init__()
        first, *rest = layers_of(unit)
        assert isinstance(first, nn.Conv2d)
        self.kernel_size, self.stride = first.kernel_size, first.stride
        self.padding = first.kernel_size[0] // 2
        rows = functional.unfold(
            inputs, self.kernel_size, padding=self.padding, stride=max(2, *self.stride)
        )
        rows = rows.transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
        least = LEAST_EIGENVALUE * float(values[-1])
        white = (vectors * values.clamp_min(least).rsqrt()) @ vectors.T
        self.register_buffer("white", white.float())
        self.register_buffer("deviation", deviation)
        count, width = first.out_channels, rows.shape[1]
        self.kernel = nn.Parameter(torch.randn(count, width, 1, 1, device=rows.device) / width**0.5)
        bias = None if first.bias is None else torch.zeros(count, device=rows.device)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.rest = nn.Sequential(*copy.deepcopy(rest)).requires_grad_(True)
        for layer in self.rest:
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                if layer.groups > 1:
                    nn.init.normal_(layer.weight, std=0.1)
                    layer.weight.data[:, :, 1, 1] += 0.7

    def first_kernel(self) -> Tensor:
        """That of the first convolution on inputs as they are."""
        white = self.white
        assert isinstance(white, Tensor)
        flat = self.kernel.flatten(1) @ white
        return flat.view(len(flat), -1, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.first_kernel(), self.bias, self.stride, self.padding)
        made: Tensor = self.rest(x)
        return made

    @torch.no_grad()
    def write_to(self, unit: nn.Sequential) -> None:
        """Give ``unit`` what was learned."""
        deviation = self.deviation
        assert isinstance(deviation, Tensor)
        first, *rest = layers_of(unit)
        assert isinstance(first, nn.Conv2d)
        first.weight.copy_(self.first_kernel())
        if first.bias is not None and self.bias is not None:
            first.bias.copy_(self.bias)
        for layer, learned in zip(rest, self.rest, strict=True):
            layer.load_state_dict(learned.state_dict())
        last = [x for x in (first, *rest) if isinstance(x, nn.Conv2d)][-1]
        scale = deviation.flatten()
        last.weight.mul_(scale[:, None, None, None])
        last.bias.mul_(scale)  # type: ignore[union-attr]


def layers_of(unit: nn.Sequential) -> list[nn.Module]:
    """Its layers in their order."""
    return [x for x in unit.modules() if not isinstance(x, nn.Sequential)]


@torch.no_grad()
def let_speak_alone(student: FeatherFaceV2, heads: GroupedHeads) -> None:
    """Let the student say what the branch's ``heads`` say, at the strides that these have.

    What the student's predictors read first is the other way's.
    """
    for both, alone in zip(student.heads.predictors, heads.predictors, strict=False):
        assert isinstance(both, nn.Conv2d)
        assert isinstance(alone, nn.Conv2d)
        both.weight.zero_()
        both.weight[:, -alone.in_channels :] = alone.weight
        both.bias.copy_(alone.bias)  # type: ignore[union-attr, arg-type]


def deviation_of(x: Tensor) -> Tensor:
    """``[C, 1, 1]`` of the channels of ``[B, C, H, W]``, none far below the others'."""
    variance = x.var((0, 2, 3))
    return variance.clamp_min(LEAST_VARIANCE * float(variance.mean())).sqrt()[:, None, None]
