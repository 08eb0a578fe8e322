"""``featherface evaluate``: the WIDER FACE protocol, any labelled folder, held-out photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherface.cli.progress import list_progress

if TYPE_CHECKING:
    from featherface.evaluation.views import Views
    from featherface.evaluation.wider_face import WiderResult
    from featherface.evaluation.wider_ground_truth import WiderPhoto
    from featherface.faces import Detect


class LabelFormat(str, Enum):
    """How a folder's labels are written."""

    auto = "auto"
    json = "json"
    coco = "coco"
    yolo = "yolo"
    voc = "voc"


Weights = Annotated[
    Path | None, typer.Option(help="Weights file, ONNX. Default: the package's own.")
]
LongSide = Annotated[
    list[int] | None,
    typer.Option(min=0, help="Long side in pixels, 0: as it is. Repeat it for multi-scale."),
]
Flip = Annotated[bool, typer.Option("--flip", help="Add the mirror image of each view.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads for the network.")]
ScoreThreshold = Annotated[float, typer.Option(min=0, max=1, help="Lowest score to report.")]
NmsIou = Annotated[float, typer.Option(min=0, max=1, help="IoU of non-maximum suppression.")]


def register(app: typer.Typer) -> None:
    """Add ``evaluate`` to the front door."""
    evaluate = typer.Typer(
        help="Measure a detector: WIDER FACE, a labelled folder, or held-out photos.",
        no_args_is_help=True,
    )
    evaluate.command("wider")(wider)
    evaluate.command("folder")(folder)
    evaluate.command("validation")(validation)
    app.add_typer(evaluate, name="evaluate")


def wider(
    predictions: Annotated[
        Path | None, typer.Option(help="Folder of EVENT/PHOTO.txt predictions to score.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="Folder of the four official .mat files.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of EVENT/PHOTO.jpg photos to detect and score.")
    ] = None,
    subset: Annotated[
        Path | None, typer.Option(help="Folder of ground_truth.json and images/: a subset.")
    ] = None,
    weights: Weights = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write easy, medium, hard to this file.")
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write the predictions to this folder, EVENT/PHOTO.txt.")
    ] = None,
    long_side: LongSide = None,
    flip: Flip = False,
    score_threshold: ScoreThreshold = 0.02,
    nms_iou: NmsIou = 0.4,
    threads: Threads = 1,
    cache: Annotated[Path, typer.Option(help="Folder for predictions that are kept.")] = Path(
        "cache"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Detect again where predictions are kept.")
    ] = False,
) -> None:
    """Average precision by the official WIDER FACE protocol.

    Score predictions (--predictions, --ground-truth), detect and score photos (--images,
    --ground-truth), or a subset (--subset).
    """
    if sum(source is not None for source in (predictions, images, subset)) != 1:
        raise typer.BadParameter("give one of --predictions, --images and --subset")
    if subset is not None and ground_truth is not None:
        raise typer.BadParameter("--subset has its own ground truth: leave out --ground-truth")
    if subset is None and ground_truth is None:
        raise typer.BadParameter("give --ground-truth, the folder of the official .mat files")
    if predictions is not None and (weights or long_side or flip):
        raise typer.BadParameter("--predictions are scored as they are: no --weights or views")

    from featherface.evaluation.cached_predictions import detect_wider, predictions_key
    from featherface.evaluation.result_files import write_result_json
    from featherface.evaluation.wider_face import score_predictions
    from featherface.evaluation.wider_ground_truth import (
        read_official_ground_truth,
        read_subset_ground_truth,
    )
    from featherface.evaluation.wider_predictions import read_predictions, write_predictions

    if subset is not None:
        photos = read_subset_ground_truth(subset)
    elif ground_truth is not None:
        photos = read_official_ground_truth(ground_truth)
    details: dict[str, Any] = {}
    if predictions is not None:
        found = read_predictions(predictions, photos)
    else:
        views = _views(long_side, flip)
        settings = {"score_threshold": score_threshold, "nms_iou": nms_iou}
        source = images or Path(str(subset)) / "images"
        kept = None
        if images is not None:
            key = predictions_key(weights, views, {**settings, "images": str(images.resolve())})
            kept = cache / "wider_predictions" / key
        detect = _detector(weights, threads, score_threshold, nms_iou)
        found = detect_wider(detect, source, photos, views, kept, list_progress, fresh)
        details = {
            "views": views.describe(),
            "weights": weights.name if weights else "packaged",
            "photos": len(photos),
            **settings,
        }
    result = score_predictions(found, photos)
    if submission is not None:
        write_predictions(submission, found, photos)
    if json_file is not None:
        write_result_json(json_file, {**result.as_dict(), **details})
    _print_wider(result, photos, details.get("views", "predictions as given"))


