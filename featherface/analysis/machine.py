"""The machine and the libraries that a figure was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("featherface", "numpy", "opencv-python-headless", "onnxruntime", "onnx")


def describe_machine() -> dict[str, Any]:
    """``cpu``, ``cores``, ``system``, ``python`` and the ``libraries`` with their versions."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def cpu_name() -> str:
    """The processor's name as the system tells it, with its vector extensions on Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.split("\n"))
    }
    name = fields.get("model name") or platform.machine()
    flags = fields.get("flags", "").split()
    family = (
        f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    )
    widest = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if flag in flags]
    extras = ", ".join(part for part in (family, " ".join(widest)) if part)
    return f"{name} ({extras})" if extras else name


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
