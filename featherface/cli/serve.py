"""``featherface serve``: the JSON API and the page, by FastAPI and Uvicorn."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
from typing import Annotated

import typer

from featherface.cli.options import NmsIou, Threshold, Weights
from featherface.errors import ConfigError

GRACE_SECONDS = 20
KEEP_ALIVE_SECONDS = 75  # longer than clients and proxies keep theirs, so that they close first


def register(app: typer.Typer) -> None:
    """Add ``serve`` to the front door."""
    app.command("serve")(serve)


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0: any free one, which is told.")
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="FEATHERFACE_TOKEN",
            show_envvar=True,
            help="What the API asks for as a bearer token. Safer by the environment.",
        ),
    ] = None,
    weights: Weights = None,
    size: Annotated[
        int, typer.Option(min=0, help="Long side unless a request says; 0: original pixels.")
    ] = 640,
    threshold: Threshold = 0.5,
    nms: NmsIou = 0.4,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures looked at side by side. Default: cores, up to 4."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the network, for each.")] = 1,
    waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; one more is told 429.")
    ] = 32,
    max_files: Annotated[int, typer.Option(min=1, help="Pictures in one request.")] = 16,
    max_megabytes: Annotated[int, typer.Option(min=1, help="MiB of one picture's file.")] = 20,
    max_request_megabytes: Annotated[int, typer.Option(min=1, help="MiB of one request.")] = 64,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Megapixels of a picture.")] = 50,
    max_side: Annotated[
        int, typer.Option(min=32, help="Largest input_size that a request may ask for.")
    ] = 2048,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line a request.")] = False,
) -> None:
    """Serve face detection: a JSON API under /v1, its documentation under /docs, and the page.

    Ends on Ctrl-C or SIGTERM, after the requests it has begun.
    """
    from featherface.cli import require_extra

    require_extra(
        "serve", "fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_client"
    )
    import uvicorn

    from featherface.detector import PACKAGED_WEIGHTS
    from featherface.serving.app import create_app
    from featherface.serving.settings import MEBIBYTE, ServeSettings

    settings = ServeSettings(
        weights=weights or PACKAGED_WEIGHTS,
        input_size=size or None,
        score_threshold=threshold,
        nms_iou=nms,
        threads=threads,
        workers=workers or min(4, os.cpu_count() or 1),
        waiting=waiting,
        max_files=max_files,
        max_file_bytes=max_megabytes * MEBIBYTE,
        max_body_bytes=max_request_megabytes * MEBIBYTE,
        max_pixels=max_megapixels * 1_000_000,
        max_side=max_side,
        token=token,
    )
    # It would write a line for every form that breaks off; the client is told, and it is counted.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    with _listen(host, port) as listener:
        app = create_app(settings)
        config = uvicorn.Config(
            app,
            log_level="info" if access_log else "warning",
            access_log=access_log,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"Serving on http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends it)")
        if token is None and not _is_local(host):
            typer.echo("Anyone who can reach this address can use the API: there is no --token")
        sys.stdout.flush()
        # Uvicorn raises the signal that ended it once more; it was obeyed, so the exit code is 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit(0))
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket; ``ConfigError`` if the address is unknown or the port taken."""
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigError(
            f"{host}:{port}: cannot listen there: {error.strerror or error}; try another --port"
        ) from error
    return listener


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
