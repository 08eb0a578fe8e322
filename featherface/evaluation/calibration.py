"""Do scores mean what they say? The temperature and shift that make them, and how far off they are.

A score of 0.3 should be a face three times in ten. Dividing every logit by one temperature (Guo et
al., *On Calibration of Modern Neural Networks*, ICML 2017) and adding one shift (Platt, 1999) keeps
the order of the scores.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherface.anchors import ANCHORS_PER_CELL, STRIDES
from featherface.errors import DataError

EDGE = 1e-7
BINS = 10
STEPS = 30
HALVINGS = 20
LINE_RANGE = np.array([[0.2, -5.0], [5.0, 5.0]])  # of slope and shift


@dataclass(frozen=True, eq=False)
class Reliability:
    """Per bin of ten equal ones: ``score`` and ``precision`` float64 ``[10]`` (NaN where empty),
    ``count`` int64 ``[10]``; ``error`` is the expected calibration error, from 0 to 1."""

    score: NDArray[np.float64]
    precision: NDArray[np.float64]
    count: NDArray[np.int64]
    error: float


@dataclass(frozen=True)
class Correction:
    """What turns a logit into one that means what it says: ``logit / temperature + shift``."""

    temperature: float
    shift: float

    def __call__(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Corrected scores, float64 ``[N]``, of ``scores`` ``[N]`` from 0 to 1."""
        logits = logits_of(scores) / self.temperature + self.shift
        return np.asarray(1 / (1 + np.exp(-logits)), np.float64)

    def after(self, first: Correction) -> Correction:
        """``first`` and then this one, as one."""
        return Correction(
            first.temperature * self.temperature, first.shift / self.temperature + self.shift
        )


def fit_each_stride(
    scores: NDArray[np.floating],
    hits: NDArray[np.bool_],
    levels: NDArray[np.integer],
    least_score: float,
    kept_score: float | None = None,
) -> list[Correction]:
    """One ``fit_correction`` a stride; ``levels`` ``[N]`` are the detections' (``levels_of``).

    A stride stays as it is that has not both faces and false detections.

    Raises:
        DataError: no stride has both.
    """
    found: dict[int, Correction] = {}
    for level in range(len(STRIDES)):
        at = np.asarray(levels) == level
        with suppress(DataError):
            found[level] = fit_correction(
                np.asarray(scores)[at], np.asarray(hits)[at], least_score, kept_score
            )
    if not found:
        raise DataError(
            "No stride has both faces and false detections, which are needed to fit scores; give "
            "more photos, or a lower score"
        )
    return [found.get(level, Correction(1.0, 0.0)) for level in range(len(STRIDES))]


def levels_of(
    scores: NDArray[np.floating], raw: NDArray[np.floating], height: int, width: int
) -> NDArray[np.int64]:
    """Which of ``STRIDES`` said each of ``scores`` ``[N]``, int64 ``[N]`` of 0, 1 and 2.

    ``raw`` ``[A]`` are the network's scores for an image of ``height`` x ``width`` pixels, padded;
    every detection has the score of one anchor.
    """
    order = np.argsort(raw, kind="stable")
    anchors = order[np.searchsorted(raw[order], np.asarray(scores).astype(raw.dtype))]
    ends = np.cumsum([-(-height // s) * -(-width // s) * ANCHORS_PER_CELL for s in STRIDES])
    return np.searchsorted(ends, anchors, side="right").astype(np.int64)


def fit_correction(
    scores: NDArray[np.floating],
    hits: NDArray[np.bool_],
    least_score: float,
    kept_score: float | None = None,
) -> Correction:
    """The correction with the least negative log-likelihood over the scores that people look at.

    ``scores`` ``[N]`` from 0 to 1 and whether each detection is a face, bool ``[N]``. Detections
    under ``least_score`` are left out: there are so many that they would decide alone. A
    ``kept_score`` stays what it is, so that a list cut there keeps its length.

    Raises:
        DataError: no detection, or hits only, or none.
    """
    seen = np.asarray(scores) >= least_score
    scores, hits = np.asarray(scores)[seen], np.asarray(hits, bool)[seen]
    if not len(scores) or bool(hits.all()) or not bool(hits.any()):
        raise DataError(
            f"{len(scores)} detections, {int(hits.sum())} of them faces: both faces and false "
            "detections are needed to fit scores; give more photos, or a lower score"
        )
    # Logistic regression on the logit: the loss is convex in slope and shift.
    kept = 0.0 if kept_score is None else float(logits_of(np.array([kept_score]))[0])
    inputs = (logits_of(scores) - kept)[:, None]
    if kept_score is None:
        inputs = np.concatenate([inputs, np.ones_like(inputs)], 1)
    columns = slice(inputs.shape[1])
    line = newton(inputs, kept, hits, np.array([1.0, 0.0])[columns], LINE_RANGE[:, columns])
    slope = float(line[0])
    shift = float(line[1]) if kept_score is None else kept * (1 - slope)
    return Correction(1 / slope, shift)


def newton(
    inputs: NDArray[np.float64],
    offset: float,
    hits: NDArray[np.bool_] | NDArray[np.float64],
    start: NDArray[np.float64],
    limits: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Logistic regression: the line ``[K]`` with the least negative log-likelihood.

    ``inputs`` ``[N, K]``; ``hits`` ``[N]`` are whether, or how likely; from ``start`` ``[K]``
    between the two rows of ``limits`` ``[2, K]``.
    """

    def loss(line: NDArray[np.float64]) -> float:
        logits = inputs @ line + offset
        return float(np.sum(np.logaddexp(0, logits) - hits * logits))

    line = start
    ridge = 1e-6 * len(inputs) * np.eye(len(line))
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-(inputs @ line + offset)))
        curvature = (inputs.T * (chance * (1 - chance))) @ inputs + ridge
        step = np.linalg.solve(curvature, inputs.T @ (chance - hits))
        # A whole step may overshoot where the chances are near 0 and 1, and come back for ever.
        for share in 0.5 ** np.arange(HALVINGS):
            tried = np.clip(line - share * step, *limits)
            if loss(tried) < loss(line):
                line = tried
                break
        else:
            break
    return line


def reliability(scores: NDArray[np.floating], hits: NDArray[np.bool_]) -> Reliability:
    """Mean score and share of faces in ten bins of the score."""
    bins = np.minimum((np.asarray(scores, np.float64) * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    filled = np.where(count > 0, count, np.nan)
    score = np.bincount(bins, scores, BINS) / filled
    precision = np.bincount(bins, hits, BINS) / filled
    error = float(np.nansum(np.abs(score - precision) * count) / max(len(scores), 1))
    return Reliability(score, precision, count.astype(np.int64), error)


def logits_of(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scores from 0 to 1 as logits, none of them infinite."""
    inside = np.clip(np.asarray(scores, np.float64), EDGE, 1 - EDGE)
    return np.asarray(np.log(inside / (1 - inside)), np.float64)
