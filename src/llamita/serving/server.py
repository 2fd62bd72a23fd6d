"""uvicorn round the application: a socket that is bound first, and an end in good order."""

from __future__ import annotations

import asyncio
import errno
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from llamita.errors import UserError
from llamita.serving.protocol import bounded

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llamita.serving.admission import Admission

# Seconds for answers that were cancelled to say so to their clients.
_LAST_WORDS = 3
_BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is found before a model is loaded.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: the port is in use, or the address is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: there is no such address ({error})") from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Only listening tells apart two sockets with SO_REUSEADDR.
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            message = f"--port {port}: something listens there already; name another, or 0"
        elif error.errno == errno.EACCES:
            message = f"--port {port}: not allowed; take one of 1024 or more"
        else:
            message = f"--host {host} --port {port}: {error.strerror}"
        raise UserError(message) from error
    bound.setblocking(False)
    return bound


class Server(uvicorn.Server):
    """Serves until a signal, or `stop`.

    The first ends it in good order: what is asked from then on is refused with 503, answers that
    run and wait go on for up to `grace` seconds, then they are cancelled. The second cancels them
    at once, the third leaves without a word.

    Args:
        app: of `make_app`.
        sock: of `listen`.
        header_seconds: for a request's headers to arrive. write_seconds: for a client to take
            something of what waits for it. max_connections: at a time.
    """

    def __init__(
        self,
        app: FastAPI,
        sock: socket.socket,
        *,
        grace: float,
        header_seconds: float = 10.0,
        write_seconds: float = 60.0,
        max_connections: int = 512,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded(header_seconds, write_seconds, max_connections),
                ws="none",
                lifespan="off",
                log_config=None,
                # Its warnings are of clients that speak no HTTP, its news is the banner's.
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_LAST_WORDS,
                backlog=_BACKLOG,
            )
        )
        self._admission: Admission = app.state.admission
        self._socket, self._grace = sock, grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0
        self._closing: asyncio.Task[None] | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """As a signal; from any thread."""
        self._signals += 1
        if self._loop is None or self._signals > 2:
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._begin if self._signals == 1 else self._hurry)

    def stop_now(self) -> None:
        """As two signals; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._begin)
            self._loop.call_soon_threadsafe(self._hurry)

    def _begin(self) -> None:
        self._admission.closing = True
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    def _hurry(self) -> None:
        self._admission.cancel_all()

    async def _close(self) -> None:
        if not await self._admission.wait_empty(self._grace):
            self._hurry()
            await self._admission.wait_empty(_LAST_WORDS)
        self.should_exit = True
