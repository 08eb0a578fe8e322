"""What Prometheus is told, and the ASGI layer that counts requests."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
NAMED_PATHS = ("/v1/detect", "/healthz", "/readyz", "/metrics", "/model.onnx", "/openapi.json")


class Metrics:
    """The counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "featherface_requests",
            "Requests answered, by path and status",
            ("path", "status"),
            registry=self.registry,
        )
        self.refused = Counter(
            "featherface_refused", "Requests refused with 429", registry=self.registry
        )
        self.active = Gauge(
            "featherface_active", "Requests to the API now inside", registry=self.registry
        )
        self.images = Counter(
            "featherface_images",
            "Pictures, by outcome: detected or the code of the error",
            ("outcome",),
            registry=self.registry,
        )
        self.faces = Counter("featherface_faces", "Faces found", registry=self.registry)
        self.seconds = Histogram(
            "featherface_image_seconds",
            "Decoding and detecting one picture",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI layer: one count a request. Paths that nobody named are one label, not a label each."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in NAMED_PATHS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:  # answered with 500 further out
            self.metrics.requests.labels(path, "500").inc()
            raise
