"""The page that detects inside the browser, in a real Chromium, served by the real server."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from featherface import FaceDetector
from featherface.detector import PACKAGED_WEIGHTS

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")

from featherface.serving.app import create_app  # noqa: E402
from featherface.serving.page_files import STATIC  # noqa: E402
from featherface.serving.settings import ServeSettings  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)
ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "featherface" / "examples" / "astronaut.jpg"
WAIT = 60_000  # milliseconds for anything to happen, on a machine that has much else to do
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]

Page = Any
OpenPage = Callable[[str], Page]
Report = list[dict[str, Any]]


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
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.started
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Opens an address in a fresh profile of a Chromium whose camera sees the example.

    At the end no request has gone anywhere but to the page's own server, and none has carried a
    picture away.
    """
    film = tmp_path_factory.mktemp("camera") / "camera.mjpeg"
    film.write_bytes(EXAMPLE.read_bytes() * 10)
    requests: list[Any] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, f"--use-file-for-fake-video-capture={film}"]
        )

        def open_page(at: str) -> Page:
            context = browser.new_context(viewport={"width": 1280, "height": 860})
            context.set_default_timeout(WAIT)
            context.on("request", lambda request: requests.append(request))
            page = context.new_page()
            page.complaints = []
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("console", lambda line: page.complaints.append(line.text))
            page.goto(at)
            return page

        yield open_page
        browser.close()
    assert requests
    for request in requests:
        assert re.match(r"(http://127\.0\.0\.1:\d+/|blob:)", request.url)
        assert request.method in ("GET", "HEAD")


@pytest.fixture(scope="module")
def loaded_page(open_page: OpenPage, address: str) -> Page:
    return open_page(address)


@pytest.fixture
def page(loaded_page: Page) -> Iterator[Page]:
    """The page at its defaults; the network is loaded only once. Nothing may fail in silence."""
    loaded_page.check("input[value='640']")
    loaded_page.fill("#threshold", "0.5")
    loaded_page.wait_for_selector("[aria-busy]", state="detached")
    loaded_page.complaints.clear()
    yield loaded_page
    assert not loaded_page.complaints


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's face in several sizes, some of them hard to find: a PNG of 900x700 pixels."""
    picture = np.full((700, 900, 3), 90, np.uint8)
    example = cv2.imread(str(EXAMPLE))[:330, 100:430]
    x = y = 8
    for side in (300, 200, 140, 100, 70, 50, 36, 26, 20, 16, 12):
        if x + side > 890:
            x, y = 8, y + 316
        size = (side, side)
        picture[y : y + side, x : x + side] = cv2.resize(
            example, size, interpolation=cv2.INTER_AREA
        )
        x += side + 8
    path = tmp_path_factory.mktemp("group") / "group.png"
    cv2.imwrite(str(path), picture)
    return path


def open_example(page: Page) -> None:
    forget(page)
    page.click("#again" if page.is_visible("#again") else "#example")
    wait_for_faces(page, "example.jpg")


def give(page: Page, path: Path) -> None:
    forget(page)
    page.set_input_files("#file", str(path))
    wait_for_faces(page, path.name)


def forget(page: Page) -> None:
    """Take away the label of the picture shown, so that it is not taken for the next one."""
    page.evaluate("document.getElementById('canvas').removeAttribute('aria-label')")


def wait_for_faces(page: Page, name: str) -> None:
    page.wait_for_selector(f"#canvas[aria-label^='{name} with']")
    page.wait_for_selector("#save-json:enabled")


def saved_faces(page: Page) -> Report:
    """What the page's JSON says."""
    with page.expect_download() as download:
        page.click("#save-json")
    assert download.value.suggested_filename.endswith("_faces.json")
    report = json.loads(Path(download.value.path()).read_text())
    assert list(report) == ["faces"]
    return report["faces"]


