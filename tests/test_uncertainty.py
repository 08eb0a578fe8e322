"""Intervals by drawing photos anew: more photos make them narrower, and detectors are paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.uncertainty import (
    COLUMNS,
    markdown,
    masks_score,
    resample,
    summary,
    wider_score,
)
from featherface.evaluation.label_formats import LabelledPhoto
from featherface.evaluation.wider_ground_truth import WiderPhoto

BOX = np.array([[10.0, 10.0, 50.0, 50.0]])
HIT = np.array([[10.0, 10.0, 50.0, 50.0, 0.9]])
MISS = np.array([[60.0, 60.0, 90.0, 90.0, 0.95]])


def wider_photos(count: int) -> list[WiderPhoto]:
    counted = {name: np.ones(1, bool) for name in ("easy", "medium", "hard")}
    return [WiderPhoto("event", str(n), BOX, counted) for n in range(count)]


def found_in(hits: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    return {f"event/{n}": HIT if hit else MISS for n, hit in enumerate(hits)}


def test_whole_set_scores_as_the_protocol_does() -> None:
    photos = wider_photos(4)
    perfect = wider_score(photos, found_in(np.ones(4, bool)))
    assert perfect(np.arange(4)) == pytest.approx([1, 1, 1])
    assert perfect(np.array([2, 2, 2, 2])) == pytest.approx([1, 1, 1])
    half = wider_score(photos, found_in(np.array([True, True, False, False])))
    assert half(np.array([0, 1, 0, 1])) == pytest.approx([1, 1, 1])
    assert half(np.array([2, 3, 2, 3])) == pytest.approx([0, 0, 0])


def test_masks_are_drawn_too() -> None:
    photos = [
        LabelledPhoto(
            Path(f"{n}.jpg"), (100, 100), BOX, np.zeros(1, bool), np.full((1, 5, 2), np.nan)
        )
        for n in range(2)
    ]
    score = masks_score(photos, [HIT, MISS])
    assert score(np.array([0, 0])) == [1.0]
    assert score(np.array([1, 1])) == [0.0]
    assert 0 < score(np.array([0, 1]))[0] < 1


def interval_width(photos: int) -> float:
    hits = np.arange(photos) % 4 > 0
    drawn = resample(wider_score(wider_photos(photos), found_in(hits)), photos, range(60))
    low, high = np.percentile(drawn[:, 0], [2.5, 97.5])
    return float(high - low)


def test_more_photos_make_narrower_intervals() -> None:
    assert interval_width(160) < 0.6 * interval_width(16)


def test_draws_are_the_same_for_every_detector_and_differ_from_one_another() -> None:
    photos = wider_photos(12)
    hits = np.arange(12) % 3 > 0
    first = resample(wider_score(photos, found_in(hits)), 12, range(30))
    again = resample(wider_score(photos, found_in(hits)), 12, range(30))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (30, 3)
    assert len(np.unique(first[:, 0])) > 3


def test_lead_is_paired_and_the_table_tells_both_intervals() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.5, 0.9, (200, 4))  # how hard each draw is, for all detectors
    whole = {"ours": [0.7] * 4, "better": [0.75] * 4}
    result = summary(whole, {"ours": hard, "better": hard + 0.05})
    one = result["better"]["easy"]
    assert one["interval"][1] - one["interval"][0] > 0.3
    assert one["lead"] == pytest.approx([0.05, 0.05])
    assert result["ours"]["masks"]["lead"] == [0, 0]
    table = markdown({"ap": result, "wider_photos": 9, "masks_photos": 8, "draws": 200})
    ours, better = table.splitlines()[2:4]
    assert ours.startswith("| ours | 70.0 (")
    assert "+0.0" not in ours
    assert better.count("+5.0 to +5.0") == len(COLUMNS)
