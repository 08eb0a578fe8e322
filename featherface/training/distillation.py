"""What V2 learns from V1: features through adapters, logits with temperature, boxes, landmarks.

Both nets have the same anchors, so each of V2's logits has its twin in V1 (Hinton et al., 2015).
Features are compared after 1x1 adapters (FitNets, Romero et al., ICLR 2015) that training keeps
and drops at its end; both sides are normalised by channel, so only the pattern counts. A student
that began with V1's own layers can do without adapters: its channels have their twins in V1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from featherface.models.outputs import FeatureMaps, HeadOutputs
from featherface.training.box_coding import aligned_iou_loss, decode_boxes
from featherface.training.config import DistillationConfig
from featherface.training.losses import a_face

V1_CHANNEL_MEANS = (104.0, 117.0, 123.0)
SURE = 0.3

LEAST_SPREAD = 0.05  # of a channel, as a share of its map's mean one
SPREAD_BATCHES = 8


def teacher_input(images: Tensor) -> Tensor:
    """RGB 0..255 ``[B, 3, H, W]`` to V1's input: BGR minus the channel means."""
    # Channel by channel: a tensor of means made here would keep a GPU waiting.
    channels = images.unbind(1)[::-1]
    return torch.stack([x - mean for x, mean in zip(channels, V1_CHANNEL_MEANS, strict=True)], 1)


class FeatureAdapters(nn.Module):
    """One 1x1 convolution for each pair of student's and teacher's maps."""

    def __init__(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        super().__init__()
        convolutions = [
            nn.Conv2d(s, t, 1) for s, t in zip(student_channels, teacher_channels, strict=True)
        ]
        for convolution in convolutions:
            nn.init.dirac_(convolution.weight)
            convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels))
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Mean squared difference of the normalised maps, averaged over the pairs."""
        losses = [
            functional.mse_loss(normalise(convolution(s)), normalise(t))
            for convolution, s, t in zip(self.convolutions, student, teacher, strict=True)
        ]
        return torch.stack(losses).mean()


def twin_distance(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean squared difference channel by channel, in units of the teacher's deviation.

    A channel that hardly moves counts for little: a tenth of the mean deviation is the least unit.
    """
    losses = []
    for s, t in zip(student, teacher, strict=True):
        variance = t[:, :, ::2, ::2].var((0, 2, 3), keepdim=True)
        variance = torch.maximum(variance, 0.01 * variance.mean() + 1e-12)
        losses.append(((s - t).square().mean((0, 2, 3), keepdim=True) / variance).mean())
    return torch.stack(losses).mean()


def normalise(x: Tensor) -> Tensor:
    """Zero mean and unit variance by channel over batch and place."""
    mean = x.mean((0, 2, 3), keepdim=True)
    deviation = x.std((0, 2, 3), keepdim=True)
    return (x - mean) / (deviation + 1e-3)


def compared_maps(maps: FeatureMaps) -> list[Tensor]:
    """What both nets have at strides 8, 16, 32: backbone, neck, and what the heads read."""
    return [*maps.backbone, *maps.neck, *maps.context]


def twin_maps(maps: FeatureMaps, detail: bool = False) -> list[Tensor]:
    """Neck and what the heads read, which both nets have at the same width.

    ``detail`` leaves out what the heads of stride 8 read: a detail stem adds there what V1 lacks.
    """
    return [*maps.neck, *maps.context[int(detail) :]]


def channel_spread(x: Tensor) -> Tensor:
    """The variance ``[C, 1, 1]`` of each channel of ``[B, C, H, W]``, none far below the mean."""
    spread = x.var((0, 2, 3))
    return spread.clamp_min(LEAST_SPREAD * float(spread.mean()))[:, None, None]


def channel_spreads(batches: Sequence[list[Tensor]]) -> list[Tensor]:
    """``channel_spread`` of each map that several batches show, in single precision.

    By the first eight whose maps are as large as those of the first.
    """
    size = batches[0][0].shape
    alike = [maps for maps in batches if maps[0].shape == size][:SPREAD_BATCHES]
    return [channel_spread(torch.cat(maps).float()) for maps in zip(*alike, strict=True)]


def spread_distance(made: list[Tensor], wanted: list[Tensor], spreads: list[Tensor]) -> Tensor:
    """Sum over maps of their mean squared difference, in units of each channel's ``spreads``."""
    distances = [
        ((x - y).square() / spread).mean()
        for x, y, spread in zip(made, wanted, spreads, strict=True)
    ]
    return torch.stack(distances).sum()


def with_two_logits(outputs: HeadOutputs) -> HeadOutputs:
    """V2's outputs as V1 gives them, logits ``[B, A, 2]`` of background and face."""
    margin = outputs.logits
    return outputs._replace(logits=torch.stack([torch.zeros_like(margin), margin], -1))


def output_losses(
    student: HeadOutputs,
    teacher: HeadOutputs,
    anchors: Tensor,
    config: DistillationConfig,
    labelled: Tensor | None = None,
    crop_balance: float = 0.0,
) -> dict[str, Tensor]:
    """Weighted scalars ``teacher_logits``, ``teacher_boxes`` and ``teacher_landmarks``.

    Boxes and landmarks count where the teacher sees a face, by how sure it is. ``labelled``, bool
    ``[B, A]``, are anchors over a labelled face, doubtful or not: there the teacher only raises
    scores, as it misses tiny faces that the labels have. ``crop_balance`` is that of the labels'
    class loss.
    """
    if config.least_anchor:
        large = anchors[:, 2] >= config.least_anchor
        student = HeadOutputs(*(x[:, large] for x in student))
        teacher = HeadOutputs(*(x[:, large] for x in teacher))
        labelled = None if labelled is None else labelled[:, large]
        anchors = anchors[large]
    margin = teacher.logits[..., 1] - teacher.logits[..., 0]
    soft = torch.sigmoid(margin / config.temperature)
    logits = student.logits / config.temperature
    entropy = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    # Background fills nearly all anchors; the focal factor leaves those that the two disagree on.
    focus = (soft - logits.sigmoid()).abs()
    if labelled is not None:
        focus = focus.masked_fill(labelled & (soft < logits.sigmoid()), 0)
    logit_loss = a_face((focus * entropy).sum(1), soft.sum(1), crop_balance)
    probability = torch.sigmoid(margin)
    weight = torch.where(probability > SURE, probability, 0)
    total = weight.sum().clamp_min(1)
    box_loss, _ = aligned_iou_loss(
        decode_boxes(student.box_deltas, anchors).flatten(0, 1),
        decode_boxes(teacher.box_deltas, anchors).flatten(0, 1),
        "giou",
    )
    landmark_loss = functional.smooth_l1_loss(
        student.landmark_deltas, teacher.landmark_deltas, reduction="none"
    ).sum(2)
    return {
        "teacher_logits": config.logits * logit_loss,
        "teacher_boxes": config.boxes * (weight * box_loss.view_as(weight)).sum() / total,
        "teacher_landmarks": config.landmarks * (weight * landmark_loss).sum() / total,
    }