def assert_same_faces(found: Report, expected: Report) -> None:
    """Each face of one list is in the other: within two pixels and a score of 0.02."""
    assert len(found) == len(expected)
    rest = list(expected)
    for one in found:
        other = min(rest, key=lambda face: np.abs(np.subtract(face["box"], one["box"])).max())
        rest.remove(other)
        assert list(one) == list(other)
        assert np.allclose(one["box"], other["box"], rtol=0, atol=2)
        assert np.allclose(one["landmarks"], other["landmarks"], rtol=0, atol=2)
        assert one["score"] == pytest.approx(other["score"], abs=0.02)


def in_python(path: Path, **options: Any) -> Report:
    return FaceDetector(**options)(path).to_dict()["faces"]


def far_from_all(scores: Sequence[float], low: float, high: float) -> float:
    """A threshold that none of the scores is close to."""
    grid = np.arange(round(low * 100), round(high * 100) + 1) / 100
    distances = np.abs(grid[:, None] - np.asarray([*scores, 2.0])).min(axis=1)
    return float(grid[distances.argmax()])


@needs_chromium
def test_the_example_end_to_end(page: Page) -> None:
    """What the browser finds in a real photo is what FaceDetector finds."""
    open_example(page)
    assert re.match(r"1 face · \d+ ms · 512×512 pixels", page.inner_text("#summary"))
    assert page.inner_text("#count") == "1 face found"
    assert page.is_hidden("#error")
    assert_same_faces(saved_faces(page), in_python(EXAMPLE))
    assert page.evaluate("crossOriginIsolated")


@needs_chromium
@pytest.mark.parametrize(("choice", "input_size"), [("320", 320), ("original", None)])
def test_input_sizes(page: Page, choice: str, input_size: int | None) -> None:
    open_example(page)
    page.check(f"input[value='{choice}']")
    shown = f"seen at {input_size or 512}×{input_size or 512}"
    page.wait_for_selector(f"#summary:has-text('{shown}')")
    page.wait_for_selector("#save-json:enabled")
    assert_same_faces(saved_faces(page), in_python(EXAMPLE, input_size=input_size))


@needs_chromium
def test_the_threshold_acts_at_once(page: Page, group: Path) -> None:
    """Moving it chooses other faces and does not run the network again."""
    give(page, group)
    scores = [face["score"] for face in in_python(group, score_threshold=0.05)]
    seen = []
    time_taken = re.search(r"\d+ ms", page.inner_text("#summary"))[0]
    for low, high in ((0.08, 0.35), (0.36, 0.65), (0.66, 0.95)):
        threshold = far_from_all(scores, low, high)
        page.fill("#threshold", f"{threshold:.2f}")
        assert page.inner_text("#threshold-value") == f"{threshold:.2f}"
        assert time_taken in page.inner_text("#summary")
        found = saved_faces(page)
        assert_same_faces(found, in_python(group, score_threshold=threshold))
        seen.append(len(found))
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > 1
    page.fill("#threshold", "0.05")
    assert page.inner_text("#summary").startswith(page.inner_text("#count").split()[0])


@needs_chromium
def test_the_picture_is_saved_with_boxes(page: Page, tmp_path: Path) -> None:
    open_example(page)
    with page.expect_download() as download:
        page.click("#save-picture")
    assert download.value.suggested_filename == "example_faces.png"
    path = tmp_path / "saved.png"
    download.value.save_as(path)
    saved, plain = cv2.imread(str(path)), cv2.imread(str(EXAMPLE))
    assert saved.shape == plain.shape
    changed = np.abs(saved.astype(int) - plain).max(axis=2) > 60
    x1, y1, _, y2 = np.round(FaceDetector()(EXAMPLE).boxes[0]).astype(int)
    left_side = changed[y1 + 10 : y2 - 10, x1 - 1 : x1 + 2].any(axis=1)
    assert left_side.mean() > 0.8
    assert not changed[:, : x1 - 10].any()
    assert not changed[y2 + 10 :].any()


