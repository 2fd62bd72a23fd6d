"""The application: what is served where."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

import llamita
from llamita.inference.engine import Engine
from llamita.serving.admission import Admission
from llamita.serving.errors import ApiError, on_api_error, on_http_error, on_invalid
from llamita.serving.guards import Bodies, Keys, KnownHosts, Observed
from llamita.serving.metrics import Metrics
from llamita.serving.pages import page_files
from llamita.serving.requests import ChatRequest, CompletionRequest
from llamita.serving.responses import (
    ChatCompletion,
    Completion,
    ErrorBody,
    Health,
    ModelCard,
    ModelList,
)
from llamita.serving.service import Service

_FAULTS: dict[int, str] = {
    400: "The request makes no sense; `param` names the field.",
    401: "No valid API key, where keys are asked for.",
    403: "The Host header names another server.",
    404: "No such path, or no such model.",
    405: "The path takes another method.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "Too many answers wait; Retry-After says for how many seconds.",
    500: "The server failed.",
    503: "The server is shutting down, or has too many connections.",
}
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def make_app(
    engine: Engine,
    *,
    model_name: str,
    api_keys: Sequence[str] = (),
    max_waiting: int = 64,
    max_body: int = 1 << 20,
    page: bool = True,
    allow_origins: Sequence[str] = (),
    hosts: Collection[str] | None = _LOOPBACK,
    body_seconds: float = 30.0,
) -> FastAPI:
    """The application that serves `engine`.

    Args:
        model_name: what clients call the model.
        api_keys: any of them lets a client in; none: everyone is.
        max_waiting: answers that may wait for a slot; beyond it, 429.
        max_body: bytes of a request.
        page: serve the chat page.
        allow_origins: web pages of which origins may use it, besides its own.
        hosts: names that it answers to, as the Host header spells them without the port; `None`
            for any.
        body_seconds: for a request's body to arrive.
    """
    admission = Admission(engine.slots, max_waiting)
    metrics = Metrics(engine)
    layers = [Middleware(Observed, metrics=metrics)]
    if hosts is not None:
        layers.append(Middleware(KnownHosts, hosts=hosts))
    if allow_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(allow_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["Retry-After"],
            )
        )
    if api_keys:
        layers.append(Middleware(Keys, keys=api_keys))
    layers.append(Middleware(Bodies, most=max_body, seconds=body_seconds))
    app = FastAPI(
        title="llamita",
        version=llamita.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=layers,
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_error,
            RequestValidationError: on_invalid,
        },
    )
    app.state.admission = admission
    service = Service(engine, model_name, admission, metrics)
    _add_models(app, service)
    _add_answers(app, service)
    _add_watching(app, service)
    if page:
        _add_page(app)
    app.openapi = lambda: _document(app, keyed=bool(api_keys))  # type: ignore[method-assign]
    return app


def _faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": ErrorBody, "description": _FAULTS[status]}
        for status in (403, 408, 413, 500, 503, *statuses)
    }


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=ModelList, responses=_faults(401))
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[service.card()])

    @app.get("/v1/models/{model:path}", response_model=ModelCard, responses=_faults(401, 404))
    async def model(model: str) -> ModelCard:
        """The model that is served, by its name."""
        service.check_model(model)
        return service.card()


def _add_answers(app: FastAPI, service: Service) -> None:
    streamed = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    faults = _faults(400, 401, 404, 415, 429)

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: streamed, **faults},
    )
    async def chat(asked: ChatRequest) -> Response:
        """Answer a conversation, by the model's chat template."""
        return await service.chat(asked)

    @app.post("/v1/completions", response_model=Completion, responses={200: streamed, **faults})
    async def complete(asked: CompletionRequest) -> Response:
        """Continue texts, without the chat template."""
        return await service.complete(asked)


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=Health, responses={**_faults(), 503: {"model": Health}})
    async def health() -> Response:
        """Whether it takes requests; no key is asked for."""
        closing = service.admission.closing
        return JSONResponse({"status": "closing" if closing else "ok"}, 503 if closing else 200)

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=_faults(401),
    )
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    files = page_files()

    def send(name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise HTTPException(404)
        # Asked for anew each time: another version may be served on this port tomorrow.
        headers = {"Cache-Control": "no-cache"}
        return Response(file.data, media_type=file.kind, headers=headers)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return send("index.html")

    @app.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return send(name)


def _document(app: FastAPI, *, keyed: bool) -> dict[str, Any]:
    """The OpenAPI document, with errors as they are: a fault of a request is 400 and has our
    shape, where FastAPI would have 422 and its own."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                if not keyed:
                    operation["responses"].pop("401", None)
        schemas = found["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        if keyed:
            found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, operations in found["paths"].items():
                for operation in operations.values() if path != "/health" else ():
                    operation["security"] = [{"key": []}]
        app.openapi_schema = _with_whole_bounds(found)
    return app.openapi_schema


def _with_whole_bounds(schema: Any) -> Any:
    """FastAPI writes bounds of integers as floats, in which 2^63 and its neighbours are one."""
    if isinstance(schema, list):
        return [_with_whole_bounds(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _with_whole_bounds(value) for name, value in schema.items()}
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if found.get("type") == "integer" and isinstance(found.get(name), float):
            found[name] = int(found[name])
    return found
