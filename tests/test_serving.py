"""``featherface serve``: what it finds, what it refuses and how, and that it lives on."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

for _module in ("fastapi", "fastapi_offline", "httpx", "uvicorn", "prometheus_client"):
    pytest.importorskip(_module)

import httpx  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from featherface import FaceDetector  # noqa: E402
from featherface.errors import ConfigError  # noqa: E402
from featherface.serving.app import create_app  # noqa: E402
from featherface.serving.detection import Detection  # noqa: E402
from featherface.serving.settings import ServeSettings  # noqa: E402

PHOTO = Path(__file__).parents[1] / "featherface" / "examples" / "astronaut.jpg"
JPEG = PHOTO.read_bytes()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = ServeSettings(max_file_bytes=1 << 20, max_body_bytes=4 << 20, max_files=3)
    page = tmp_path_factory.mktemp("page")
    (page / "index.html").write_text("<h1>Faces</h1>")
    (page / "app.mjs").write_text("export {};")
    (page / "runtime.wasm.gz").write_bytes(gzip.compress(b"\0asm and so on"))
    with TestClient(create_app(settings, page)) as client:
        yield client


def files(*contents: bytes | tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    named = [one if isinstance(one, tuple) else ("photo.jpg", one) for one in contents]
    return [("images", one) for one in named]


def post(client: TestClient, *contents: bytes | tuple[str, bytes], **data: Any) -> httpx.Response:
    return client.post("/v1/detect", files=files(*contents), data=data)


def encode(suffix: str, width: int = 64, height: int = 48) -> bytes:
    return cv2.imencode(suffix, np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def png_of(width: int, height: int) -> bytes:
    """A grey PNG of this size that is small as a file: rows of zeros, packed."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        target.writestr("run.sh", "echo")
    return packed.getvalue()


def with_comment(jpeg: bytes, comment: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + jpeg[2:]


def test_finds_what_the_detector_finds(client: TestClient) -> None:
    answer = post(client, ("me.jpg", JPEG))
    assert answer.status_code == 200
    (image,) = answer.json()["images"]
    assert (image["name"], image["width"], image["height"]) == ("me.jpg", 512, 512)
    assert image["milliseconds"] > 0
    assert image["faces"] == FaceDetector(threads=1)(JPEG).to_dict()["faces"]
    assert len(image["faces"][0]["landmarks"]) == 5


def test_coordinates_are_of_the_original_picture(red_weights: Path) -> None:
    picture = np.zeros((128, 256, 3), np.uint8)
    picture[32:40, 64:72] = (0, 0, 255)
    client = TestClient(create_app(ServeSettings(weights=red_weights)))
    sent = cv2.imencode(".png", picture)[1].tobytes()
    (image,) = post(client, sent, input_size="original").json()["images"]
    assert image["faces"][0]["box"] == [60, 28, 76, 44]
    doubled = post(client, sent, input_size="512").json()["images"][0]["faces"]
    assert all(face["box"][2] - face["box"][0] == 8 for face in doubled)


def test_many_pictures_keep_their_order_and_their_own_errors(client: TestClient) -> None:
    answer = post(client, ("a.jpg", JPEG), ("b.txt", b"hello"), ("c.png", encode(".png")))
    assert answer.status_code == 200
    first, second, third = answer.json()["images"]
    assert first["name"] == "a.jpg"
    assert first["faces"]
    assert second == {"name": "b.txt", "error": second["error"]}
    assert second["error"]["code"] == "not_a_picture"
    assert "b.txt" in second["error"]["message"]
    assert third["faces"] == []
    assert third["width"] == 64


def test_fields_come_by_form_or_query(client: TestClient) -> None:
    everything = post(client, JPEG, score_threshold="0.05", nms_iou="0.9").json()["images"][0]
    by_query = client.post("/v1/detect?score_threshold=0.05&nms_iou=0.9", files=files(JPEG))
    assert by_query.json()["images"][0]["faces"] == everything["faces"]
    assert len(everything["faces"]) > 1
    assert post(client, JPEG, score_threshold="1").json()["images"][0]["faces"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("score_threshold", "1.5"),
        ("score_threshold", "nan"),
        ("score_threshold", "0"),
        ("nms_iou", "-1"),
        ("nms_iou", "1"),
        ("nms_iou", "much"),
        ("input_size", "31"),
        ("input_size", "100000"),
        ("input_size", "huge"),
    ],
)
def test_impossible_fields_are_named(client: TestClient, field: str, value: str) -> None:
    answer = post(client, JPEG, **{field: value})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_field"
    assert field in answer.json()["error"]["message"]


