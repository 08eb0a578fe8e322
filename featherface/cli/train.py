"""``featherface train`` and ``featherface distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option("--config", "-c", help="YAML file of the run.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override a value, e.g. data.shards=DIR (repeatable)."),
]
Devices = Annotated[int, typer.Option(help="How many devices; more than one trains with DDP.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Begin anew instead of going on from the checkpoint.")
]
Export = Annotated[bool, typer.Option(help="Write the ONNX file beside the weights at the end.")]
Record = Annotated[
    bool, typer.Option(help="Measure on the held-out photos at the end and add the run's row.")
]
Experiments = Annotated[
    Path, typer.Option(metavar="FILE", help="Table that gets a row for each finished run.")
]
EXPERIMENTS = Path("results/experiments.csv")


def register(app: typer.Typer) -> None:
    """Add both commands to ``app``."""
    app.command("train")(train)
    app.command("distill")(distill)


def train(
    config: Config,
    overrides: Set = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
    restart: Restart = False,
    export: Export = True,
    record: Record = True,
    experiments: Experiments = EXPERIMENTS,
) -> None:
    """Train V2 on labelled photos, without a teacher."""
    run(
        config,
        [
            *(overrides or []),
            "distillation.teacher=null",
            "start.context_crops=0",
            "start.twin_crops=0",
        ],
        devices,
        accelerator,
        restart,
        export,
        experiments if record else None,
    )


def distill(
    config: Config,
    overrides: Set = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
    restart: Restart = False,
    export: Export = True,
    record: Record = True,
    experiments: Experiments = EXPERIMENTS,
) -> None:
    """Train V2 with a teacher: features first, then its answers, then the labels."""
    table = experiments if record else None
    run(config, overrides or [], devices, accelerator, restart, export, table, needs_teacher=True)


def run(
    config: Path,
    overrides: list[str],
    devices: int,
    accelerator: str,
    restart: bool,
    export: bool,
    experiments: Path | None,
    needs_teacher: bool = False,
) -> None:
    """Read the configuration, train, and export what came out."""
    from featherface.cli import require_extra

    require_extra("train", "torch", "lightning_fabric", "webdataset", "yaml", "pydantic")
    from featherface.errors import ConfigError
    from featherface.training.config import read_config
    from featherface.training.loop import is_first_process
    from featherface.training.loop import train as train_model

    settings = read_config(config, overrides)
    if needs_teacher and settings.distillation.teacher is None:
        raise ConfigError(f"{config}: distillation.teacher: name the teacher's weight file")
    weights = train_model(
        settings,
        devices,
        accelerator,
        resume=not restart,
        report=typer.echo,
        experiments=experiments,
    )
    if not is_first_process():
        return
    typer.echo(f"Weights: {weights}")
    if export:
        from featherface.export.onnx_file import export_onnx
        from featherface.models.pretrained_v2 import load_v2

        typer.echo(f"ONNX:    {export_onnx(load_v2(weights), weights.with_suffix('.onnx'))}")
