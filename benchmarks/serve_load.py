"""``featherface serve`` under load: many requests at once, broken ones among them.

    python -m benchmarks.serve_load --requests 1000 --concurrency 32

Starts the server as a process of its own, warms it up, and sends it good pictures of several sizes
and everything that can be wrong with one. A caller that is told to come back (429) does so, as a
well-behaved client would. Writes ``results/serving/load.json``: answers by kind and status, times
of the pictures that were looked at, and the server's memory along the way.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from rich.progress import Progress

from featherface.analysis.contenders import PACKAGE
from featherface.analysis.machine import describe_machine
from featherface.cli.demo import EXAMPLE
from featherface.errors import FeatherFaceError
from featherface.evaluation.result_files import write_result_json

RESULTS = PACKAGE.parent / "results" / "serving" / "load.json"
MALFORMED = 0.3  # share of the requests
SAMPLES = 20  # of the server's memory
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
WHOLE_FORM = b'--x\r\nContent-Disposition: form-data; name="images"\r\n\r\nno file\r\n--x--\r\n'


@dataclass(frozen=True)
class Call:
    """One kind of request: what httpx sends, and the status that is right for it."""

    kind: str
    expected: int
    request: dict[str, Any]


@dataclass
class Tally:
    """What came back."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unexpected: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    told_to_wait: int = 0
    done: int = 0


def good_calls() -> list[Call]:
    """The example photo at four sizes, and three of them in one request."""
    photo = cv2.imread(str(EXAMPLE))
    assert photo is not None
    calls, pictures = [], []
    for width in (320, 640, 1280, 1920):
        resized = cv2.resize(photo, (width, width * 3 // 4))
        pictures.append(cv2.imencode(".jpg", resized)[1].tobytes())
        calls.append(_upload(f"{width} wide", 200, pictures[-1]))
    three = [("images", (f"{place}.jpg", data)) for place, data in enumerate(pictures[:3])]
    calls.append(Call("three pictures", 200, {"files": three}))
    return calls


def bad_calls() -> list[Call]:
    """What can be wrong with a request."""
    photo = EXAMPLE.read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "text")
    bomb = cv2.imencode(".png", np.zeros((10_000, 10_000), np.uint8))[1].tobytes()
    return [
        _upload("text", 415, b"no picture at all"),
        _upload("empty", 422, b""),
        _upload("torn", 422, photo[: len(photo) // 2]),
        _upload("100 megapixels", 413, bomb),
        _upload("JPEG and ZIP", 415, photo + packed.getvalue()),
        _upload("21 MiB", 413, photo + bytes(21 << 20)),
        _upload("threshold of 7", 422, photo, {"score_threshold": "7"}),
        Call("no form", 415, {"json": {"images": "none"}}),
        Call("broken form", 422, {"content": b"--x\r\nrubbish", "headers": FORM}),
        Call("field, not file", 422, {"content": WHOLE_FORM, "headers": FORM}),
    ]


def run_load(requests: int, concurrency: int) -> dict[str, Any]:
    """Start the server, send ``requests`` with ``concurrency`` at once; the results as JSON."""
    generator = random.Random(0)
    good, bad = good_calls(), bad_calls()
    calls = [
        generator.choice(bad if generator.random() < MALFORMED else good) for _ in range(requests)
    ]
    process, address = start_server()
    try:
        tally = Tally()
        asyncio.run(send([*good, *bad] * 3, address, concurrency, Tally(), process.pid))
        before = memory_mib(process.pid)
        start = time.perf_counter()
        memory = asyncio.run(send(calls, address, concurrency, tally, process.pid))
        seconds = time.perf_counter() - start
        after = memory_mib(process.pid)
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(30)
    finally:
        process.kill()
        process.wait()
    times = np.array(tally.seconds) * 1000
    total: Counter[str] = sum(tally.statuses.values(), Counter())
    return {
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "load_average_at_end": round(os.getloadavg()[0], 1),
        "requests": requests,
        "concurrency": concurrency,
        "warm_up_requests": 3 * len(good + bad),
        "seconds": round(seconds, 1),
        "requests_per_second": round(requests / seconds, 1),
        "statuses": dict(sorted(total.items())),
        "server_errors_5xx": sum(
            count for status, count in total.items() if status[0] == "5" and status.isdigit()
        ),
        "lost_connections": sum(count for status, count in total.items() if not status.isdigit()),
        "unexpected": tally.unexpected,
        "told_to_wait_429": tally.told_to_wait,
        "by_kind": {kind: dict(counts) for kind, counts in sorted(tally.statuses.items())},
        "milliseconds_of_good_requests": {
            f"p{share}": round(float(np.percentile(times, share)), 1) for share in (50, 90, 99, 100)
        },
        "memory_mib": {"before": before, "along_the_way": memory, "after": after},
        "exit_code_after_sigterm": exit_code,
    }


async def send(
    calls: list[Call], address: str, concurrency: int, tally: Tally, server: int
) -> list[float]:
    """Send all ``calls``; the server's memory in MiB at even steps of the way."""
    memory: list[float] = []
    waiting = iter(calls)
    step = max(1, len(calls) // SAMPLES)
    limits = httpx.Limits(max_connections=concurrency)
    with Progress() as progress:
        bar = progress.add_task("Requests", total=len(calls))

        async def worker(client: httpx.AsyncClient) -> None:
            for call in waiting:
                await _send_one(client, call, tally)
                progress.advance(bar)
                if tally.done % step == 0:
                    memory.append(memory_mib(server))

        async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
            await asyncio.gather(*(worker(client) for _ in range(concurrency)))
    return memory


async def _send_one(client: httpx.AsyncClient, call: Call, tally: Tally) -> None:
    start = time.perf_counter()
    while True:
        try:
            answer = await client.post("/v1/detect", **call.request)
        except httpx.TransportError as error:
            status = type(error).__name__
            break
        status = str(answer.status_code)
        if answer.status_code != 429:
            break
        tally.told_to_wait += 1
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    tally.done += 1
    tally.statuses[call.kind][status] += 1
    if status == "200":
        tally.seconds.append(time.perf_counter() - start)
    if status != str(call.expected):
        tally.unexpected.append(f"{call.kind}: {status}, not {call.expected}")


def start_server() -> tuple[subprocess.Popen[str], str]:
    """The process of ``featherface serve`` and its address; fewer places than callers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "featherface", "serve", "--port", "0", "--waiting", "24"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    if not found:
        process.kill()
        raise FeatherFaceError(f"The server did not start: {line or 'it said nothing'}")
    return process, found[0]


def memory_mib(process: int) -> float:
    """Resident memory (VmRSS) of a process in MiB."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    if not found:
        raise FeatherFaceError(f"/proc/{process}/status has no VmRSS: memory cannot be measured")
    return round(int(found[1]) / 1024, 1)


def _upload(kind: str, expected: int, data: bytes, fields: dict[str, str] | None = None) -> Call:
    return Call(kind, expected, {"files": {"images": ("photo.jpg", data)}, "data": fields or {}})


def main() -> None:
    """Run the load and write the results; exit code 1 if anything came back that should not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = run_load(arguments.requests, arguments.concurrency)
    write_result_json(arguments.out, results)
    print(f"{arguments.out}: {results['statuses']}, memory {results['memory_mib']}")
    sys.exit(1 if results["unexpected"] else 0)


if __name__ == "__main__":
    main()
