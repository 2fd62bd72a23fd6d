"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llamita.errors import did_you_mean
from llamita.serving.requests import ChatRequest, CompletionRequest

BAD_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
# What parts of a message's content are called that this server cannot read.
_MEDIA = {"image_url": "an image", "input_audio": "audio", "file": "a file", "video_url": "a video"}
# Where pydantic's own words speak of Python.
_REASONS = {
    "too_short": "it is empty",
    "string_too_short": "it is empty",
    "model_type": "it must be an object",
    "model_attributes_type": "it must be an object",
    "dict_type": "it must be an object",
    "list_type": "it must be a list",
}
_SHOWN = 80


class ApiError(Exception):
    """An answer that is an error.

    status: of HTTP. kind, param, code: OpenAI's `type`, `param` and `code`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = BAD_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def defect() -> ApiError:
    """What a client is told of a defect; the traceback is the server's to log."""
    return ApiError(500, "the server failed; its log says how", kind=SERVER_ERROR)


def shutting_down(retry_after: int) -> ApiError:
    return ApiError(
        503,
        "the server is shutting down",
        kind=SERVER_ERROR,
        code="shutting_down",
        headers={"Retry-After": str(retry_after)},
    )


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own: no such path, another method, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"[:200]
    headers = error.headers or {}
    if error.status_code == 404:
        return ApiError(
            404, f"there is no {where}; /openapi.json lists what there is", code="unknown_url"
        ).response()
    if error.status_code == 405:
        allowed = headers.get("Allow", headers.get("allow", ""))
        message = f"there is no {where}; this path takes {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers=headers).response()
    if error.status_code == 400:
        return ApiError(400, "the body is no JSON that can be read: nested too deeply").response()
    phrase = HTTPStatus(error.status_code).phrase
    return ApiError(error.status_code, phrase, headers=headers).response()


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that does not fit its schema: the first fault, named as the client wrote it."""
    assert isinstance(error, RequestValidationError)
    return _invalid(error.errors(), error.body).response()


def _invalid(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    first = errors[0]
    if first["type"] == "json_invalid":
        why, place = first["ctx"]["error"], first["loc"][-1]
        return ApiError(400, f"the body is no JSON: {why} at character {place}")
    # A union has a fault for each of its members: what goes deepest is what was meant, and what
    # has the right type.
    field = first["loc"][1:2]
    fault = max(
        (one for one in errors if one["loc"][1:2] == field),
        key=lambda one: (len(_steps(one["loc"][1:], body)), not one["type"].endswith("_type")),
    )
    steps = _steps(fault["loc"][1:], body)
    param = _written(steps)
    kind, context = fault["type"], fault.get("ctx") or {}
    if not steps and kind not in ("missing", "value_error"):
        return ApiError(400, "the body must be a JSON object")
    if kind == "missing":
        param = _written([*steps, fault["loc"][-1]])
        return ApiError(400, f"{param} is missing", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        hint = did_you_mean(str(steps[-1]), _FIELDS) if len(steps) == 1 else ""
        message = f"{_cut(param)} is no field that is known here.{hint}"
        return ApiError(400, message, param=param, code="unknown_parameter")
    if kind == "value_error":
        message = f"{param or 'the body'}: {context['error']}"
        return ApiError(400, message, param=param or None, code="invalid_value")
    given = fault.get("input")
    if steps[-1] == "type" and isinstance(given, str) and given in _MEDIA:
        message = f"{param}: this is a model of text, it cannot read {_MEDIA[given]}"
        return ApiError(400, message, param=param, code="unsupported_content")
    if kind == "none_required" or context.get("max_length") == 0:
        message = f"{param} is not supported here; leave it out"
        return ApiError(400, message, param=param, code="unsupported_parameter")
    reason = _REASONS.get(kind) or _lowered(fault["msg"])
    shown = f" (it is {_cut(repr(given))})" if isinstance(given, str | int | float) else ""
    return ApiError(400, f"{_cut(param)}: {reason}{shown}", param=param, code="invalid_value")


def _steps(loc: Sequence[str | int], body: Any) -> list[str | int]:
    """The part of pydantic's `loc` that lies in the body: names of a union's members do not."""
    steps: list[str | int] = []
    for step in loc:
        try:
            body = body[step]
        except (KeyError, IndexError, TypeError):
            continue
        steps.append(step)
    return steps


def _written(steps: Sequence[str | int]) -> str:
    """`messages[0].content`."""
    parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps]
    return "".join(parts).removeprefix(".")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:].replace(" after validation", "")
