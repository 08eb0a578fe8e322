"""Which anchor answers for which face: RetinaFace's fixed matching, S3FD's and a dynamic one.

All return an index an anchor: ``>= 0`` the face it answers for, ``BACKGROUND`` or ``IGNORED``.
Doubtful faces (score under ``face_score``) match nothing; the anchors over them are ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featherface.training.box_coding import pairwise_iou

BACKGROUND, IGNORED = -1, -2


def match_retinaface(
    iou: Tensor, boxes: Tensor, crops: Tensor, count: int, iou_threshold: float = 0.35
) -> Tensor:
    """RetinaFace (Deng et al., CVPR 2020): every anchor of IoU 0.35 and more, and each face's best.

    The faces of a batch stand in one list, so that no step waits for a number of faces: a GPU is
    then never idle between two crops.

    Args:
        iou: ``[N, A]`` of the ``N`` faces of all crops and the anchors of their own crop; rows of
            -1 are faces that match nothing.
        boxes: ``[N, 4]`` of the faces. crops: int64 ``[N]``, the crop that each lies on.
        count: how many crops there are.

    Returns:
        int64 ``[count, A]``: the face's index in the list or ``BACKGROUND``.
    """
    faces, anchors = iou.shape
    matched = crops.new_full((count, anchors), BACKGROUND)
    if not faces:
        return matched
    # Overlap and face in one whole number, so that the largest brings its face along.
    keys = (iou.float().view(torch.int32).long() << 32) + torch.arange(faces, device=iou.device)[
        :, None
    ]
    keys = keys.masked_fill(iou < iou_threshold, BACKGROUND)
    best = matched.scatter_reduce(0, crops[:, None].expand(-1, anchors), keys, "amax")
    matched = torch.where(best > BACKGROUND, best & (2**32 - 1), BACKGROUND)
    # The smallest face claims its anchor last, as it has the fewest others.
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    reach, best_anchor = iou.max(1)
    return claim(matched, crops * anchors + best_anchor, -areas, reach >= 0)


def claim(matched: Tensor, places: Tensor, urgency: Tensor, valid: Tensor) -> Tensor:
    """``matched`` with anchors given to the faces that claim them, to the most urgent of several.

    Args:
        places: int64 ``[N, ...]``, places in the flattened ``matched``, one row a face.
        urgency, valid: the same shape, or ``[N]`` with one place a face.
    """
    order = urgency.flatten().argsort(stable=True)
    ranks = order.argsort().masked_fill(~valid.flatten(), BACKGROUND)
    claims = matched.new_full((matched.numel(),), BACKGROUND)
    claims = claims.scatter_reduce(0, places.flatten(), ranks, "amax").view_as(matched)
    faces = order[claims.clamp_min(0)] // (places.numel() // len(places))
    return torch.where(claims > BACKGROUND, faces, matched)


def match_compensated(
    iou: Tensor,
    boxes: Tensor,
    crops: Tensor,
    count: int,
    least: int = 3,
    iou_threshold: float = 0.1,
) -> Tensor:
    """RetinaFace's matching, and more anchors for the faces that it gives fewer than ``least``.

    A face of 10 pixels overlaps no anchor by 0.35 unless it lies right inside one. Such faces take
    their best free anchors of IoU ``iou_threshold`` and more until they have ``least`` (scale
    compensation, S3FD, Zhang et al., ICCV 2017), so that the cells around learn their boxes too.

    Args and return value as in :func:`match_retinaface`.
    """
    matched = match_retinaface(iou, boxes, crops, count)
    faces, anchors = iou.shape
    if not faces:
        return matched
    best = iou.topk(min(2 * least, anchors), dim=1)
    places = crops[:, None] * anchors + best.indices
    free = (best.values >= iou_threshold) & (matched.flatten()[places] == BACKGROUND)
    owners = matched.flatten() - BACKGROUND
    owned = owners.new_zeros(faces + 1).scatter_add(0, owners, torch.ones_like(owners))[1:]
    wanted = free & (free.cumsum(1) <= (least - owned)[:, None])
    # An anchor that several faces want goes to the one it overlaps most.
    return claim(matched, places, best.values, wanted)


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
    matched: Tensor,
    anchors: Tensor,
    boxes: Tensor,
    iou: Tensor,
    crops: Tensor,
    doubtful: Tensor,
    iou_threshold: float = 0.3,
) -> Tensor:
    """Background anchors over the ``doubtful`` (bool ``[N]``) of ``boxes`` become ``IGNORED``.

    Over it: an IoU of ``iou_threshold``, its best anchor, or a centre inside the box at up to
    four times its size (tiny boxes overlap no anchor well). Other arguments as in
    :func:`match_retinaface`, with the overlaps of all faces.
    """
    if not len(boxes):
        return matched
    margin = 4.0
    x, y = anchors[:, 0], anchors[:, 1]
    x1, y1, x2, y2 = boxes.unbind(1)
    over = (x >= (x1 - margin)[:, None]) & (x <= (x2 + margin)[:, None])
    over &= (y >= (y1 - margin)[:, None]) & (y <= (y2 + margin)[:, None])
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp_min(1e-6).sqrt().log2()
    over &= (sizes[:, None] - anchors[:, 2].log2()).abs() <= 2
    over |= iou >= iou_threshold
    over.scatter_(1, iou.argmax(1, keepdim=True), True)
    over &= doubtful[:, None]
    some = torch.zeros_like(matched, dtype=iou.dtype).index_add_(0, crops, over.to(iou.dtype)) > 0
    return torch.where(some & (matched == BACKGROUND), IGNORED, matched)
