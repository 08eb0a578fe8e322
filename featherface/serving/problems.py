"""Errors of the API: an exception with a status and a code, and the one JSON shape of them all."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from featherface.serving.answers import Code, ErrorAnswer, Problem

CODES: dict[int, Code] = {
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "body_too_large",
    415: "not_a_picture",
    422: "invalid_field",
    429: "busy",
}


class ApiError(HTTPException):
    """An answer other than success. FastAPI passes it on even out of the parsing of a body."""

    def __init__(
        self,
        status: int,
        code: Code,
        message: str,
        *,
        file: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.problem = Problem(code=code, message=message, file=file)


def problem_response(
    status: int, problem: Problem, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """``{"error": {"code", "message", "file"}}`` with this status."""
    content = ErrorAnswer(error=problem).model_dump(exclude_none=True)
    return JSONResponse(content, status, headers)


def error_response(error: ApiError) -> JSONResponse:
    """The answer that an ``ApiError`` stands for."""
    return problem_response(error.status_code, error.problem, error.headers)
