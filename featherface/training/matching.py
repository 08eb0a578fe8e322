"""Which anchor answers for which face: RetinaFace's fixed matching, S3FD's and a dynamic one.

All return an index an anchor: ``>= 0`` the face it answers for, ``BACKGROUND`` or ``IGNORED``.
Doubtful faces (score under ``face_score``) match nothing; the anchors over them are ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featherface.training.box_coding import corners, pairwise_iou

BACKGROUND, IGNORED = -1, -2


def match_retinaface(anchors: Tensor, boxes: Tensor, iou_threshold: float = 0.35) -> Tensor:
    """RetinaFace (Deng et al., CVPR 2020): every anchor of IoU 0.35 and more, and each face's best.

    Args:
        anchors: ``[A, 4]`` as centre and size. boxes: ``[N, 4]`` as corners.

    Returns:
        int64 ``[A]``: the face's index or ``BACKGROUND``.
    """
    matched = anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.long)
    if len(boxes) == 0:
        return matched
    iou = pairwise_iou(boxes, corners(anchors))
    best_iou, best_face = iou.max(0)
    matched = torch.where(best_iou >= iou_threshold, best_face, matched)
    # The smallest face claims its anchor last, as it has the fewest others.
    order = (boxes[:, 2:] - boxes[:, :2]).prod(1).argsort(descending=True)
    best_anchor = iou.argmax(1)
    matched[best_anchor[order]] = order
    return matched


def match_compensated(
    anchors: Tensor, boxes: Tensor, least: int = 3, iou_threshold: float = 0.1
) -> Tensor:
    """RetinaFace's matching, and more anchors for the faces that it gives fewer than ``least``.

    A face of 10 pixels overlaps no anchor by 0.35 unless it lies right inside one. Such faces take
    their best free anchors of IoU ``iou_threshold`` and more until they have ``least`` (scale
    compensation, S3FD, Zhang et al., ICCV 2017), so that the cells around learn their boxes too.

    Args and return value as in :func:`match_retinaface`.
    """
    matched = match_retinaface(anchors, boxes)
    if len(boxes) == 0:
        return matched
    iou = pairwise_iou(boxes, corners(anchors))
    best = iou.topk(min(2 * least, len(anchors)), dim=1)
    free = (best.values >= iou_threshold) & (matched[best.indices] == BACKGROUND)
    owned = torch.bincount(matched[matched > BACKGROUND], minlength=len(boxes))
    wanted = free & (free.cumsum(1) <= (least - owned)[:, None])
    faces, columns = wanted.nonzero(as_tuple=True)
    # An anchor that several faces want goes to the one it overlaps most: that one is written last.
    order = best.values[faces, columns].argsort()
    matched[best.indices[faces, columns][order]] = faces[order]
    return matched


def match_dynamic(
    anchors: Tensor,
    boxes: Tensor,
    logits: Tensor,
    predicted: Tensor,
    radius: float = 1.5,
    candidates: int = 10,
    box_weight: float = 3.0,
) -> Tensor:
    """Dynamic top-k after SimOTA (YOLOX, Ge et al., 2021): faces pick their cheapest anchors.

    An anchor may answer for a face when its centre lies within ``radius`` cells of the face's
    centre and its size is within a factor of four. The cost is cross entropy plus ``box_weight``
    times -log IoU; a face takes as many anchors as the sum of its ten best overlaps, at least one;
    an anchor that two faces want goes to the cheaper.

    Args:
        logits: ``[A]``. predicted: decoded boxes ``[A, 4]``; both without gradient.

    Returns:
        int64 ``[A]``: the face's index or ``BACKGROUND``.
    """
    matched = anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.long)
    if len(boxes) == 0:
        return matched
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp_min(1e-6).sqrt()
    # Two sizes a stride: 16 and 32 pixels stand on stride 8, so a stride is the larger over four.
    octave = torch.log2(anchors[:, 2] / 16).floor()
    stride = 8 * 2.0 ** torch.div(octave, 2, rounding_mode="floor")
    across = (centres[:, None, 0] - anchors[None, :, 0]).abs()
    down = (centres[:, None, 1] - anchors[None, :, 1]).abs()
    offsets = torch.maximum(across, down) / stride[None]
    ratio = (sizes.log2()[:, None] - anchors[None, :, 2].log2()).abs()
    # A face smaller than a quarter of the smallest anchor still may take the smallest.
    smallest = anchors[None, :, 2] <= 16
    allowed = (offsets <= radius) & ((ratio <= 2.0) | (smallest & (sizes[:, None] < 16)))
    used = allowed.any(0).nonzero().squeeze(1)
    if len(used) == 0:
        return matched
    allowed = allowed[:, used]
    iou = pairwise_iou(boxes, predicted[used])
    class_cost = torch.nn.functional.softplus(-logits[used])[None].expand_as(iou)
    cost = class_cost + box_weight * -(iou.clamp_min(1e-6)).log()
    # Far centres and far sizes cost a little, so that an untrained net begins with sensible pairs.
    cost = cost + offsets[:, used].square() + ratio[:, used] + (~allowed) * 1e6
    top = torch.where(allowed, iou, 0).topk(min(candidates, len(used)), dim=1).values
    wanted = top.sum(1).round().long().clamp_min(1)
    wanted = torch.minimum(wanted, allowed.sum(1))
    cheap = cost.topk(min(candidates, len(used)), dim=1, largest=False).indices
    taken = torch.arange(cheap.shape[1], device=cost.device) < wanted[:, None]
    chosen = torch.zeros_like(allowed).scatter_(1, cheap, taken) & allowed
    cheapest = torch.where(chosen, cost, torch.inf).min(0)
    winners = torch.isfinite(cheapest.values)
    matched[used[winners]] = cheapest.indices[winners]
    return matched


def ignore_doubtful(
    matched: Tensor, anchors: Tensor, doubtful: Tensor, iou_threshold: float = 0.3
) -> Tensor:
    """Background anchors over a doubtful box ``[M, 4]`` become ``IGNORED``.

    Over it: an IoU of ``iou_threshold``, its best anchor, or a centre inside the box at up to
    four times its size (tiny boxes overlap no anchor well).
    """
    if len(doubtful) == 0:
        return matched
    iou = pairwise_iou(doubtful, corners(anchors))
    over = (iou >= iou_threshold).any(0)
    over[iou.argmax(1)] = True
    centres = anchors[:, :2]
    margin = 4.0
    inside = (
        (centres[None] >= doubtful[:, None, :2] - margin)
        & (centres[None] <= doubtful[:, None, 2:] + margin)
    ).all(2)
    sizes = (doubtful[:, 2:] - doubtful[:, :2]).prod(1).clamp_min(1e-6).sqrt()
    similar = (sizes[:, None] / anchors[None, :, 2]).log2().abs() <= 2
    over |= (inside & similar).any(0)
    return torch.where(over & (matched == BACKGROUND), IGNORED, matched)
