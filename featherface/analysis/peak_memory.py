"""Peak memory of one detector, in a process of its own.

The child loads the libraries, notes its memory, opens the detector, runs a few images, and tells
the highest resident memory that the kernel saw, in total and above the libraries.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from featherface.analysis.contenders import Entry, child_environment, load_peers
from featherface.errors import FeatherFaceError

RUNS = 3


def measure_peak_memory(entry: Entry, width: int, height: int) -> dict[str, float] | None:
    """``{"total_mib", "above_libraries_mib"}`` for one thread; None where /proc is missing."""
    if not Path("/proc/self/status").is_file():
        return None
    arguments = [entry.adapter, str(entry.model), str(width), str(height)]
    done = subprocess.run(
        [sys.executable, "-m", "featherface.analysis.peak_memory", *arguments],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FeatherFaceError(f"{entry.model}: the memory measurement failed: {reason}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def memory_mib(field: str) -> float:
    """A field of /proc/self/status, such as VmRSS or VmHWM (the peak), in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise FeatherFaceError(f"/proc/self/status has no {field}: peak memory cannot be measured")


def main() -> None:
    """The child: ADAPTER MODEL WIDTH HEIGHT; prints the figures as JSON."""
    adapter, model, width, height = sys.argv[1:]
    if adapter != "featherface":
        load_peers()
    before = memory_mib("VmRSS")
    contender = Entry("child", Path(model), adapter).open(threads=1, score_threshold=0.5)
    image = np.random.default_rng(0).integers(0, 256, (int(height), int(width), 3), np.uint8)
    for _ in range(RUNS):
        contender(image)
    peak = memory_mib("VmHWM")
    figures = {"total_mib": round(peak, 1), "above_libraries_mib": round(peak - before, 1)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
