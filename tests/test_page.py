"""The page that detects inside the browser, in a real Chromium, served by the real server."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from featherface import FaceDetector
from featherface.boxes import box_iou
from featherface.detector import PACKAGED_WEIGHTS

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")

from featherface.serving.app import create_app  # noqa: E402
from featherface.serving.page_files import STATIC  # noqa: E402
from featherface.serving.settings import ServeSettings  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(not (STATIC / "index.html").is_file(), reason="the page is not built"),
]
EXAMPLE = Path(__file__).parents[1] / "featherface" / "examples" / "astronaut.jpg"
WAIT = 20_000  # milliseconds for anything to happen
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]

Page = Any
OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The server of `featherface serve` on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(create_app(ServeSettings()), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.started
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[OpenPage]:
    """Opens the page in a fresh profile; at the end, nothing was asked of anyone but its server."""
    contexts: list[Any] = []
    asked: list[str] = []
    complaints: list[str] = []

    def open_page(at: str = address, **options: Any) -> Page:
        context = browser.new_context(**{"accept_downloads": True, **options})
        contexts.append(context)
        context.set_default_timeout(WAIT)
        page = context.new_page()
        context.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text))
        page.complaints = complaints
        page.goto(at)
        return page

    yield open_page
    for context in contexts:
        context.close()
    abroad = [url for url in asked if not re.match(r"(http://127\.0\.0\.1:\d+/|blob:|data:)", url)]
    assert not abroad


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()


def wait_for_faces(page: Page) -> None:
    page.wait_for_selector("#save-json:enabled")


def give(page: Page, *files: Any) -> None:
    page.set_input_files("#file", *files)


def saved_faces(page: Page, folder: Path) -> list[dict[str, Any]]:
    with page.expect_download() as download:
        page.click("#save-json")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    report = json.loads(path.read_text())
    assert list(report) == ["faces"]
    return report["faces"]


def assert_same_faces(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        assert one["score"] == pytest.approx(other["score"], abs=0.02)
        assert np.allclose(one["box"], other["box"], atol=2)
        assert np.allclose(one["landmarks"], other["landmarks"], atol=2)


def test_the_example_end_to_end(page: Page, tmp_path: Path) -> None:
    """What the browser finds is what FaceDetector finds."""
    page.click("#example")
    wait_for_faces(page)
    assert re.match(r"1 face · \d+ ms · 512×512 pixels", page.inner_text("#summary"))
    assert page.inner_text("#count") == "1 face found"
    assert page.get_attribute("#canvas", "aria-label") == "example.jpg with 1 face marked"
    assert page.is_hidden("#error")
    expected = FaceDetector()(EXAMPLE).to_dict()["faces"]
    assert_same_faces(saved_faces(page, tmp_path), expected)
    assert not page.complaints


def test_the_picture_is_saved_with_boxes(page: Page, tmp_path: Path) -> None:
    page.click("#example")
    wait_for_faces(page)
    with page.expect_download() as download:
        page.click("#save-picture")
    assert download.value.suggested_filename == "example_faces.png"
    download.value.save_as(tmp_path / "saved.png")
    saved = cv2.imread(str(tmp_path / "saved.png"))
    plain = cv2.imread(str(EXAMPLE))
    assert saved.shape == plain.shape
    changed = np.abs(saved.astype(int) - plain).max(axis=2) > 80
    x1, y1, x2, y2 = np.round(FaceDetector()(EXAMPLE).boxes[0]).astype(int)
    assert changed[y1 : y2 + 1, x1 - 1 : x1 + 2].any(axis=1).mean() > 0.7  # the left side
    assert not changed[:, : x1 - 20].any()
