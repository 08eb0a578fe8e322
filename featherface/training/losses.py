"""The losses of a batch against its labels: class, box and landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from featherface.data.dataset import Batch
from featherface.models.outputs import HeadOutputs
from featherface.training.box_coding import (
    aligned_iou_loss,
    corners,
    decode_boxes,
    encode_landmarks,
    pairwise_iou,
)
from featherface.training.config import LossConfig
from featherface.training.matching import (
    BACKGROUND,
    IGNORED,
    ignore_doubtful,
    match_compensated,
    match_dynamic,
    match_retinaface,
)

HARD_NEGATIVES = 7
LEAST_FACES = 8.0


@dataclass(frozen=True)
class Targets:
    """What each anchor of a batch should say; ``B`` images of ``A`` anchors.

    Attributes:
        face: bool ``[B, A]``, the anchor answers for a face.
        counted: bool ``[B, A]``, the anchor's class takes part in the loss.
        boxes: ``[B, A, 4]``, of any value where ``face`` is false.
        landmarks: ``[B, A, 5, 2]``, likewise, and NaN where the label has none.
    """

    face: Tensor
    counted: Tensor
    boxes: Tensor
    landmarks: Tensor


@torch.no_grad()
def match_batch(
    outputs: HeadOutputs | None,
    anchors: Tensor,
    batch: Batch,
    matching: str = "dynamic",
    face_score: float = 0.5,
) -> Targets:
    """Match the faces of every crop of a batch with the anchors ``[A, 4]`` of its size.

    Only the dynamic matching looks at the ``outputs``.
    """
    boxes, crops, count = batch.boxes, batch.crops, len(batch.images)
    sure = batch.scores >= face_score
    iou = pairwise_iou(boxes, corners(anchors))
    if matching == "dynamic":
        if outputs is None:
            raise ValueError("the dynamic matching needs the student's outputs")
        matched = torch.full_like(outputs.logits, BACKGROUND, dtype=torch.long)
        predicted = decode_boxes(outputs.box_deltas, anchors)
        for crop in range(count):
            own = (sure & (crops == crop)).nonzero().squeeze(1)
            found = match_dynamic(anchors, boxes[own], outputs.logits[crop], predicted[crop])
            matched[crop, found >= 0] = own[found[found >= 0]]
    else:
        match = match_compensated if matching == "compensated" else match_retinaface
        matched = match(iou.masked_fill(~sure[:, None], -1), boxes, crops, count)
    matched = ignore_doubtful(matched, anchors, boxes, iou, crops, ~sure)
    # A batch without a face has nothing to gather, but every anchor needs some box.
    boxes = boxes if len(boxes) else boxes.new_ones(1, 4)
    landmarks = batch.landmarks if len(batch.landmarks) else batch.landmarks.new_zeros(1, 5, 2)
    face = matched > BACKGROUND
    index = matched.clamp_min(0)
    return Targets(face, matched != IGNORED, boxes[index], landmarks[index])


def label_losses(
    outputs: HeadOutputs, anchors: Tensor, targets: Targets, config: LossConfig
) -> dict[str, Tensor]:
    """Weighted scalars ``class``, ``box`` and ``landmarks``; they add up to the loss.

    Every anchor is computed and those without a face count nothing, so that no step waits for the
    number of faces.
    """
    face = targets.face
    predicted = decode_boxes(outputs.box_deltas, anchors)
    box_losses, iou = aligned_iou_loss(
        predicted.flatten(0, 1), targets.boxes.flatten(0, 1), config.box
    )
    box_losses, iou = box_losses.view_as(face), iou.view_as(face)
    good = iou.detach().clamp(0, 1)
    asked = face
    if config.classification == "ohem":
        small = anchors_up_to(anchors, config.class_largest)
        asked = face & small
        graded = anchors_up_to(anchors, config.quality_largest)
        worth = box_quality(good, config.quality_full)
        wanted = 1 - config.quality * graded * (1 - worth)
        class_losses = hard_negative_losses(
            outputs.logits, asked, targets.counted & small, config.least_negatives, wanted
        )
    else:
        alpha = 0.25 if config.classification == "focal" else None
        quality = torch.where(face, good if alpha is None else torch.ones_like(good), 0)
        class_losses = focal_loss(outputs.logits, quality, alpha).masked_fill(~targets.counted, 0)
        class_losses = class_losses.sum(1)
    known = face & torch.isfinite(targets.landmarks).flatten(2).all(2)
    landmark_losses = landmark_distance(
        outputs.landmark_deltas.flatten(0, 1),
        encode_landmarks(
            targets.landmarks.nan_to_num().flatten(0, 1), anchors.repeat(len(face), 1)
        ),
        config.landmark,
    ).view_as(face)
    return {
        "class": config.class_weight * a_face(class_losses, asked.sum(1), config.crop_balance),
        "box": config.box_weight * mean_where(face, box_losses),
        "landmarks": config.landmark_weight * mean_where(known, landmark_losses),
    }


def anchors_up_to(anchors: Tensor, largest: float) -> Tensor:
    """Bool ``[A]``: anchors of at most ``largest`` pixels, all of them for 0."""
    return anchors[:, 2] <= (largest or torch.inf)


def box_quality(iou: Tensor, full: float) -> Tensor:
    """``iou`` stretched about 0.5: 1 from ``full`` on, 0 from as far below 0.5; 1 leaves it.

    Ranking asks whether a box is good enough, and 0.5 is where the protocols draw the line.
    """
    return ((iou - 1 + full) / (2 * full - 1)).clamp(0, 1)


def mean_where(chosen: Tensor, losses: Tensor) -> Tensor:
    """The mean of ``losses`` over the true entries of ``chosen``, 0 if there are none."""
    return losses.masked_fill(~chosen, 0).sum() / chosen.sum().clamp_min(1)


def a_face(losses: Tensor, faces: Tensor, balance: float) -> Tensor:
    """The mean a face of ``losses`` ``[B]``, the sums over the faces ``[B]`` of each crop.

    A crowd has hundreds of faces and so nearly all of the mean. ``balance`` 1 gives every crop the
    same say, 0.5 one by the root of its faces; fewer than eight count as eight, lest an
    empty crop have more.
    """
    faces = faces.to(losses.dtype)
    if not balance:
        return losses.sum() / faces.sum().clamp_min(1)
    faces = faces.clamp_min(LEAST_FACES)
    share = faces.pow(-balance)
    return (share * losses).sum() / (share * faces).sum()


def focal_loss(logits: Tensor, target: Tensor, alpha: float | None = None) -> Tensor:
    """``|target - p|^2`` times cross entropy, elementwise.

    With targets of 0 and 1 this is the focal loss (Lin et al., ICCV 2017; ``alpha`` weighs the
    faces); with an IoU as the target, the quality focal loss (Li et al., NeurIPS 2020).
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = (target - logits.sigmoid()).square() * entropy
    if alpha is not None:
        loss = loss * torch.where(target > 0, alpha, 1 - alpha)
    return loss


