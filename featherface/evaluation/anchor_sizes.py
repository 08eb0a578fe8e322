"""How sure each size of anchor is beside the others, as another detector has it.

What counts as a face is a matter of who labels: people leave out many tiny faces and blurred ones
that a detector finds. A detector that learned from a data set's own labels, as V1 did from WIDER
FACE's, says less of what its labellers left out. One shift for each size of anchor takes that over
and leaves the order among anchors of one size as it is. No label is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from featherface.anchors import ANCHOR_SIZES, SIZES, make_anchors
from featherface.data.enlarged import stored_small
from featherface.data.labelled_photo import LabelledPhoto
from featherface.errors import ConfigError, DataError
from featherface.evaluation.calibration import logits_of, newton

LEAST = 0.5  # score from which on an anchor is asked about
LEAST_ANCHORS = 30  # of one size, to fit its shift
CROWD = "crowd"  # the source of photos whose faces are small however they are shown


class Network(Protocol):
    """A detector that tells what its network says, such as ``FaceDetector``."""

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]: ...

    def run_network(
        self, blob: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...


class Sizes(NamedTuple):
    """Anchors that one detector is sure of: its scores and the other's, float64 ``[N]``, and which
    size each has, int64 ``[N]`` from 0 (16 pixels) to 5 (512)."""

    scores: NDArray[np.float64]
    others: NDArray[np.float64]
    sizes: NDArray[np.int64]


def seen_by_both(ours: Network, other: Network, photos: Iterable[LabelledPhoto]) -> Sizes:
    """What two networks say of ``photos``, as they are and, but for crowds, as they are when they
    were stored small and are shown enlarged, where the largest anchors have faces as well.

    Raises:
        ConfigError: they have not the same anchors.
    """
    seen: list[Sizes] = []
    for photo in photos:
        for view in [photo] if photo.source == CROWD else [photo, stored_small(photo)]:
            blob = ours.prepare(np.ascontiguousarray(view.image))
            scores, others = (one.run_network(blob)[0][0] for one in (ours, other))
            if len(scores) != len(others):
                raise ConfigError(
                    f"{len(others)} anchors where V2 has {len(scores)}: give a detector with V2's "
                    "anchors, such as V1"
                )
            seen.append(sure_anchors(scores, others, *blob.shape[2:]))
    return Sizes(*(np.concatenate(x) for x in zip(*seen, strict=True)))


def sure_anchors(
    scores: NDArray[np.floating], others: NDArray[np.floating], height: int, width: int
) -> Sizes:
    """The anchors of ``LEAST`` and more, of two networks' ``[A]`` scores for one image of
    ``height`` x ``width`` pixels, padded."""
    sizes = np.searchsorted(np.concatenate(ANCHOR_SIZES), make_anchors(height, width)[:, 2])
    sure = np.asarray(scores) >= LEAST
    return Sizes(
        np.asarray(scores, np.float64)[sure], np.asarray(others, np.float64)[sure], sizes[sure]
    )


def fit_size_shifts(seen: Sizes) -> NDArray[np.float64]:
    """What to add to the logits of each size, float64 ``[6]`` with a mean of 0.

    Logistic regression of the other's scores on the logits: one slope, and an offset a size. A size
    of few anchors has no shift of its own.

    Raises:
        DataError: fewer than two sizes have enough anchors.
    """
    fitted = [k for k in range(SIZES) if (seen.sizes == k).sum() >= LEAST_ANCHORS]
    if len(fitted) < 2:
        raise DataError(
            f"{len(seen.sizes)} anchors have a score of {LEAST} and more, which are too few to "
            "tell one size from another; give more photos"
        )
    kept = np.isin(seen.sizes, fitted)
    of_size = seen.sizes[kept][:, None] == np.array(fitted)
    inputs = np.concatenate([logits_of(seen.scores[kept])[:, None], of_size], 1)
    start = np.eye(1 + len(fitted))[0]
    limits = np.array([[0.05, *[-20.0] * len(fitted)], [5.0, *[20.0] * len(fitted)]])
    line = newton(inputs, 0.0, seen.others[kept], start, limits)
    shifts = np.zeros(SIZES)
    shifts[fitted] = line[1:] / line[0]
    shifts[fitted] -= shifts[fitted].mean()
    return shifts
