"""Do scores mean what they say? The temperature that makes them, and how far off they are.

A score of 0.3 should be a face three times in ten. Dividing every logit by one temperature (Guo et
al., *On Calibration of Modern Neural Networks*, ICML 2017) changes neither the order of the scores
nor which of them exceed 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherface.errors import DataError

EDGE = 1e-7
BINS = 10


@dataclass(frozen=True, eq=False)
class Reliability:
    """Per bin of ten equal ones: ``score`` and ``precision`` float64 ``[10]`` (NaN where empty),
    ``count`` int64 ``[10]``; ``error`` is the expected calibration error, from 0 to 1."""

    score: NDArray[np.float64]
    precision: NDArray[np.float64]
    count: NDArray[np.int64]
    error: float


def fit_temperature(scores: NDArray[np.floating], hits: NDArray[np.bool_]) -> float:
    """The temperature with the least negative log-likelihood, between 0.2 and 5.

    ``scores`` ``[N]`` from 0 to 1 and whether each detection is a face, bool ``[N]``.

    Raises:
        DataError: no detection, or hits only, or none.
    """
    if not len(scores) or bool(np.all(hits)) or not bool(np.any(hits)):
        raise DataError(
            f"{len(scores)} detections, {int(np.sum(hits))} of them faces: both faces and false "
            "detections are needed to fit a temperature; give more photos, or a lower score"
        )
    logits = _logits(scores)
    signed = np.where(hits, -logits, logits)
    # The loss is convex in 1 / T, so two steps of a grid find its only minimum.
    grid = np.geomspace(0.2, 5.0, 65)
    for _ in range(2):
        losses = [np.logaddexp(0, signed / temperature).mean() for temperature in grid]
        best = int(np.argmin(losses))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        temperature = float(grid[best])
        grid = np.linspace(low, high, 65)
    return temperature


def at_temperature(scores: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """The scores that logits divided by ``temperature`` give, float64 ``[N]``."""
    return np.asarray(1 / (1 + np.exp(-_logits(scores) / temperature)), np.float64)


def reliability(scores: NDArray[np.floating], hits: NDArray[np.bool_]) -> Reliability:
    """Mean score and share of faces in ten bins of the score."""
    bins = np.minimum((np.asarray(scores, np.float64) * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    filled = np.where(count > 0, count, np.nan)
    score = np.bincount(bins, scores, BINS) / filled
    precision = np.bincount(bins, hits, BINS) / filled
    error = float(np.nansum(np.abs(score - precision) * count) / max(len(scores), 1))
    return Reliability(score, precision, count.astype(np.int64), error)


def _logits(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    inside = np.clip(np.asarray(scores, np.float64), EDGE, 1 - EDGE)
    return np.asarray(np.log(inside / (1 - inside)), np.float64)
