"""What ``featherface serve`` is told: the detector's defaults, and the limits of the API."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from featherface.detector import PACKAGED_WEIGHTS
from featherface.errors import ConfigError

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ServeSettings:
    """Sizes in bytes and pixels, times in seconds.

    ``workers``: images looked at side by side; ``threads``: of the network for each. ``waiting``:
    requests taken in beyond those, to be received and to wait; more are told to come back (429).
    ``max_side``: the largest ``input_size`` a request may ask for, which bounds the memory of one
    image. ``body_seconds``: the time a client has to send its request. ``token``: what the API asks
    for as ``Authorization: Bearer``; None asks for nothing. Raises ``ConfigError`` for values that
    make no sense.
    """

    weights: Path = PACKAGED_WEIGHTS
    input_size: int | None = 640
    score_threshold: float = 0.5
    nms_iou: float = 0.4
    threads: int = 1
    workers: int = min(4, os.cpu_count() or 1)
    waiting: int = 32
    max_files: int = 16
    max_file_bytes: int = 20 * MEBIBYTE
    max_body_bytes: int = 64 * MEBIBYTE
    max_pixels: int = 50_000_000
    max_side: int = 2048
    body_seconds: float = 60.0
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("threads", "workers", "max_files", "max_file_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give 1 or more")
        if self.waiting < 0:
            raise ConfigError(f"waiting={self.waiting}: give 0 or more")
        if self.max_body_bytes < self.max_file_bytes:
            raise ConfigError(
                f"max_body_bytes={self.max_body_bytes} is less than one file may have "
                f"({self.max_file_bytes}); raise it"
            )
        if self.input_size is not None and self.input_size > self.max_side:
            raise ConfigError(f"input_size={self.input_size} is over max_side={self.max_side}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigError("The token has characters that no header can hold; give plain ASCII")
        if self.token is not None and not self.token.strip():
            raise ConfigError("The token is empty; give one, or leave the option out")
