"""What stands before the application: ASGI layers that count, refuse, and read bodies.

Every refusal says why in OpenAI's shape. One that comes before a body was read asks for the
connection to be closed, and reads on for a moment: a client that is still sending would otherwise
meet a reset instead of the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamita.serving.errors import ApiError, defect

if TYPE_CHECKING:
    from llamita.serving.metrics import Metrics

_log = logging.getLogger("llamita.serving")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_WITH_BODY = ("/v1/chat/completions", "/v1/completions")
_PATHS = (
    "/",
    "/health",
    "/metrics",
    "/openapi.json",
    "/v1/models",
    *_WITH_BODY,
)
# nginx's number for a client that closed its request; only ever seen in metrics.
_CLIENT_GONE = 499
_LINGER_SECONDS = 2.0


class Observed:
    """The outermost layer: counts what is answered, answers 500 to a defect, and puts the headers
    that protect the page on everything."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _CLIENT_GONE
        began = time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SECURITY]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if status != _CLIENT_GONE:
                raise
            await defect().response()(scope, receive, counted)
        finally:
            self._metrics.answered(_endpoint(scope["path"]), status, time.monotonic() - began)


def _endpoint(path: str) -> str:
    """Paths that clients make up must not become labels."""
    if path in _PATHS:
        return path
    for lead in ("/v1/models/", "/assets/"):
        if path.startswith(lead):
            return lead + "…"
    return "other"


class KnownHosts:
    """Refuses other names in the Host header. A server on the loopback is safe from web pages only
    as long as no page can give it a name of its own (DNS rebinding)."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).get("host", "")
            name = given.rpartition("]")[0] + "]" if given.startswith("[") else given.split(":")[0]
            if name.lower() not in self._hosts:
                message = (
                    f"the Host header says {given[:100]!r}, and this server answers to "
                    f"{', '.join(sorted(self._hosts))}; serve with --host to be reached otherwise"
                )
                error = ApiError(403, message, code="unknown_host")
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


class Keys:
    """Asks for one of the keys, as `Authorization: Bearer KEY`, before /v1 and /metrics."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        # Hashed, so that neither a key's length nor its beginning shows in the time taken.
        self._hashes = [_hash(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (path.startswith("/v1") or path == "/metrics"):
            error = self._fault(scope)
            if error is not None:
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> ApiError | None:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(_hash(key.strip()), known)
        if found and scheme.lower() == b"bearer":
            return None
        why = "this is no valid API key" if given else "there is no API key in the request"
        return ApiError(
            401,
            f"{why}: send the header 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Bodies:
    """Reads the whole body, within bounds, before the application sees the request.

    Args:
        most: bytes.
        seconds: for all of it to arrive.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            body = await self._read(receive)
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        if body is None:
            return
        try:
            body.decode()
        except UnicodeDecodeError as fault:
            wrong = ApiError(400, f"the body is no UTF-8 at byte {fault.start}")
            await wrong.response()(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    def _check_headers(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most:
            raise self._too_large()
        if scope["method"] == "POST" and scope["path"] in _WITH_BODY:
            kind, _, rest = headers.get("content-type", "").partition(";")
            charset = rest.partition("charset=")[2].strip(' "').lower()
            if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
                raise ApiError(
                    415,
                    "the body must be JSON in UTF-8: send 'Content-Type: application/json'",
                    code="unsupported_media_type",
                )

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, `None` if the client left."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    if size > self._most:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            late = f"the request did not arrive in {self._seconds:g} s"
            raise ApiError(408, late, code="request_timeout") from None
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self._most:,} bytes", code="request_too_large"
        )


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    headers = Headers(scope=scope)
    if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
        await error.response()(scope, receive, send)
        return
    response = error.response()
    start = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": start})
    body = bytes(response.body)
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})
