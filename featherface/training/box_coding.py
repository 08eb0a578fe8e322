"""Anchor coding and overlap in PyTorch: twins of ``featherface.anchors`` and ``boxes``."""

from __future__ import annotations

import torch
from torch import Tensor

from featherface.anchors import CENTRE_VARIANCE, SIZE_VARIANCE


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Deltas ``[..., A, 4]`` against anchors ``[A, 4]`` to boxes x1, y1, x2, y2 in pixels."""
    centres = anchors[..., :2] + deltas[..., :2] * (CENTRE_VARIANCE * anchors[..., 2:])
    # Past e^4 a box is far larger than any picture, and its gradient would be as large.
    halves = 0.5 * anchors[..., 2:] * torch.exp((SIZE_VARIANCE * deltas[..., 2:]).clamp(-4, 4))
    return torch.cat([centres - halves, centres + halves], dim=-1)


def encode_landmarks(landmarks: Tensor, anchors: Tensor) -> Tensor:
    """Landmarks ``[N, 5, 2]`` in pixels against as many anchors to deltas ``[N, 10]``."""
    scale = CENTRE_VARIANCE * anchors[:, None, 2:]
    return ((landmarks - anchors[:, None, :2]) / scale).flatten(1)


def corners(anchors: Tensor) -> Tensor:
    """Anchors ``[A, 4]`` as centre and size to x1, y1, x2, y2."""
    halves = anchors[:, 2:] / 2
    return torch.cat([anchors[:, :2] - halves, anchors[:, :2] + halves], dim=1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair: ``[N, 4]`` and ``[M, 4]`` give ``[N, M]``."""
    # Axis by axis: a last dimension of two is slow on every device.
    across, down = (
        (
            torch.minimum(first[:, None, axis + 2], second[None, :, axis + 2])
            - torch.maximum(first[:, None, axis], second[None, :, axis])
        ).clamp_min(0)
        for axis in (0, 1)
    )
    overlap = across * down
    areas = [(b[:, 2:] - b[:, :2]).clamp_min(0).prod(1) for b in (first, second)]
    return overlap / (areas[0][:, None] + areas[1][None] - overlap).clamp_min(1e-9)


def aligned_iou_loss(
    predicted: Tensor, target: Tensor, kind: str = "eiou"
) -> tuple[Tensor, Tensor]:
    """Loss and IoU of ``[N, 4]`` boxes and their targets, both ``[N]``.

    ``giou``: Rezatofighi et al., CVPR 2019. ``eiou``: Zhang et al., Neurocomputing 2022, which
    adds the squared distances of centres, widths and heights to 1 - IoU.
    """
    sides = (
        torch.minimum(predicted[:, 2:], target[:, 2:])
        - torch.maximum(predicted[:, :2], target[:, :2])
    ).clamp_min(0)
    overlap = sides[:, 0] * sides[:, 1]  # the gradient of prod() waits for a GPU
    sizes_p, sizes_t = predicted[:, 2:] - predicted[:, :2], target[:, 2:] - target[:, :2]
    union = sizes_p[:, 0] * sizes_p[:, 1] + sizes_t[:, 0] * sizes_t[:, 1] - overlap
    iou = overlap / union.clamp_min(1e-9)
    hull = torch.maximum(predicted[:, 2:], target[:, 2:]) - torch.minimum(
        predicted[:, :2], target[:, :2]
    )
    if kind == "giou":
        area = (hull[:, 0] * hull[:, 1]).clamp_min(1e-9)
        return 1 - iou + (area - union) / area, iou
    squared_hull = hull.square().clamp_min(1e-9)
    centres = (predicted[:, :2] + predicted[:, 2:] - target[:, :2] - target[:, 2:]) / 2
    distance = centres.square().sum(1) / squared_hull.sum(1)
    shape = ((sizes_p - sizes_t).square() / squared_hull).sum(1)
    return 1 - iou + distance + shape, iou