def hard_negative_losses(
    logits: Tensor,
    face: Tensor,
    counted: Tensor,
    least_negatives: int = HARD_NEGATIVES,
    wanted: Tensor | float = 1.0,
) -> Tensor:
    """Cross entropy of the faces and of the hardest negatives, seven a face (OHEM): ``[B]`` sums.

    ``wanted``, a number or ``[B, A]``, is the score that a face's anchor should have. An image
    gives ``least_negatives`` at least: without faces it has no other say.
    """
    target = face.to(logits.dtype) * wanted
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    negatives = torch.where(counted & ~face, entropy, -1.0)
    limits = (HARD_NEGATIVES * face.sum(1)).clamp_min(least_negatives)
    ranks = negatives.detach().argsort(1, descending=True).argsort(1)
    hard = (ranks < limits[:, None]) & (negatives >= 0)
    return entropy.masked_fill(~(face | hard), 0).sum(1)


def landmark_distance(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    """Loss a face ``[P]`` of landmark deltas ``[P, 10]``.

    ``wing`` (Feng et al., CVPR 2018) grows steeply near zero, so small errors keep their weight.
    """
    if kind == "wing":
        width, curvature = 5.0, 1.0
        offset = width - width * torch.log1p(torch.tensor(width / curvature))
        distance = (predicted - target).abs()
        near = width * torch.log1p(distance / curvature)
        return torch.where(distance < width, near, distance - offset).sum(1)
    return functional.smooth_l1_loss(predicted, target, reduction="none").sum(1)
