"""``featherface export``: the detector as ONNX, FP16, INT8, ncnn or OpenVINO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import onnx

    from featherface.export.quantization import Quantized

# Each format, the end of its file's name, and what it needs beside ONNX.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": (".onnx", ()),
    "fp16": ("_fp16.onnx", ()),
    "int8": ("_int8.onnx", ()),
    "ncnn": (".ncnn.param", ("pnnx",)),
    "openvino": (".xml", ("openvino",)),
}
SHOWN = 10  # layers of the sensitivity table


def register(app: typer.Typer) -> None:
    """Add ``export`` to the front door."""
    app.command("export")(export)


def export(
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights, .safetensors or .onnx (float32). Default: the package's own."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: named for weights and format.")
    ] = None,
    file_format: Annotated[
        str, typer.Option("--format", metavar="|".join(FORMATS), help="What to write.")
    ] = "onnx",
    decode: Annotated[
        bool,
        typer.Option(
            "--decode", help="Decoding and suppression in the graph: boxes, scores, landmarks out."
        ),
    ] = False,
    score_threshold: Annotated[
        float, typer.Option(help="With --decode: drop faces under this score.")
    ] = 0.5,
    nms_iou: Annotated[
        float, typer.Option(help="With --decode: IoU of non-maximum suppression.")
    ] = 0.4,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For int8: folder of photos with faces, or of shards."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="For int8: photos to calibrate with.")] = 24,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="For int8: mean change of candidates' scores that layers in float allow."
        ),
    ] = None,
) -> None:
    """Write the detector for another runtime.

    The outputs are raw (scores, box_deltas, landmark_deltas for every anchor), which FaceDetector
    loads, unless --decode is given. int8 needs photos to calibrate with.
    """
    from featherface.cli import require_extra
    from featherface.errors import ConfigError

    if file_format not in FORMATS:
        raise ConfigError(f"--format {file_format}: unknown; give one of {', '.join(FORMATS)}")
    ending, modules = FORMATS[file_format]
    if decode and file_format == "ncnn":
        raise ConfigError("--decode: ncnn has no operator for it; leave it out")
    if (file_format == "int8") != (calibrate is not None):
        raise ConfigError(
            "--format int8 needs --calibrate DIR, a folder of photos with faces; no other does"
        )
    require_extra("export", "onnx", *modules)

    import onnx

    from featherface.export.decoded import with_decoding
    from featherface.export.float16 import to_float16
    from featherface.export.source_model import read_source, simplified
    from featherface.images import write_file

    model = simplified(read_source(weights))
    stem = weights.stem if weights else "featherface_v2"
    path = out or Path(f"{stem}{'_decoded' if decode else ''}{ending}")
    if file_format == "fp16":
        model = to_float16(model)
    elif calibrate is not None:
        model = _quantize(model, calibrate, images, tolerance)
    if decode:
        model = with_decoding(model, score_threshold, nms_iou)
    if file_format == "ncnn":
        from featherface.export.ncnn_files import export_ncnn

        written: Sequence[Path] = export_ncnn(model, path)
    elif file_format == "openvino":
        from featherface.export.openvino_files import export_openvino

        written = export_openvino(model, path)
    else:
        onnx.checker.check_model(model)
        write_file(path, model.SerializeToString())
        written = [path]
    for file in written:
        typer.echo(f"{file} written, {file.stat().st_size / 1000:.0f} kB")


def _quantize(
    model: onnx.ModelProto, calibrate: Path, images: int, tolerance: float | None
) -> onnx.ModelProto:
    from featherface.cli import require_extra
    from featherface.export.calibration import calibration_images, has_shards
    from featherface.export.quantization import TOLERANCE, quantize

    if has_shards(calibrate):
        require_extra("export", "webdataset")
    photos = calibration_images(calibrate, images)
    done = quantize(model, photos, TOLERANCE if tolerance is None else tolerance, _progress)
    _print_layers(done, len(photos))
    return done.model


def _progress(layers: Sequence[str]) -> Iterable[str]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(layers, "Measuring layers", console=console, disable=not console.is_terminal)


def _print_layers(done: Quantized, photos: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Change of scores when one layer has 8 bits, {photos} photos")
    table.add_column("layer")
    table.add_column("mean change", justify="right")
    table.add_column("kept in")
    for place, layer in enumerate(done.layers[:SHOWN]):
        kept = "float" if place < done.kept_float else "int8"
        table.add_row(layer.layer.strip("/"), f"{layer.error:.4f}", kept)
    console = Console()
    console.print(table)
    console.print(
        f"{done.kept_float} of {len(done.layers)} convolutions stay in float: scores change by "
        f"{done.error:.4f} on average, by {done.error_all:.4f} with all of them in int8",
        soft_wrap=True,
    )
