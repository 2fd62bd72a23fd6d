"""The response that answers become: JSON when all have ended, or server-sent events as they come.

Either way it notices when its client goes, and cancels what is still being written.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llamita.errors import UserError
from llamita.serving.answers import Answers, News
from llamita.serving.errors import SERVER_ERROR, ApiError, defect
from llamita.serving.shapes import Shape, reason_of

_log = logging.getLogger("llamita.serving")
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would collect the events otherwise.
    (b"x-accel-buffering", b"no"),
]


class AnswersResponse(Response):
    """
    Args:
        stream: send events; with `usage`, a last one that counts tokens.
    """

    def __init__(self, answers: Answers, shape: Shape, *, stream: bool, usage: bool) -> None:
        super().__init__()
        self._answers, self._shape = answers, shape
        self._streams, self._usage = stream, usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(self._watch(receive))
        try:
            if self._streams:
                await self._stream(send)
            else:
                await self._whole(send)
        finally:
            watcher.cancel()
            self._answers.leave()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._answers.client_gone()

    async def _whole(self, send: Send) -> None:
        try:
            async for news in self._answers.come():
                self._shape.add(news)
        except Exception as error:
            raise _told(error) from error
        if self._answers.gone:
            return
        body = self._shape.whole().model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        """Nothing is sent before the first news, so that what fails at once has its status."""
        started = False
        try:
            async for event in self._events():
                if not started:
                    start = {"status": 200, "headers": _STREAM_HEADERS}
                    await send({"type": "http.response.start", **start})
                    started = True
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:
            told = _told(error)
            if not started:
                raise told from error
            event = b"data: " + json.dumps(told.body()).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if not self._answers.gone:
            await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncIterator[bytes]:
        opened = False
        async for news in self._answers.come():
            events = self._of(news)
            if events and not opened:
                opened = True
                lead = (_event(chunk.model_dump_json()) for chunk in self._shape.opening())
                yield b"".join(lead)
            if events:
                yield events
        if self._answers.gone:
            return
        last = [_event(self._shape.usage_chunk().model_dump_json())] if self._usage else []
        yield b"".join([*last, _event("[DONE]")])

    def _of(self, news: News) -> bytes:
        text, tokens = self._shape.add(news)
        events = []
        if text or tokens:
            events.append(self._shape.chunk(news.index, text, tokens))
        if news.finish is not None:
            events.append(self._shape.ending(news.index, reason_of(news.finish)))
        return b"".join(_event(event.model_dump_json()) for event in events)


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _told(error: Exception) -> ApiError:
    """What the client is told of it. A defect is logged here, with its traceback."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(500, str(error), kind=SERVER_ERROR)
    _log.error("an answer failed", exc_info=error)
    return defect()
