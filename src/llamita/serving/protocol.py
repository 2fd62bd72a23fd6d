"""uvicorn's HTTP connection with bounds: on their number, on headers that do not end, and on
clients that do not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llamita.serving.errors import SERVER_ERROR, ApiError

_FULL = ApiError(
    503,
    "too many connections",
    kind=SERVER_ERROR,
    code="too_many_connections",
    headers={"Retry-After": "1"},
)
_LATE = ApiError(408, "the request's headers did not arrive in time", code="request_timeout")
_MALFORMED = ApiError(400, "this is no valid HTTP request", code="malformed_request")
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class BoundedProtocol(H11Protocol):
    """To be subclassed with the bounds (`bounded`), since uvicorn makes its instances."""

    header_seconds = 10.0
    write_seconds = 60.0
    max_connections = 512

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._deadline: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._end_with(_FULL)
        else:
            self._deadline = self.loop.call_later(self.header_seconds, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        half = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if not half and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif half and self._deadline is None:
            self._deadline = self.loop.call_later(self.header_seconds, self._too_late)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # Closing waits for what is still to be written; a client that does not read would keep it.
        self.loop.call_later(self.write_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        self._end_with(_MALFORMED)

    def _too_late(self) -> None:
        self._deadline = None
        # Without a byte of a request there is nothing to answer.
        if self.conn.trailing_data[0]:
            self._end_with(_LATE)
        else:
            self.transport.close()

    def _end_with(self, error: ApiError) -> None:
        """Answer outside of h11's bookkeeping, unless an answer is on its way, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE, h11.ERROR) and (
            self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        ):
            body = json.dumps(error.body()).encode()
            lines = [
                f"HTTP/1.1 {error.status} {_PHRASES[error.status]}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
                *(f"{name.lower()}: {value}" for name, value in error.headers.items()),
            ]
            self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()
        self.loop.call_later(self.write_seconds, self.transport.abort)


def bounded(header_seconds: float, write_seconds: float, max_connections: int) -> type[H11Protocol]:
    """The protocol with these bounds."""
    settings = {
        "header_seconds": header_seconds,
        "write_seconds": write_seconds,
        "max_connections": max_connections,
    }
    return type("Bounded", (BoundedProtocol,), settings)
