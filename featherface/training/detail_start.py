"""The detail stem's first weights: learned from labels and from other detectors' maps.

Everything else stands still but the context and the predictor of stride 8, which are to read what
the stem adds. Labels alone say little to a stem that begins by chance: few cells have a face. The
maps of detectors that find tiny faces (FitNets, Romero et al., ICLR 2015) say something about every
cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.augmentation import Photos
from featherface.errors import ConfigError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training.batches import make_loader, total_batches
from featherface.training.factored_start import fit_pointwise
from featherface.training.learner import Learner
from featherface.training.losses import label_losses
from featherface.training.map_teacher import MapTeacher
from featherface.training.schedules import learning_rate, set_learning_rate
from featherface.training.twin_start import share_gradients
from featherface.training.weight_decay import decay_groups

LEARNING_RATE = 6e-3
READERS_RATE = 0.3  # the context's and the predictor's, of the stem's
WARMUP = 0.04
FINAL_RATE = 0.01
FROZEN_FROM = 0.6  # progress from which on batch normalisations stand still
LEAST_SPREAD = 0.05  # of a channel, as a share of its map's mean one


def fit_detail(
    fabric: Fabric,
    learner: Learner,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Teach the detail stem of ``learner``'s student, in place, by ``start.detail_crops`` crops.

    Several processes share the crops, none of which is the run's own.

    Raises:
        ConfigError: the student has no detail stem, or a teacher's map is of another stride than
            4 and 8.
        WeightsError: a teacher's file cannot be read.
    """
    config, student = learner.config, learner.student
    if not isinstance(student, FeatherFaceV2) or student.detail is None:
        raise ConfigError("start.detail_crops: needs model.detail_channels")
    stem = student.detail
    teachers = [MapTeacher(one) for one in config.start.detail_teachers]
    kind = config.model_copy(update={"images": config.start.detail_crops, "seed": config.seed + 2})
    loader = make_loader(
        kind, store, indices, 0, fabric.global_rank, fabric.world_size, fabric.device.type == "cuda"
    )
    steps = total_batches(kind, fabric.world_size)
    learned_before = {p: p.requires_grad for p in student.parameters()}
    readers = [*student.context[0].parameters(), *student.heads.predictors[0].parameters()]
    student.eval().requires_grad_(False)
    stem.requires_grad_(True)
    for parameter in readers:
        parameter.requires_grad_(True)
    hints: Hints | None = None
    optimiser: torch.optim.Optimizer | None = None
    values: list[nn.Parameter] = []
    losses: list[float] = []
    for step, batch in enumerate(loader):
        batch = batch.to(fabric.device)
        images = batch.images.float().contiguous(memory_format=torch.channels_last)
        wanted = [x for teacher in teachers for x in teacher(images)]
        if hints is None or optimiser is None:
            with torch.no_grad():
                shown = stem.forward_with_maps(images)[1:]
            hints = Hints(images, list(shown), wanted).to(fabric.device)
            share_values(fabric, [*hints.buffers(), *hints.parameters()])
            own = [*stem.parameters(), *hints.parameters()]
            values = [*own, *readers]
            optimiser = torch.optim.AdamW(
                [
                    group | {"share": share}
                    for share, part in ((1.0, own), (READERS_RATE, readers))
                    for group in decay_groups(part)
                ],
                weight_decay=config.optimiser.weight_decay,
            )
        training = step < FROZEN_FROM * steps
        if stem.training and not training:
            share_values(fabric, stem.buffers())
        stem.train(training)
        rate = learning_rate(step / steps, LEARNING_RATE, WARMUP, FINAL_RATE)
        set_learning_rate(optimiser, rate)
        detail, *maps = stem.forward_with_maps(images)
        outputs, _ = student.behind_backbone(student.backbone(images), detail)
        targets = learner.match(batch, outputs)
        terms = label_losses(outputs, learner.anchors_of(images), targets, config.loss)
        loss = torch.stack([*terms.values(), hints(maps, wanted)]).sum()
        optimiser.zero_grad()
        loss.backward()
        share_gradients(fabric, values)
        nn.utils.clip_grad_norm_(values, config.optimiser.clip_norm)
        optimiser.step()
        losses.append(float(loss.detach()))
    student.eval()
    for parameter, learns in learned_before.items():
        parameter.requires_grad_(learns)
    tenth = max(1, steps // 10)
    report(
        f"Detail stem: {steps:,} steps, loss {sum(losses[:tenth]) / tenth:.2f} to "
        f"{sum(losses[-tenth:]) / tenth:.2f}"
    )


class Hints(nn.Module):
    """How far the stem's maps, by a 1x1 convolution each, are from the teachers'.

    Each channel weighs by its spread in the first batch, which the convolutions are fitted to.
    ``maps`` are the stem's at strides 4 and 8 for ``images``, ``wanted`` the teachers'.

    Raises:
        ConfigError: a teacher's map has another stride.
    """

    def __init__(self, images: Tensor, maps: list[Tensor], wanted: list[Tensor]) -> None:
        super().__init__()
        strides = [images.shape[2] // x.shape[2] for x in wanted]
        if not set(strides) <= {4, 8}:
            raise ConfigError(
                f"start.detail_teachers: maps of strides {strides}; the detail stem has 4 and 8"
            )
        self.levels = [0 if stride == 4 else 1 for stride in strides]
        self.adapters = nn.ModuleList(
            fitted_adapter(maps[level], x) for level, x in zip(self.levels, wanted, strict=True)
        )
        for number, x in enumerate(wanted):
            spread = x.var((0, 2, 3))
            spread = spread.clamp_min(LEAST_SPREAD * float(spread.mean()))
            self.register_buffer(f"spread_{number}", spread[:, None, None])

    def forward(self, maps: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """The sum over the teachers' maps."""
        total = maps[0].new_zeros(())
        for number, (adapter, level, x) in enumerate(
            zip(self.adapters, self.levels, wanted, strict=True)
        ):
            distance = (adapter(maps[level]) - x).square() / getattr(self, f"spread_{number}")
            total = total + distance.mean()
        return total


@torch.no_grad()
def fitted_adapter(given: Tensor, wanted: Tensor) -> nn.Conv2d:
    """The 1x1 convolution that makes ``wanted`` of ``given`` best: one by chance would be far off
    and would lead a stem that has learned already astray.
    """
    adapter = nn.Conv2d(given.shape[1], wanted.shape[1], 1).to(given.device)
    assert adapter.bias is not None
    adapter.bias.copy_(fit_pointwise(adapter, given, wanted, wanted.new_ones(wanted.shape[1])))
    return adapter


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
