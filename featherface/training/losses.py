"""The losses of a batch against its labels: class, box and landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from featherface.models.outputs import HeadOutputs
from featherface.training.box_coding import aligned_iou_loss, decode_boxes, encode_landmarks
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
        boxes: ``[P, 4]`` of the ``P`` true entries of ``face``, in their order.
        landmarks: ``[P, 5, 2]``, NaN where the label has none.
    """

    face: Tensor
    counted: Tensor
    boxes: Tensor
    landmarks: Tensor


@torch.no_grad()
def match_batch(
    outputs: HeadOutputs,
    anchors: Tensor,
    boxes: list[Tensor],
    scores: list[Tensor],
    landmarks: list[Tensor],
    matching: str = "dynamic",
    face_score: float = 0.5,
) -> Targets:
    """Match every image of a batch. Lists hold ``[N, 4]``, ``[N]`` and ``[N, 5, 2]`` an image."""
    predicted = decode_boxes(outputs.box_deltas, anchors)
    faces, counted, chosen_boxes, chosen_landmarks = [], [], [], []
    for i, (image_boxes, image_scores) in enumerate(zip(boxes, scores, strict=True)):
        sure = image_scores >= face_score
        if matching == "dynamic":
            matched = match_dynamic(anchors, image_boxes[sure], outputs.logits[i], predicted[i])
        elif matching == "compensated":
            matched = match_compensated(anchors, image_boxes[sure])
        else:
            matched = match_retinaface(anchors, image_boxes[sure])
        matched = ignore_doubtful(matched, anchors, image_boxes[~sure])
        face = matched > BACKGROUND
        faces.append(face)
        counted.append(matched != IGNORED)
        chosen_boxes.append(image_boxes[sure][matched[face]])
        chosen_landmarks.append(landmarks[i][sure][matched[face]])
    return Targets(
        torch.stack(faces),
        torch.stack(counted),
        torch.cat(chosen_boxes),
        torch.cat(chosen_landmarks),
    )


def label_losses(
    outputs: HeadOutputs, anchors: Tensor, targets: Targets, config: LossConfig
) -> dict[str, Tensor]:
    """Weighted scalars ``class``, ``box`` and ``landmarks``; they add up to the loss."""
    face = targets.face
    positives = face.sum().clamp_min(1).to(outputs.logits.dtype)
    place = anchors.expand(*face.shape, 4)[face]
    predicted = decode_boxes(outputs.box_deltas[face], place)
    box_losses, iou = aligned_iou_loss(predicted, targets.boxes, config.box)
    quality = torch.zeros_like(outputs.logits)
    quality[face] = (
        iou.detach().clamp(0, 1).to(quality.dtype)
        if config.classification == "quality_focal"
        else torch.ones_like(iou, dtype=quality.dtype)
    )
    if config.classification == "ohem":
        class_losses = hard_negative_losses(
            outputs.logits, face, targets.counted, config.least_negatives
        )
    else:
        alpha = 0.25 if config.classification == "focal" else None
        class_losses = focal_loss(outputs.logits, quality, alpha).masked_fill(~targets.counted, 0)
        class_losses = class_losses.sum(1)
    has_landmarks = torch.isfinite(targets.landmarks).flatten(1).all(1)
    landmark_loss = landmark_distance(
        outputs.landmark_deltas[face][has_landmarks],
        encode_landmarks(targets.landmarks[has_landmarks], place[has_landmarks]),
        config.landmark,
    )
    return {
        "class": config.class_weight * a_face(class_losses, face.sum(1), config.crop_balance),
        "box": config.box_weight * box_losses.sum() / positives,
        "landmarks": config.landmark_weight
        * landmark_loss.sum()
        / has_landmarks.sum().clamp_min(1),
    }


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
    logits: Tensor, face: Tensor, counted: Tensor, least_negatives: int = HARD_NEGATIVES
) -> Tensor:
    """Cross entropy of the faces and of the hardest negatives, seven a face (OHEM): ``[B]`` sums.

    An image gives ``least_negatives`` at least: without faces it has no other say.
    """
    entropy = functional.binary_cross_entropy_with_logits(
        logits, face.to(logits.dtype), reduction="none"
    )
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
