"""``featherface calibrate``: scores that mean what they say, by a temperature and a shift."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

LOWEST_SCORE = 0.0005


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
    threads: Annotated[int, typer.Option(min=1, help="Threads for the network.")] = 1,
) -> None:
    """Fit temperature and shift to the scores on held-out photos, and fold them into the weights.

    The order of the scores stays as it is, and by default so does 0.02, where evaluations cut off.
    Writes the weights and their ONNX file.
    """
    from featherface.cli import require_extra

    require_extra("train", "torch", "safetensors", "webdataset")
    if results is not None:
        require_extra("evaluate", "matplotlib")
    import numpy as np

    from featherface.analysis.figures import save_figure
    from featherface.cli.progress import list_progress
    from featherface.data.shards import PhotoStore
    from featherface.detector import FaceDetector
    from featherface.errors import ConfigError
    from featherface.evaluation.average_precision import match_voc
    from featherface.evaluation.calibration import Correction, fit_correction, reliability
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
        metadata = {k: v for k, v in metadata.items() if k not in ("temperature", "shift")}
        metadata["mean_of"] = " ".join(path.stem for path in weights)
    store = PhotoStore(data, cache)
    found, boxes, doubtful = [], [], []
    with TemporaryDirectory() as folder:
        onnx = export_onnx(model, Path(folder) / "model.onnx")
        detect = FaceDetector(onnx, input_size=None, score_threshold=LOWEST_SCORE, threads=threads)
        for index in list_progress(held_out_photos(store, fraction)):
            photo = store[index]
            found.append(detect_in_views(detect, np.ascontiguousarray(photo.image)).rows())
            boxes.append(photo.boxes.astype(np.float64))
            doubtful.append(photo.scores < face_score)
    matches = match_voc(found, boxes, doubtful)
    correction = fit_correction(matches.scores, matches.hit, least_score, kept_score or None)
    seen = matches.scores >= least_score
    scores, hits = matches.scores[seen], matches.hit[seen]
    before, after = reliability(scores, hits), reliability(correction(scores), hits)
    model.heads.correct_logits(correction.temperature, correction.shift)
    earlier = Correction(float(metadata.get("temperature", 1)), float(metadata.get("shift", 0)))
    total = correction.after(earlier)
    totals = {"temperature": f"{total.temperature:.4f}", "shift": f"{total.shift:.4f}"}
    save_weights(model, out, {**metadata, **totals})
    exported = export_onnx(model, out.with_suffix(".onnx"))
    if results is not None:
        written = {
            "photos": len(boxes),
            "detections": len(scores),
            "detections_from_score": least_score,
            "kept_score": kept_score,
            "faces_from_score": face_score,
            "temperature": correction.temperature,
            "shift": correction.shift,
            "calibration_error": {"before": before.error, "after": after.error},
        }
        write_result_json(results / "calibration.json", written)
        save_figure(reliability_figure(before, after), results / "calibration.png")
    typer.echo(
        f"Temperature {correction.temperature:.3f}, shift {correction.shift:+.3f}; calibration "
        f"error {100 * before.error:.1f} -> {100 * after.error:.1f} % on {len(boxes)} held-out "
        "photos"
    )
    typer.echo(f"Weights: {out}\nONNX:    {exported}")
