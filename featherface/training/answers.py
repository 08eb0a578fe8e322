"""Answers of a detector with V2's anchors, as maps ``[B, 30, H, W]`` of its predictors.

The channels of one are those of two anchors: two logits, eight box deltas, twenty landmark deltas.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from featherface.anchors import ANCHORS_PER_CELL, STRIDES, of_stride
from featherface.faces import MIRRORED_LANDMARKS
from featherface.models.modules.grouped_heads import TASK_CHANNELS, VALUES
from featherface.models.outputs import HeadOutputs

BOXES = sum(TASK_CHANNELS[:2])  # where the boxes' channels end
LANDMARKS_SHARE = 0.3
LEAST_FACES = 2.0  # of a batch of crops, so that one without a face has a mean


def as_maps(outputs: HeadOutputs, images: Tensor) -> list[Tensor]:
    """A teacher's answers about ``images`` as a predictor of V2 gives them, ``[B, 30, H, W]`` a
    stride; its logits ``[B, A, 2]`` are those of background and face.
    """
    height, width = images.shape[2:]
    sizes = [(height // stride, width // stride) for stride in STRIDES]
    margin = outputs.logits[..., 1] - outputs.logits[..., 0]
    values = (margin[..., None], outputs.box_deltas, outputs.landmark_deltas)
    by_task = [x.split([h * w * ANCHORS_PER_CELL for h, w in sizes], 1) for x in values]
    return [
        torch.cat([x.reshape(len(x), h, w, -1).permute(0, 3, 1, 2) for x in level], 1)
        for (h, w), *level in zip(sizes, *by_task, strict=True)
    ]


def share_of_channels(shares: Sequence[float], level: int, like: Tensor) -> Tensor:
    """The shares of a stride's anchors, as its predictor's channels lie, ``[1, 30, 1, 1]``."""
    own = like.new_tensor(of_stride(shares, level))
    return torch.cat([own.repeat_interleave(n) for n in VALUES])[None, :, None, None]


def mirrored(answers: Tensor) -> Tensor:
    """What is said of the mirrored images, ``[B, 30, H, W]``, if ``answers`` are of the images."""
    parts = answers.flip(-1).split(TASK_CHANNELS, 1)
    logits, boxes, points = (
        x.unflatten(1, (ANCHORS_PER_CELL, n)) for x, n in zip(parts, VALUES, strict=True)
    )
    across = answers.new_tensor([-1.0, 1.0]).view(2, 1, 1)
    centres, sizes = boxes.split(2, 2)
    points = points.unflatten(2, (-1, 2))[:, :, list(MIRRORED_LANDMARKS)] * across
    values = (logits, torch.cat([centres * across, sizes], 2), points)
    return torch.cat([x.flatten(1, -3) for x in values], 1)


def answers_distance(made: Tensor, wanted: Tensor, boxes_share: float = 1.0) -> Tensor:
    """How far a predictor's map ``[B, 30, H, W]`` is from another's.

    The class by its divergence, boxes (``boxes_share`` of it) and landmarks as far as ``wanted`` is
    sure of a face; the mean over faces, to which a batch without one adds little.
    """
    classes = ANCHORS_PER_CELL
    logits, target = made[:, :classes], wanted[:, :classes]
    sure = target.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits
    divergence = entropy(logits, sure, reduction="none") - entropy(target, sure, reduction="none")
    shape = (len(made), ANCHORS_PER_CELL, -1, *made.shape[2:])

    def of_faces(part: slice) -> Tensor:
        ours, theirs = (x[:, part].reshape(shape) for x in (made, wanted))
        apart = functional.smooth_l1_loss(ours, theirs, reduction="none").mean(2)
        return (apart * sure).sum()

    total = divergence.sum() + boxes_share * of_faces(slice(classes, BOXES))
    total = total + LANDMARKS_SHARE * of_faces(slice(BOXES, None))
    return total / (sure.sum() + LEAST_FACES)