def folder(
    labelled: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of photos and labels.")],
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/evaluation"),
    label_format: Annotated[
        LabelFormat, typer.Option("--format", help="How the labels are written.")
    ] = LabelFormat.auto,
    long_side: LongSide = None,
    flip: Flip = False,
    operating_score: Annotated[
        float, typer.Option(min=0, max=1, help="Score for recall and false positives.")
    ] = 0.5,
    score_threshold: ScoreThreshold = 0.02,
    nms_iou: NmsIou = 0.4,
    threads: Threads = 1,
    worst: Annotated[int, typer.Option(min=0, help="Errors of each kind to show.")] = 24,
) -> None:
    """Average precision, recall by size, false positives and landmark error on a labelled folder.

    Our JSON, COCO, YOLO and Pascal VOC labels; photos are shown with a long side of 640 pixels
    unless --long-side says otherwise. Writes JSON, Markdown, plots and a page of the worst errors.
    """
    from featherface.evaluation.labelled_folder import evaluate_folder
    from featherface.evaluation.report import write_report

    result = evaluate_folder(
        _detector(weights, threads, score_threshold, nms_iou),
        labelled,
        _views(long_side or [640], flip),
        None if label_format is LabelFormat.auto else label_format.value,
        operating_score,
        list_progress,
    )
    name = weights.name if weights else "FeatherFace"
    write_report(result, out, f"{name} on {labelled.resolve().name}", worst)

    from rich.console import Console
    from rich.table import Table

    console = Console()
    for block in result.as_markdown().strip().split("\n\n"):
        head, _, *rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"Written to {out}: open report.html", soft_wrap=True)


def validation(
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights file, ONNX or V2 safetensors. Default: the package's own."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder of the training shards (*.tar).")] = Path(
        "data/train"
    ),
    cache: Annotated[Path, typer.Option(help="Folder for the decoded photos.")] = Path("cache"),
    fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the photos that training holds back.")
    ] = 0.04,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many photos, spread evenly.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    score_threshold: ScoreThreshold = 0.02,
    nms_iou: NmsIou = 0.4,
    threads: Threads = 1,
) -> None:
    """AP on the photos that training holds back, overall and by face size.

    Experiments are compared by this figure; labels with a score under 0.5 are ignored.
    """
    from featherface.cli import require_extra

    require_extra("train", "torch", "webdataset", "safetensors", "onnx")
    from featherface.data.shards import PhotoStore
    from featherface.evaluation.result_files import write_result_json
    from featherface.evaluation.validation import validate

    store = PhotoStore(data, cache)
    with _as_onnx(weights) as file:
        detect = _detector(file, threads, score_threshold, nms_iou)
        result = validate(detect, store, fraction, limit, list_progress)
    if json_file is not None:
        details = {
            "weights": weights.name if weights else "packaged",
            "fraction": fraction,
            "score_threshold": score_threshold,
            "nms_iou": nms_iou,
        }
        write_result_json(json_file, {**result.as_dict(), **details})

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Held-out photos: {result.photos}")
    table.add_column("face size, pixels")
    table.add_column("AP, %", justify="right")
    table.add_column("faces", justify="right")
    table.add_row("all", f"{100 * result.ap:.2f}", f"{result.faces:,}", end_section=True)
    for name, one in result.by_size.items():
        table.add_row(name, f"{100 * one.ap:.2f}" if one.faces else "n/a", f"{one.faces:,}")
    Console().print(table)


@contextmanager
def _as_onnx(weights: Path | None) -> Iterator[Path | None]:
    """``weights`` as they are, or V2's safetensors exported to a temporary ONNX file."""
    if weights is None or weights.suffix != ".safetensors":
        yield weights
        return
    from featherface.export.onnx_file import export_onnx
    from featherface.models.pretrained_v2 import load_v2

    with TemporaryDirectory(prefix="featherface-") as folder:
        yield export_onnx(load_v2(weights), Path(folder) / f"{weights.stem}.onnx")


def _views(long_sides: Sequence[int] | None, flip: bool) -> Views:
    from featherface.evaluation.views import Views

    return Views(tuple(side or None for side in long_sides or [0]), flip)


def _detector(weights: Path | None, threads: int, score_threshold: float, nms_iou: float) -> Detect:
    """The detector, looking at each view at its own size."""
    from featherface.detector import FaceDetector

    return FaceDetector(
        weights=weights,
        input_size=None,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        threads=threads,
    )


def _print_wider(result: WiderResult, photos: Sequence[WiderPhoto], views: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"WIDER FACE, {len(photos)} photos, {views}")
    table.add_column("difficulty")
    table.add_column("AP, %", justify="right")
    table.add_column("faces", justify="right")
    for difficulty, average in result.as_dict().items():
        faces = result.curves[difficulty].faces
        table.add_row(difficulty, f"{100 * average:.2f}", str(faces))
    Console().print(table)
