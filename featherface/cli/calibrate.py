"""``featherface calibrate``: scores that mean what they say, by a temperature and a shift."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

LOWEST_SCORE = 0.0005
NEUTRAL = {"temperature": 1.0, "shift": 0.0}  # what a file without a correction has


def register(app: typer.Typer) -> None:
    """Add ``calibrate`` to the front door."""
    app.command("calibrate")(calibrate)


def calibrate(
    weights: Annotated[
        list[Path], typer.Option(help="Weights of V2, .safetensors; of several, their mean.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of shards; its held-out photos are used.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: NAME_calibrated.safetensors.")
    ] = None,
    face_score: Annotated[
        float, typer.Option(min=0, max=1, help="Labels from here on are faces.")
    ] = 0.3,
    fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the photos that is held out.")
    ] = 0.04,
    results: Annotated[
        Path | None, typer.Option(help="Folder for calibration.json and its picture.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where decoded photos are kept.")] = Path("cache"),
    least_score: Annotated[
        float, typer.Option(min=0, max=1, help="Detections from here on are fitted.")
    ] = 0.05,
    kept_score: Annotated[
        float, typer.Option(min=0, max=1, help="Stays what it is; 0: no score has to.")
    ] = 0.02,
    by_stride: Annotated[
        bool, typer.Option("--by-stride", help="Fit what each stride says by itself.")
    ] = False,
    sizes_like: Annotated[
        Path | None,
        typer.Option(
            help="ONNX file with the same anchors, such as V1's: besides, let each size of anchor "
            "be as sure beside the others as it is there."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for the network.")] = 1,
) -> None:
    """Fit temperature and shift to the scores on held-out photos, and fold them into the weights.

    By default one correction serves all strides: the order of the scores stays as it is, but for
    --sizes-like, which ranks sizes of anchors as a detector does that knows the labels' ways.
    0.02 stays what it is, where evaluations cut off. Writes the weights and their ONNX file.
    """
    from featherface.cli import require_extra

    require_extra("train", "torch", "safetensors", "webdataset")
    if results is not None:
        require_extra("evaluate", "matplotlib")
    import numpy as np

    from featherface.analysis.figures import save_figure
    from featherface.anchors import SIZES, STRIDES
    from featherface.cli.progress import list_progress
    from featherface.data.shards import PhotoStore
    from featherface.detector import FaceDetector
    from featherface.errors import ConfigError
    from featherface.evaluation.anchor_sizes import fit_size_shifts, seen_by_both
    from featherface.evaluation.average_precision import match_voc
    from featherface.evaluation.calibration import (
        Correction,
        fit_correction,
        fit_each_stride,
        levels_of,
        reliability,
    )
    from featherface.evaluation.plots import reliability_figure
    from featherface.evaluation.result_files import write_result_json
    from featherface.evaluation.validation import held_out_photos
    from featherface.evaluation.views import detect_in_views
    from featherface.export.onnx_file import export_onnx
    from featherface.models.pretrained_v2 import load_v2
    from featherface.models.weight_files import load_mean_weights, read_metadata, save_weights

    first = weights[0]
    out = out or first.with_name(f"{first.stem}_calibrated.safetensors")
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: give a name that ends with .safetensors")
    model = load_v2(first)
    metadata = read_metadata(first)
    if len(weights) > 1:
        load_mean_weights(model, weights)
        # What earlier corrections of the parts were says nothing of their mean.
        metadata = {k: v for k, v in metadata.items() if k not in (*NEUTRAL, "size_shifts")}
        metadata["mean_of"] = " ".join(path.stem for path in weights)
    store = PhotoStore(data, cache)
    held_out = held_out_photos(store, fraction)
    found, boxes, doubtful, levels = [], [], [], []
    shifts = np.zeros(SIZES)
    with TemporaryDirectory() as folder:
        onnx = export_onnx(model, Path(folder) / "model.onnx")
        if sizes_like is not None:
            ours = FaceDetector(onnx, input_size=None, threads=threads)
            other = FaceDetector(sizes_like, input_size=None, threads=threads)
            photos = (store[index] for index in list_progress(held_out))
            shifts = fit_size_shifts(seen_by_both(ours, other, photos))
        detect = FaceDetector(onnx, input_size=None, score_threshold=LOWEST_SCORE, threads=threads)
        for index in list_progress(held_out):
            photo = store[index]
            image = np.ascontiguousarray(photo.image)
            found.append(detect_in_views(detect, image).rows())
            if by_stride:
                blob = detect.prepare(image)
                raw = detect.run_network(blob)[0][0]
                levels.append(levels_of(found[-1][:, 4], raw, *blob.shape[2:]))
            boxes.append(photo.boxes.astype(np.float64))
            doubtful.append(photo.scores < face_score)
    matches = match_voc(found, boxes, doubtful)
    seen = matches.scores >= least_score
    scores, hits = matches.scores[seen], matches.hit[seen]
    places = zip(matches.photo[seen], matches.index[seen], strict=True)
    level = np.array([levels[photo][index] if by_stride else 0 for photo, index in places], int)
    kept = kept_score or None
    if by_stride:
        corrections = fit_each_stride(scores, hits, level, least_score, kept)
    else:
        corrections = [fit_correction(scores, hits, least_score, kept)] * len(STRIDES)
    corrected = np.choose(level, [correction(scores) for correction in corrections])
    before, after = reliability(scores, hits), reliability(corrected, hits)
    model.heads.shift_sizes(shifts.tolist())
    by_size = {} if sizes_like is None else _by_anchor(shifts.tolist())
    totals = []
    for stride, correction in enumerate(corrections):
        model.heads.correct_logits(correction.temperature, correction.shift, stride)
        earlier = [_number(metadata, name, stride) for name in NEUTRAL]
        totals.append(correction.after(Correction(*earlier)))
    metadata |= {name: _in_words([getattr(c, name) for c in totals]) for name in NEUTRAL}
    if by_size:
        metadata |= {"size_shifts": " ".join(f"{x:.4f}" for x in by_size.values())}
    save_weights(model, out, metadata)
    exported = export_onnx(model, out.with_suffix(".onnx"))
    if results is not None:
        written = {
            "photos": len(boxes),
            "detections": len(scores),
            "detections_from_score": least_score,
            "kept_score": kept_score,
            "faces_from_score": face_score,
            **({"size_shifts": by_size} if by_size else {}),
            **(
                {
                    f"stride {stride}": vars(c)
                    for stride, c in zip(STRIDES, corrections, strict=True)
                }
                if by_stride
                else vars(corrections[0])
            ),
            "calibration_error": {"before": before.error, "after": after.error},
        }
        write_result_json(results / "calibration.json", written)
        save_figure(reliability_figure(before, after), results / "calibration.png")
    if by_size:
        said = (f"{size} pixels {x:+.2f}" for size, x in by_size.items())
        typer.echo(f"Shifts by size of anchor: {', '.join(said)}")
    typer.echo(
        f"Temperature {_in_words([c.temperature for c in corrections])}, "
        f"shift {_in_words([c.shift for c in corrections])}; calibration "
        f"error {100 * before.error:.1f} -> {100 * after.error:.1f} % on {len(boxes)} held-out "
        "photos"
    )
    typer.echo(f"Weights: {out}\nONNX:    {exported}")


def _by_anchor(shifts: list[float]) -> dict[str, float]:
    """By the anchors' sizes in pixels."""
    from featherface.anchors import ANCHOR_SIZES

    return dict(zip((str(x) for level in ANCHOR_SIZES for x in level), shifts, strict=True))


def _number(metadata: dict[str, str], name: str, stride: int) -> float:
    """What an earlier correction says of a stride: one number for all of them, or three."""
    numbers = metadata.get(name, "").split()
    return float(numbers[stride % len(numbers)]) if numbers else NEUTRAL[name]


def _in_words(numbers: list[float]) -> str:
    words = [f"{number:.4f}" for number in numbers]
    return words[0] if len(set(words)) == 1 else " ".join(words)
