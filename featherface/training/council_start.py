"""V2 learns what a council of detectors says of crops: of every anchor, by no label.

All of it learns, its first layers slowly. Masks are drawn after the council has looked, so the
student is to say of a masked face what the council says of the bare one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.dataset import Batch
from featherface.data.drawn_masks import draw_masks
from featherface.data.labelled_photo import FACE_SCORE, Photos
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training.answers import answers_distance, as_maps, mirrored
from featherface.training.config import CouncilConfig, RunConfig
from featherface.training.council import open_member, said_together
from featherface.training.distillation import with_two_logits
from featherface.training.joined_start import parts_behind
from featherface.training.kept_crops import as_input, chosen_crops, crops_to_keep
from featherface.training.matrix_steps import MatrixSteps, Part
from featherface.training.short_run import learn, learning_alone, values_of
from featherface.training.shortened_start import parts_of_way

LEARNING_RATE = 4e-4
WAY_SHARE, FIRST_SHARE = 0.5, 0.25  # of the rate: V1's way, and all before stride 8
BOXES_SHARE = 2.0
SHOWN_MIRRORED = 0.5
SHOWN_MASKED, FACES_MASKED = 0.5, 0.35  # crops in which masks are drawn, and on which faces
PIXELS_A_STEP = 8 * 320 * 320


def learn_from_council(
    fabric: Fabric,
    model: FeatherFaceV2,
    council: CouncilConfig,
    config: RunConfig,
    store: Photos,
    indices: np.ndarray,
    report: Callable[[str], None],
) -> None:
    """Teach ``model``, in place, by what ``council`` says. A crop of 320 pixels takes 0.4 MB.

    Raises:
        WeightsError: a member's file is missing, corrupt or has other outputs.
    """
    members = [open_member(member) for member in council.members]
    batches = crops_to_keep(fabric, config, store, indices, council.crops, seed=51)
    seen = [
        (batch, [x.half() for x in said_together(members, as_input(batch.images))])
        for batch in batches
    ]
    steps = council.passes * sum(-(-len(b.images) // crops_a_step(b)) for b in batches)
    rng = np.random.default_rng((config.seed, fabric.global_rank))

    def loss_at(_: int) -> Tensor:
        """How far what the student says of some crops is from what the council said."""
        batch, said = seen[rng.integers(len(seen))]
        chosen = np.sort(rng.permutation(len(batch.images))[: crops_a_step(batch)])
        images = masked(chosen_crops(batch, chosen), rng)
        wanted = [level[chosen].float() for level in said]
        if rng.random() < SHOWN_MIRRORED:
            images, wanted = images.flip(-1), [mirrored(level) for level in wanted]
        images = as_input(images)
        made = as_maps(with_two_logits(model.forward_with_features(images)[0]), images)
        losses = [answers_distance(*pair, BOXES_SHARE) for pair in zip(made, wanted, strict=True)]
        return torch.stack(losses).sum()

    optimiser = MatrixSteps(parts_of(model))
    with learning_alone(model, optimiser.values):
        clip = config.optimiser.clip_norm
        before, after = learn(fabric, optimiser, steps, loss_at, LEARNING_RATE, clip)
    report(f"Council: {steps:,} steps, loss {before:.3f} to {after:.3f}")


def crops_a_step(batch: Batch) -> int:
    """So many that steps cost about the same, whatever the size of the crops."""
    size = batch.images.shape[2] * batch.images.shape[3]
    return min(len(batch.images), max(2, PIXELS_A_STEP // size))


def parts_of(model: FeatherFaceV2) -> list[Part]:
    """All values that learn: the ends, V1's way, and what lies before either."""
    ends: list[nn.Module] = [model.context, model.heads]
    if model.branch is not None:
        ends += parts_behind(model.branch)
    at_end, on_way = values_of(ends), values_of(parts_of_way(model))
    known = {id(p) for p in (*at_end, *on_way)}
    before = [p for p in model.parameters() if id(p) not in known]
    return [Part(1.0, at_end), Part(WAY_SHARE, on_way), Part(FIRST_SHARE, before)]


def masked(batch: Batch, rng: np.random.Generator) -> Tensor:
    """The crops' images, uint8 ``[B, 3, S, S]``, with masks on some faces of some of them."""
    images = batch.images.clone()
    for number, image in enumerate(images):
        if rng.random() >= SHOWN_MASKED:
            continue
        own = (batch.crops == number) & (batch.scores >= FACE_SCORE)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        boxes, landmarks = batch.boxes[own].cpu().numpy(), batch.landmarks[own].cpu().numpy()
        drawn = draw_masks(pixels, boxes, landmarks, FACES_MASKED, rng)
        image.copy_(torch.from_numpy(drawn).permute(2, 0, 1))
    return images