@needs_chromium
def test_a_photo_lying_on_its_side_is_turned(page: Page, tmp_path: Path) -> None:
    """The orientation that phones write into their photos is heeded."""
    from PIL import Image

    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    with Image.open(EXAMPLE) as image:
        upright = image.crop((0, 0, 512, 400))
        upright.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=exif)
    give(page, path)
    assert "512×400 pixels" in page.inner_text("#summary")
    assert_same_faces(saved_faces(page), in_python(path))


def hand_over(page: Page, event: str, path: Path, media_type: str) -> None:
    """Drop a file on the page, or paste it, as the browser would tell of it."""
    page.evaluate(
        """([event, data, name, type]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            const options = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
                : new DragEvent("drop", { ...options, dataTransfer: transfer }));
        }""",
        [event, base64.b64encode(path.read_bytes()).decode(), path.name, media_type],
    )


@needs_chromium
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_photos_are_dropped_and_pasted(page: Page, tmp_path: Path, event: str) -> None:
    photo = tmp_path / f"{event}.jpg"
    shutil.copy(EXAMPLE, photo)
    hand_over(page, event, photo, "image/jpeg")
    wait_for_faces(page, photo.name)
    assert page.inner_text("#count") == "1 face found"


@needs_chromium
def test_what_is_no_picture_gives_one_clear_line(page: Page, tmp_path: Path) -> None:
    open_example(page)
    before = page.inner_text("#summary")
    notes = tmp_path / "notes.jpg"
    notes.write_text("no picture")
    hand_over(page, "drop", notes, "image/jpeg")
    page.wait_for_selector("#error:visible")
    expected = "notes.jpg is not a picture that this browser can open; give a JPEG, PNG or WebP."
    assert page.inner_text("#error") == expected
    assert page.inner_text("#summary") == before
    open_example(page)
    assert page.is_hidden("#error")
    page.set_input_files("#file", str(notes))
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error") == expected
    page.check("input[value='320']")  # looks again, at the photo shown before
    page.wait_for_selector("[aria-busy]", state="detached")
    assert page.inner_text("#error") == expected
    open_example(page)


