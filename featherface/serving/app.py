"""The application of ``featherface serve``: the API, its documentation, health, metrics, page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.exceptions import HTTPException as StarletteHTTPException

import featherface
from featherface.serving.admission import Admission
from featherface.serving.answers import DetectAnswer, ErrorAnswer, Problem
from featherface.serving.detection import Detection, Wishes
from featherface.serving.headers import SafeHeaders
from featherface.serving.metrics import CountRequests, Metrics
from featherface.serving.page_files import STATIC, PageFiles
from featherface.serving.problems import CODES, ApiError, error_response, problem_response
from featherface.serving.settings import ServeSettings

DESCRIPTION = """Finds faces and their five landmarks. No picture is kept. One bad picture alone
gives an error status; among several it has its error in its place.
"""
# The limits keep one request from asking for ten thousand boxes, which takes a minute to sort out.
Threshold = Annotated[float, Field(ge=0.05, le=1, allow_inf_nan=False)]
Overlap = Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)]
InputSize = Annotated[int, Field(ge=32)] | Literal["original"]
ThresholdField = Annotated[
    Threshold | None, Form(description="Lowest score of a face; also as a query field")
]
OverlapField = Annotated[
    Overlap | None,
    Form(description="Overlap (IoU) at which the lesser box goes; also as a query field"),
]
SizeField = Annotated[
    InputSize | None,
    Form(description='Long side in pixels, or "original"; also as a query field'),
]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The body is not the multipart form that it says it is",
        401: "The token is missing or wrong",
        408: "The body came too slowly",
        413: "Too many bytes, files or pixels",
        415: "No multipart form; or the one picture is none, or is something else as well",
        422: "A field has an impossible value, or the one picture is empty, torn or damaged",
        429: "All places are taken; Retry-After says when to come back",
    }.items()
}


def create_app(settings: ServeSettings, static: Path = STATIC) -> FastAPI:
    """The application; loads the weights. ``static``: the page's folder, left out if missing.

    Raises ``WeightsError`` and ``ConfigError`` as ``FaceDetector`` does.
    """
    metrics = Metrics()
    detection = Detection(settings, metrics)
    app = FastAPIOffline(
        title="FeatherFace",
        version=featherface.__version__,
        description=DESCRIPTION,
        redoc_url=None,
    )
    _add_error_handlers(app)
    _add_detection(app, detection)
    _add_operations(app, settings, metrics)
    _add_page(app, static)
    # The last one added is the outermost.
    app.add_middleware(Admission, settings=settings, metrics=metrics)
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_middleware(SafeHeaders)
    return app


def _add_detection(app: FastAPI, detection: Detection) -> None:
    settings = detection.settings

    def read_wishes(
        score_threshold: ThresholdField = None,
        nms_iou: OverlapField = None,
        input_size: SizeField = None,
        query_threshold: Annotated[Threshold | None, Query(alias="score_threshold")] = None,
        query_iou: Annotated[Overlap | None, Query(alias="nms_iou")] = None,
        query_size: Annotated[InputSize | None, Query(alias="input_size")] = None,
    ) -> Wishes:
        """The form's fields, then the query's, then the server's own settings."""
        size = _first(input_size, query_size, settings.input_size or "original")
        if isinstance(size, int) and size > settings.max_side:
            raise ApiError(
                422,
                "invalid_field",
                f"input_size={size}: this server looks at up to {settings.max_side} pixels",
            )
        return Wishes(
            score_threshold=_first(score_threshold, query_threshold, settings.score_threshold),
            nms_iou=_first(nms_iou, query_iou, settings.nms_iou),
            input_size=None if size == "original" else int(size),
        )

    @app.post(
        "/v1/detect",
        response_model=DetectAnswer,
        response_model_exclude_none=True,
        responses=ERRORS,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if settings.token else [],
        tags=["detection"],
        summary="Find the faces of one or many pictures",
    )
    async def detect(
        images: Annotated[list[UploadFile], File(description="JPEG, PNG, WebP, BMP or GIF")],
        wishes: Wishes = Depends(read_wishes),
    ) -> DetectAnswer:
        if len(images) > settings.max_files:
            raise ApiError(
                413,
                "too_many_files",
                f"{len(images)} pictures in one request; send at most {settings.max_files}",
            )
        if len(images) == 1:
            return DetectAnswer(images=[await detection.look_at(images[0], wishes)])
        return DetectAnswer(images=await detection.look_at_all(images, wishes))


def _add_operations(app: FastAPI, settings: ServeSettings, metrics: Metrics) -> None:
    @app.get("/healthz", tags=["operation"], summary="The process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["operation"], summary="The weights are loaded; send requests")
    async def ready() -> dict[str, str]:
        return {"status": "ready", "version": featherface.__version__}

    @app.get(
        "/metrics",
        tags=["operation"],
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, 401: ERRORS[401]},
    )
    async def read_metrics() -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.api_route(
        "/model.onnx",
        methods=["GET", "HEAD"],
        tags=["page"],
        summary="The weights in use",
        response_class=FileResponse,
        operation_id="model",
        include_in_schema=False,
    )
    async def model() -> FileResponse:
        return FileResponse(
            settings.weights,
            media_type="application/octet-stream",
            headers={"Cache-Control": "no-cache"},
        )


def _add_page(app: FastAPI, static: Path) -> None:
    if static.is_dir():
        # Not a mount: that would answer for the API's paths when their method is wrong.
        app.router.default = PageFiles(static)
        return

    @app.get("/", include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse("/docs")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "bad_request")
        problem = Problem(code=code, message=str(error.detail))
        return problem_response(error.status_code, problem, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = Problem(code="invalid_field", message=_explain(error))
        return problem_response(422, problem)

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> JSONResponse:
        message = "The server failed; its log says why"
        return problem_response(500, Problem(code="internal", message=message))


def _explain(error: RequestValidationError) -> str:
    """``field: what is wrong``; of a field with several choices, what is wrong with each."""
    fields: dict[str, list[str]] = {}
    for one in error.errors():
        field = str(one["loc"][1] if len(one["loc"]) > 1 else one["loc"][0])
        text = str(one["msg"])
        if field == "images":
            text = "send one or more files, each with a file name"
        if text not in fields.setdefault(field, []):
            fields[field].append(text)
    return "; ".join(f"{field}: {', or '.join(texts)}" for field, texts in fields.items())


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
