"""How anchors lie over a photo, and how many of them answer for a face of each size."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from featherface.analysis.figures import COLOURS, SOFT, V1_COLOUR, V2_COLOUR, new_figure
from featherface.anchors import ANCHOR_SIZES, STRIDES, make_anchors
from featherface.boxes import box_iou
from featherface.data.labelled_photo import FACE_SCORE, LabelledPhoto
from featherface.images import padded_size
from featherface.training.box_coding import corners, pairwise_iou
from featherface.training.matching import BACKGROUND, match_retinaface


def anchors_of(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Anchors ``[A, 4]`` (centre, size) of an image padded to multiples of 32."""
    width, height = padded_size(image.shape[1], image.shape[0])
    return make_anchors(height, width)


def matching_plot(photo: LabelledPhoto) -> Figure:
    """The photo with every anchor that RetinaFace's matching gives to a face, stride by stride."""
    anchors = anchors_of(photo.image)
    boxes = photo.boxes[photo.scores >= FACE_SCORE]
    faces = torch.tensor(boxes)
    iou = pairwise_iou(faces, corners(torch.tensor(anchors)))
    only_crop = torch.zeros(len(faces), dtype=torch.long)
    matched = match_retinaface(iou, faces, only_crop, 1)[0].numpy()
    figure, axes = new_figure(1, 3, 11.0, 4.2)
    for plot, stride, sizes, colour in zip(axes[0], STRIDES, ANCHOR_SIZES, COLOURS, strict=False):
        plot.imshow(photo.image)
        plot.axis("off")
        chosen = (matched > BACKGROUND) & np.isin(anchors[:, 2], sizes)
        for x, y, width, height in anchors[chosen]:
            corner = (x - width / 2, y - height / 2)
            plot.add_patch(Rectangle(corner, width, height, fill=False, ec=colour, lw=0.9))
        for box in boxes:
            corner, extent = box[:2], box[2:] - box[:2]
            plot.add_patch(Rectangle(tuple(corner), *extent, fill=False, ec="white", lw=1.4))
        names = " and ".join(str(size) for size in sizes)
        plot.set_title(
            f"stride {stride}, {names} pixels: {chosen.sum()} anchors", fontsize=10, color=SOFT
        )
    return figure


def coverage_plot(side: int = 640, faces: int = 40, seed: int = 0) -> Figure:
    """For faces of each size at random places: best overlap, and anchors of IoU 0.35 and more."""
    rng = np.random.default_rng(seed)
    anchors = make_anchors(side, side)
    boxes_of_anchors = np.concatenate(
        [anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], axis=1
    )
    sizes = np.geomspace(6, 512, 24)
    best, many = [], []
    for size in sizes:
        width, height = 0.88 * size, size / 0.88  # faces are a little taller than wide
        room = np.maximum(1, side - np.array([width, height]))
        corners = rng.random((faces, 2)) * room
        boxes = np.concatenate([corners, corners + np.array([width, height])], axis=1)
        overlaps = box_iou(boxes.astype(np.float32), boxes_of_anchors)
        best.append(overlaps.max(1))
        many.append(np.maximum((overlaps >= 0.35).sum(1), 1))
    figure, axes = new_figure(1, 2, 10.5, 3.6)
    for plot, values, colour, name in zip(
        axes[0],
        (best, many),
        (V1_COLOUR, V2_COLOUR),
        ("best overlap (IoU) with an anchor", "anchors that answer for a face"),
        strict=True,
    ):
        low, middle, high = np.quantile(np.array(values), [0.1, 0.5, 0.9], axis=1)
        plot.fill_between(sizes, low, high, color=colour, alpha=0.2, lw=0)
        plot.plot(sizes, middle, color=colour)
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        plot.set(xlabel="face size, pixels", ylabel=name)
        for size in (size for group in ANCHOR_SIZES for size in group):
            plot.axvline(size, color=SOFT, lw=0.8, ls="--", alpha=0.6)
    axes[0, 0].axhline(0.35, color=SOFT, lw=1)
    axes[0, 0].set_ylim(0, 1)
    return figure
