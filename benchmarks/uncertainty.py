"""How far average precision on the measuring sets would move with other photos of the same kind.

    python -m benchmarks.uncertainty --wider SUBSET --masks MASKS v2.onnx v1.onnx peers/yunet_n.onnx

Photos, not faces, are drawn anew with replacement (Efron and Tibshirani, *An Introduction to the
Bootstrap*, 1993), the same draw for every detector, and average precision is taken on each draw.
So there is an interval for each figure, and one for its difference from the first detector, which
is much narrower, as photos that are hard for one are hard for all. Writes ``uncertainty.json`` and
``uncertainty.md``. An ONNX file that is named like a detector of ``benchmarks.peers`` is run as
that, any other as one of ours. Two minutes a detector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.comparison import (
    Out,
    Weights,
    detector_name,
    detector_table,
    open_detector,
    write_comparison,
)
from benchmarks.quantization import progress
from featherface.evaluation.average_precision import match_voc
from featherface.evaluation.cached_predictions import detect_wider
from featherface.evaluation.label_formats import LabelledPhoto, read_labelled_folder
from featherface.evaluation.labelled_folder import detect_photos
from featherface.evaluation.views import Views
from featherface.evaluation.wider_face import score_predictions
from featherface.evaluation.wider_ground_truth import (
    DIFFICULTIES,
    WiderPhoto,
    read_subset_ground_truth,
)

COLUMNS = (*DIFFICULTIES, "masks")
Draw = NDArray[np.int64]
Score = Callable[[Draw], list[float]]


def main(
    weights: Weights,
    wider: Annotated[Path, typer.Option(help="subset folder of WIDER FACE")],
    masks: Annotated[Path, typer.Option(help="folder of labelled photos")],
    out: Out = Path("results"),
    draws: Annotated[int, typer.Option(min=20, help="sets of photos drawn anew")] = 400,
) -> None:
    """Measure and write."""
    wider_photos = read_subset_ground_truth(wider)
    masked = read_labelled_folder(masks, None)
    samples: dict[str, NDArray[np.float64]] = {}
    whole: dict[str, list[float]] = {}
    for path in weights:
        name = detector_name(path)
        detect = open_detector(path)
        found = detect_wider(
            detect, wider / "images", wider_photos, progress=progress(f"{name}, WIDER FACE")
        )
        rows = [f.rows() for f in detect_photos(detect, masked, Views((640,)))]
        scores: list[tuple[Score, int]] = [
            (wider_score(wider_photos, found), len(wider_photos)),
            (masks_score(masked, rows), len(masked)),
        ]
        whole[name] = [value for score, count in scores for value in score(np.arange(count))]
        parts = [
            resample(score, count, track(range(draws), f"{name}, draws")) for score, count in scores
        ]
        samples[name] = np.concatenate(parts, 1)
    written = {
        "wider_photos": len(wider_photos),
        "masks_photos": len(masked),
        "draws": draws,
        "ap": summary(whole, samples),
    }
    write_comparison(out, "uncertainty", written, markdown(written))


def wider_score(photos: Sequence[WiderPhoto], found: Mapping[str, NDArray[Any]]) -> Score:
    """Easy, medium and hard of the photos drawn."""

    def score(draw: Draw) -> list[float]:
        drawn = [photos[i] for i in draw]
        result = score_predictions({photo.key: found[photo.key] for photo in drawn}, drawn)
        return list(result.as_dict().values())

    return score


def masks_score(photos: Sequence[LabelledPhoto], rows: Sequence[NDArray[Any]]) -> Score:
    """PASCAL VOC's AP of the photos drawn."""

    def score(draw: Draw) -> list[float]:
        return [
            match_voc(
                [rows[i] for i in draw],
                [photos[i].boxes for i in draw],
                [photos[i].ignored for i in draw],
            ).average_precision
        ]

    return score


def resample(score: Score, photos: int, draws: Iterable[int]) -> NDArray[np.float64]:
    """``score`` of a set of ``photos`` photos for each of the ``draws``, float64 [draws, figures].

    Draw number n is the same whatever is scored, so that detectors can be compared draw by draw.
    """
    return np.array(
        [score(np.random.default_rng(draw).integers(0, photos, photos)) for draw in draws]
    )


def summary(
    whole: Mapping[str, Sequence[float]], samples: Mapping[str, NDArray[np.float64]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Each detector's figures, their 95 % intervals, and those of its lead over the first."""
    first = next(iter(samples.values()))
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, drawn in samples.items():
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        lead_low, lead_high = np.percentile(drawn - first, [2.5, 97.5], axis=0)
        result[name] = {
            column: {
                "ap": float(whole[name][i]),
                "interval": [float(low[i]), float(high[i])],
                "lead": [float(lead_low[i]), float(lead_high[i])],
            }
            for i, column in enumerate(COLUMNS)
        }
    return result


def markdown(result: dict[str, Any]) -> str:
    """The table: figure, its interval, and the interval of the lead over the first detector."""
    rows: dict[str, list[str]] = {}
    for number, (name, figures) in enumerate(result["ap"].items()):
        rows[name] = []
        for column in COLUMNS:
            one = figures[column]
            cell = f"{100 * one['ap']:.1f} ({percent(one['interval'])})"
            lead = f", {percent(one['lead'], '+')}" if number else ""
            rows[name].append(cell + lead)
    note = (
        f"AP in percent on {result['wider_photos']} photos of WIDER FACE and "
        f"{result['masks_photos']} of masks; in brackets the middle 95 % of {result['draws']} sets "
        "of as many photos drawn with replacement, and behind them the same for the lead over the "
        "first detector on the same draws."
    )
    return detector_table(COLUMNS, rows, note)


def percent(interval: Sequence[float], sign: str = "") -> str:
    """An interval of fractions in percent; ``sign`` "+" writes the sign of gains too."""
    return " to ".join(f"{100 * value:{sign}.1f}" for value in interval)


if __name__ == "__main__":
    typer.run(main)