BAD = {
    "empty": (b"", 422, "damaged_picture"),
    "text": (b"hello there", 415, "not_a_picture"),
    "program": (b"\x7fELF" + bytes(range(256)), 415, "not_a_picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "not_a_picture"),
    "archive": (archive(), 415, "not_a_picture"),
    "tiff": (encode(".tiff"), 415, "not_a_picture"),
    "torn jpeg": (JPEG[: len(JPEG) // 2], 422, "damaged_picture"),
    "torn png": (encode(".png")[:-20], 422, "damaged_picture"),
    "torn header": (JPEG[:12], 422, "damaged_picture"),
    "noise in png": (png_of(9, 9).replace(b"IDAT", b"IDAT" * 2, 1), 422, "damaged_picture"),
    "too many bytes": (JPEG + bytes(1 << 20), 413, "file_too_large"),
    "bomb": (png_of(30_000, 20_000), 413, "too_many_pixels"),
    "100 megapixels": (png_of(10_000, 10_000), 413, "too_many_pixels"),
    "claims 4 gigapixels": (
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 65_535, 65_535) + bytes(99),
        413,
        "too_many_pixels",
    ),
    "jpeg and zip": (JPEG + archive(), 415, "mixed_content"),
    "jpeg and html": (
        with_comment(JPEG, b"<html><script>alert(1)</script>"),
        415,
        "mixed_content",
    ),
    "jpeg and pdf": (with_comment(JPEG, b"%PDF-1.4\n1 0 obj"), 415, "mixed_content"),
    "jpeg and php": (JPEG + b"<?php system('ls'); ?>", 415, "mixed_content"),
    "gif and jpeg": (
        b"GIF89a" + struct.pack("<HHBBB", 64, 48, 0, 0, 0) + b";" + JPEG,
        415,
        "mixed_content",
    ),
    "html and jpeg": (b"<!doctype html><script></script>" + JPEG, 415, "not_a_picture"),
    "zip and jpeg": (archive() + JPEG, 415, "not_a_picture"),
    "png and rar": (encode(".png") + b"Rar!\x1a\x07\x00", 415, "mixed_content"),
    "scan bomb": (JPEG[:-2] + b"\xff\xda" * 300 + JPEG[-2:], 422, "damaged_picture"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_refused_by_name_and_the_server_lives_on(
    client: TestClient, kind: str
) -> None:
    content, status, code = BAD[kind]
    answer = post(client, ("../../etc/bad\x7f.jpg", content))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["file"]) == (code, "bad.jpg")
    assert "bad" in error["message"]
    assert "/" not in error["message"]
    assert client.get("/healthz").status_code == 200


def test_what_cameras_append_is_let_through(client: TestClient) -> None:
    for appended in (JPEG, b"\0\0\0\x18ftypmp42" + bytes(64), bytes(100)):
        assert post(client, JPEG + appended).status_code == 200


def test_a_picture_too_large_to_look_at_unshrunk(client: TestClient) -> None:
    wide = encode(".png", 3000, 40)
    answer = post(client, wide, input_size="original")
    assert answer.status_code == 422
    assert "2048" in answer.json()["error"]["message"]
    assert post(client, wide).status_code == 200


def test_too_many_files(client: TestClient) -> None:
    answer = post(client, *[encode(".png")] * 4)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_files")


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("application/x-www-form-urlencoded", b"images=1", 415),
        ("", b"", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=x", b"x", 400),
        ("multipart/form-data; boundary=x", b"", 422),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\xff\r\n--x--\r\n", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="images"\r\n\r\nabc\r\n--x--\r\n',
            422,
        ),
    ],
)
def test_broken_forms(client: TestClient, content_type: str, body: bytes, status: int) -> None:
    answer = client.post("/v1/detect", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_bodies_over_the_limit_are_not_read(client: TestClient) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        while sent < 64 << 20:
            sent += 1 << 20
            yield bytes(1 << 20)

    announced = client.post(
        "/v1/detect", content=b"x", headers={**form, "Content-Length": str(5 << 20)}
    )
    assert (announced.status_code, announced.json()["error"]["code"]) == (413, "body_too_large")

    async def stream() -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            for part in endless():
                yield part

        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as caller:
            return await caller.post("/v1/detect", content=body(), headers=form)

    actual = asyncio.run(stream())
    assert (actual.status_code, actual.json()["error"]["code"]) == (413, "body_too_large")
    assert sent <= 6 << 20


def test_slow_bodies_lose_their_place() -> None:
    app = create_app(ServeSettings(body_seconds=0.1))

    async def drip() -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"--x\r\n"
            await asyncio.sleep(5)
            yield b"--x--"

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as caller:
            form = {"Content-Type": "multipart/form-data; boundary=x"}
            return await caller.post("/v1/detect", content=body(), headers=form)

    answer = asyncio.run(drip())
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "too_slow")


def test_too_many_requests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    detect = Detection._detect

    def held(self: Detection, *arguments: Any) -> Any:
        gate.wait(10)
        return detect(self, *arguments)

    monkeypatch.setattr(Detection, "_detect", held)
    app = create_app(ServeSettings(workers=1, waiting=1))

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as caller:
            calls = [
                asyncio.create_task(caller.post("/v1/detect", files=files(encode(".png"))))
                for _ in range(5)
            ]
            await asyncio.sleep(0.3)
            gate.set()
            answers = list(await asyncio.gather(*calls))
            answers.append(await caller.post("/v1/detect", files=files(encode(".png"))))
            return answers

    *answers, later = asyncio.run(crowd())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "busy"
    assert later.status_code == 200


def test_token_guards_the_api_and_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page")
    client = TestClient(create_app(ServeSettings(token="secret"), tmp_path))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        answer = client.post("/v1/detect", files=files(JPEG), headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "secret" not in answer.text
        assert client.get("/metrics", headers=headers).status_code == 401
    right = {"Authorization": "Bearer secret"}
    assert client.post("/v1/detect", files=files(JPEG), headers=right).status_code == 200
    assert client.get("/metrics", headers=right).status_code == 200
    for path in ("/", "/healthz", "/readyz", "/model.onnx", "/docs"):
        assert client.get(path).status_code == 200
    assert "secret" not in repr(ServeSettings(token="secret"))


@pytest.mark.parametrize("token", ["", "  ", "schlüssel", "a\nb"])
def test_tokens_that_no_header_can_hold(token: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        ServeSettings(token=token)


def test_metrics_count(client: TestClient) -> None:
    post(client, JPEG)
    post(client, b"text")
    client.get("/somewhere/else")
    text = client.get("/metrics").text

    def figure(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in the metrics"
        return float(found[1])

    assert figure('featherface_requests_total{path="/v1/detect",status="200"}') >= 1
    assert figure('featherface_requests_total{path="other",status="404"}') >= 1
    assert figure('featherface_images_total{outcome="detected"}') >= 1
    assert figure('featherface_images_total{outcome="not_a_picture"}') >= 1
    assert figure("featherface_image_seconds_count") >= 1
    assert figure("featherface_active") == 0
    assert "somewhere" not in text


def test_documentation_needs_no_other_host(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    operation = described["paths"]["/v1/detect"]["post"]
    assert {"200", "400", "401", "408", "413", "415", "422", "429"} <= set(operation["responses"])
    assert described["components"]["schemas"]["DetectAnswer"]["examples"]
    assert "ErrorAnswer" in str(operation["responses"]["413"])
    page = client.get("/docs").text
    assert "https://" not in page
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert client.get(path).status_code == 200


def test_page_and_weights_are_served(client: TestClient) -> None:
    assert client.get("/").text == "<h1>Faces</h1>"
    assert client.get("/app.mjs").headers["Content-Type"].startswith("text/javascript")
    packed = client.get("/runtime.wasm")
    assert packed.headers["Content-Type"] == "application/wasm"
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.content == b"\0asm and so on"
    plain = client.get("/runtime.wasm", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.content == packed.content
    assert client.get("/model.onnx").content == ServeSettings().weights.read_bytes()
    for path in ("/../settings.py", "/%2e%2e/settings.py", "/..%2fsettings.py", "/missing"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert client.get("/v1/detect").status_code == 405


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/detect", "/missing", "/model.onnx"])
def test_headers_keep_browsers_safe(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "'wasm-unsafe-eval'" in headers["Content-Security-Policy"]


def test_failures_of_the_server_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(Detection, "_detect", broken)
    client = TestClient(create_app(ServeSettings()), raise_server_exceptions=False)
    answer = post(client, JPEG)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in answer.text


# The command itself, as a process.


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "featherface", "serve", "--port", "0", "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "FEATHERFACE_TOKEN": "secret"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    try:
        assert found, line
        yield process, found[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")
def test_command_serves_and_ends_after_what_it_has_begun(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    process, address = server
    with httpx.Client(
        base_url=address, headers={"Authorization": "Bearer secret"}, timeout=30
    ) as caller:
        answer = caller.post("/v1/detect", files=files(("me.jpg", JPEG)))
        assert answer.status_code == 200
        assert answer.json()["images"][0]["faces"]
        assert caller.post("/v1/detect", files=files(b"no")).status_code == 415

        results: list[httpx.Response] = []

        def work() -> None:
            many = files(*[JPEG] * 12)
            token = {"Authorization": "Bearer secret"}
            results.append(
                httpx.post(f"{address}/v1/detect", files=many, headers=token, timeout=30)
            )

        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + 10
        while "featherface_active 1.0" not in caller.get("/metrics").text:
            assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    thread.join()
    assert process.wait(20) == 0
    assert results[0].status_code == 200
    assert len(results[0].json()["images"]) == 12


def test_command_names_a_port_that_is_taken() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "featherface", "serve", "--port", port],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr
