"""Who is let in: pure ASGI around the API, before a byte of a body is kept.

In this order: the token, a place in the queue, the announced size, and then, while the body comes
in, its real size and its time.
"""

from __future__ import annotations

import asyncio
import hmac
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featherface.serving.metrics import Metrics
from featherface.serving.problems import ApiError, error_response
from featherface.serving.settings import MEBIBYTE, ServeSettings

RETRY_AFTER = "1"
DISCARD_SECONDS = 10.0


class Admission:
    """Lets requests to ``/v1/`` through while there is room; the token also guards ``/metrics``."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.places = settings.workers + settings.waiting
        self.taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        api = path.startswith("/v1/")
        if scope["type"] != "http" or not (api or path == "/metrics"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_token(headers)
            if not api:
                await self.app(scope, receive, send)
                return
            if scope["method"] == "POST":
                self._check_announced(headers)
            self._take_place()
        except ApiError as error:
            await self._refuse(error, headers, receive, send)
            return
        try:
            await self.app(scope, self._limited(receive), send)
        finally:
            self.taken -= 1
            self.metrics.active.set(self.taken)

    async def _refuse(
        self, error: ApiError, headers: Headers, receive: Receive, send: Send
    ) -> None:
        """Answer at once, then let the client finish sending.

        A connection that is closed with unread bytes is reset, and the client may lose the answer.
        """
        response = error_response(error)
        response.headers["Connection"] = "close"
        start = {"status": response.status_code, "headers": response.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        if "expect" not in headers:  # else the client waits for leave to send
            await _discard(receive, self.settings.max_body_bytes)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _check_token(self, headers: Headers) -> None:
        if self.settings.token is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        expected = self.settings.token.encode()
        matches = hmac.compare_digest(given.strip().encode(), expected)
        if kind.lower() != "bearer" or not matches:
            raise ApiError(
                401,
                "unauthorized",
                "Send the server's token: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _take_place(self) -> None:
        if self.taken >= self.places:
            self.metrics.refused.inc()
            raise ApiError(
                429,
                "busy",
                f"{self.taken} requests are being worked on; try again in a moment",
                headers={"Retry-After": RETRY_AFTER},
            )
        self.taken += 1
        self.metrics.active.set(self.taken)

    def _check_announced(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise ApiError(400, "bad_request", "The Content-Length is not a number")
        if int(length) > self.settings.max_body_bytes:
            raise self._too_large()
        if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise ApiError(
                415,
                "not_multipart",
                "Send multipart/form-data with one or more files in the field images",
            )

    def _too_large(self) -> ApiError:
        limit = self.settings.max_body_bytes / MEBIBYTE
        return ApiError(
            413,
            "body_too_large",
            f"The request is larger than {limit:,.0f} MiB; send fewer or smaller pictures",
            headers={"Connection": "close"},
        )

    def _limited(self, receive: Receive) -> Receive:
        """``receive`` that raises ``ApiError`` once the body is too large or takes too long."""
        deadline = time.monotonic() + self.settings.body_seconds
        received, complete = 0, False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:  # what is left to come is the client's leaving
                return await receive()
            try:
                left = max(0.0, deadline - time.monotonic())
                message = await asyncio.wait_for(receive(), left)
            except asyncio.TimeoutError:
                raise ApiError(
                    408,
                    "too_slow",
                    f"The request did not arrive within {self.settings.body_seconds:g} seconds",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > self.settings.max_body_bytes:
                    raise self._too_large()
            return message

        return limited


async def _discard(receive: Receive, most: int) -> None:
    """Read and forget what is left of a body: up to ``most`` bytes, for a while."""

    async def read() -> None:
        left = most
        while left > 0:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))

    try:
        await asyncio.wait_for(read(), DISCARD_SECONDS)
    except asyncio.TimeoutError:
        return