@needs_chromium
def test_everything_by_keyboard(page: Page) -> None:
    """Tab reaches each control, which shows that it has the focus; keys work them."""
    open_example(page)
    page.focus("#choose")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")  # the ring is for those who came by keyboard
    reached = []
    for _ in range(8):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        ring = page.evaluate(
            """() => {
                const one = document.activeElement;
                const place = one.type === "radio" ? one.nextElementSibling : one;
                return getComputedStyle(place).outlineStyle;
            }"""
        )
        assert ring == "solid", f"no focus ring on {reached[-1]}"
        page.keyboard.press("Tab")
    assert reached[:6] == ["choose", "paste", "webcam", "again", "threshold", "size"]
    assert reached[6:] == ["save-picture", "save-json"]

    page.focus("#threshold")
    page.keyboard.press("Home")
    assert page.inner_text("#threshold-value") == "0.05"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#threshold-value") == "0.06"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#summary:has-text('seen at 320×320')")
    page.wait_for_selector("#save-json:enabled")
    with page.expect_download():
        page.focus("#save-json")
        page.keyboard.press("Enter")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input")]
            .filter((one) => !one.ariaLabel && !one.labels?.length && !one.textContent.trim())
            .map((one) => one.id)"""
    )
    assert not unnamed


@needs_chromium
def test_the_webcam(page: Page) -> None:
    """Frames come in and the face in them is found, until it is stopped."""
    page.check("input[value='320']")
    page.click("#webcam")
    page.wait_for_selector("#summary:has-text('frames per second')")
    first = page.inner_text("#summary")
    assert first.startswith("1 face ·")
    deadline = time.monotonic() + WAIT / 1000
    while page.inner_text("#summary") == first and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert page.inner_text("#summary") != first
    assert page.inner_text("#webcam") == "Stop webcam"
    page.click("#webcam")
    assert page.inner_text("#webcam") == "Webcam"
    assert page.get_attribute("#webcam", "aria-pressed") == "false"
    assert "frames" not in page.inner_text("#summary")
    assert len(saved_faces(page)) == 1


@needs_chromium
@pytest.mark.parametrize(
    ("reason", "line"),
    [("NotAllowedError", "The webcam was refused"), ("NotFoundError", "No webcam was found")],
)
def test_a_webcam_refused(page: Page, reason: str, line: str) -> None:
    page.evaluate(
        """(reason) => {
            navigator.mediaDevices.getUserMedia =
                () => Promise.reject(new DOMException("", reason));
        }""",
        reason,
    )
    page.click("#webcam")
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error").startswith(line)
    assert page.inner_text("#webcam") == "Webcam"
    page.evaluate("delete navigator.mediaDevices.getUserMedia")


@needs_chromium
def test_it_goes_on_without_a_network(page: Page, tmp_path: Path) -> None:
    """Once loaded, the page asks for nothing more."""
    open_example(page)
    loaded = page.evaluate("performance.getEntriesByType('resource').length")
    page.context.set_offline(True)
    try:
        photo = tmp_path / "offline.jpg"
        shutil.copy(EXAMPLE, photo)
        give(page, photo)
        open_example(page)
        assert page.inner_text("#count") == "1 face found"
    finally:
        page.context.set_offline(False)
    assert page.evaluate("performance.getEntriesByType('resource').length") == loaded


@needs_chromium
@pytest.mark.parametrize(("width", "height"), [(375, 812), (320, 568)])
def test_nothing_sticks_out_on_a_phone(page: Page, width: int, height: int) -> None:
    open_example(page)
    page.set_viewport_size({"width": width, "height": height})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, .choices span")]
            .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 44)
            .map((one) => one.textContent)"""
    )
    assert not small, "too small for a finger"
    page.set_viewport_size({"width": 1280, "height": 860})


@pytest.fixture
def plain_server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server that knows nothing of this page, and the folder that it shows."""
    folder = tmp_path / "static"
    shutil.copytree(STATIC, folder)
    for packed in folder.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))

    class Quiet(SimpleHTTPRequestHandler):
        extensions_map = {  # noqa: RUF012
            **SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


@needs_chromium
def test_without_special_headers(open_page: OpenPage, plain_server: tuple[str, Path]) -> None:
    """Not isolated from other origins, the page has one thread and works all the same."""
    at, folder = plain_server
    missing = open_page(at)
    missing.wait_for_selector("#error:visible")
    line = missing.inner_text("#error")
    assert line == "The model, model.onnx, could not be loaded: the server answered 404."
    missing.context.close()

    shutil.copy(PACKAGED_WEIGHTS, folder / "model.onnx")
    page = open_page(at)
    assert not page.evaluate("crossOriginIsolated")
    open_example(page)
    assert_same_faces(saved_faces(page), in_python(EXAMPLE))
    page.context.close()


def test_the_page_is_built_from_its_sources(tmp_path: Path) -> None:
    """What is committed is what `npm run build` makes."""
    node = shutil.which("node")
    web = ROOT / "web"
    if node is None or not (web / "node_modules" / "esbuild").is_dir():
        pytest.skip("needs Node.js, and `npm ci --ignore-scripts` in web/")
    built = tmp_path / "static"
    subprocess.run([node, str(web / "build.js"), str(built)], check=True)
    names = sorted(path.name for path in STATIC.iterdir())
    assert sorted(path.name for path in built.iterdir()) == names
    for name in names:
        first, second = (folder / name for folder in (built, STATIC))
        unpack = gzip.decompress if name.endswith(".gz") else bytes
        assert unpack(first.read_bytes()) == unpack(second.read_bytes()), f"{name}: build again"


def test_the_lock_file_names_no_registry() -> None:
    assert "resolved" not in (ROOT / "web" / "package-lock.json").read_text()


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 4_000_000
