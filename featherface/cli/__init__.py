"""The front door: ``featherface JOB``. One module a job; each loads what it needs when it runs."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

# OpenCV would add lines of its own to our one line about a bad picture.
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")

import typer
from typer.core import TyperGroup

from featherface.errors import FeatherFaceError, MissingExtraError

JOBS: tuple[str, ...] = (
    "detect",
    "blur",
    "crop",
    "video",
    "pseudo_label",
    "demo",
    "data",
    "evaluate",
    "benchmark",
    "train",
    "calibrate",
    "analyze",
    "experiments",
    "export",
    "serve",
    "diagram",
    "results_table",
)


class FrontDoor(TyperGroup):
    """Runs a job; what goes wrong on purpose becomes one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FeatherFaceError as error:
            print_error(str(error))
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.strerror is None:
                raise
            print_error(f"{error.filename or 'System'}: {error.strerror}")
        except KeyboardInterrupt:
            typer.echo("Interrupted", err=True)
            raise typer.Exit(130) from None
        raise typer.Exit(1)


app = typer.Typer(
    cls=FrontDoor,
    help="Detect faces and their landmarks; train, measure and export the detector.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_error(message: str) -> None:
    """``Error: message`` in red on stderr, in one line."""
    typer.secho(f"Error: {' '.join(message.split())}", fg=typer.colors.RED, err=True)


def require_extra(extra: str, *modules: str) -> None:
    """Raise ``MissingExtraError``, saying what to install, unless all ``modules`` can be found."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"This command needs {', '.join(missing)}: pip install 'featherface[{extra}]'"
        )


def _print_version(wanted: bool) -> None:
    if wanted:
        import featherface

        typer.echo(f"featherface {featherface.__version__}")
        raise typer.Exit


@app.callback()
def front_door(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Tell the version."),
    ] = False,
) -> None:
    """Detect faces and their landmarks; train, measure and export the detector."""


for _job in JOBS:
    if find_spec(f"featherface.cli.{_job}") is not None:
        import_module(f"featherface.cli.{_job}").register(app)


def main() -> None:
    """Entry point of the ``featherface`` command."""
    app(prog_name="featherface")
