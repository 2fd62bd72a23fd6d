"""An engine's thread on one side, the event loop on the other: answers, piece by piece."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamita.inference.engine import Finish
from llamita.serving.errors import SERVER_ERROR, ApiError, shutting_down

if TYPE_CHECKING:
    from llamita.inference.engine import Engine, Handle, Piece, Request
    from llamita.serving.admission import Admission, Reason
    from llamita.serving.metrics import Metrics

# Tokens that may wait for a client that does not read: some 4 MB with 20 log-probabilities each.
MOST_PENDING = 4096


@dataclass(frozen=True, slots=True)
class News:
    """What came of an answer: pieces, and its end if that has come."""

    index: int
    pieces: list[Piece]
    finish: Finish | None


class Answer:
    """One request in the engine. The place that it has in `admission` is given back when the
    engine ends it, whether or not anyone still listens."""

    def __init__(self, group: Answers, index: int) -> None:
        self.index = index
        self.ended = False
        self._group = group
        self._last: float | None = None
        self._pieces: deque[Piece] = deque()
        self._pending = 0
        self._finish: Finish | None = None
        self._error: Exception | None = None
        self._cancelled_by: Reason | None = None
        self._handle: Handle | None = None

    def submit(self, request: Request) -> None:
        """
        Raises:
            UserError: the engine refuses it; its place is still the caller's.
        """
        self._group.admission.began(self)
        try:
            self._handle = self._group.engine.submit(request, self._deliver)
        except BaseException:
            self._group.admission.ended(self)
            raise

    def cancel(self, reason: Reason) -> None:
        """Ask the engine for the end; who takes the pieces is told why."""
        if self._handle is not None and not self.ended and self._cancelled_by is None:
            self._cancelled_by = reason
            self._handle.cancel()

    def taken(self) -> News | None:
        """What came since the last time; `None` if nothing has.

        Raises:
            ApiError: it was cancelled from this side.
            Exception: the engine's own.
        """
        if not self._pieces and not self.ended:
            return None
        pieces = list(self._pieces)
        self._pieces.clear()
        self._pending = 0
        if self.ended and not pieces:
            self._check_end()
        done = self._finish is not None and self._finish.reason != "cancelled"
        return News(self.index, pieces, self._finish if done else None)

    def _check_end(self) -> None:
        if self._error is not None:
            raise self._error
        if self._cancelled_by == "slow":
            raise ApiError(
                500,
                f"more than {MOST_PENDING:,} tokens waited to be read: the answer was given up",
                kind=SERVER_ERROR,
                code="client_too_slow",
            )
        if self._finish is not None and self._finish.reason == "cancelled":
            raise shutting_down(self._group.admission.retry_after())

    def _deliver(self, event: Piece | Finish | Exception) -> None:
        """From the engine's thread."""
        loop = self._group.loop
        try:
            loop.call_soon_threadsafe(self._arrive, event)
        except RuntimeError:
            # The server has ended and nobody waits; anything else is a defect.
            if not loop.is_closed():
                raise

    def _arrive(self, event: Piece | Finish | Exception) -> None:
        group, now = self._group, time.monotonic()
        if isinstance(event, Exception):
            self._error = event
            self._end(None)
        elif isinstance(event, Finish):
            self._finish = event
            group.metrics.finished(event)
            self._end(None if event.reason == "cancelled" else now - group.began)
        elif self._cancelled_by not in ("gone", "slow"):
            if event.tokens:
                group.metrics.token_came(now, group.began, self._last, len(event.tokens))
                self._last = now
            self._pieces.append(event)
            self._pending += len(event.tokens)
            if group.bounded and self._pending > MOST_PENDING:
                self._pieces.clear()
                self.cancel("slow")
        group.news.set()

    def _end(self, seconds: float | None) -> None:
        self.ended = True
        self._group.admission.ended(self)
        self._group.admission.leave(seconds)


class Answers:
    """The answers to one request of a client. To be made in the event loop.

    Args:
        began: `time.monotonic()` when the client's request came.
        bounded: give an answer up when more than MOST_PENDING of its tokens wait to be taken.
    """

    def __init__(
        self, engine: Engine, admission: Admission, metrics: Metrics, began: float, *, bounded: bool
    ) -> None:
        self.engine, self.admission, self.metrics = engine, admission, metrics
        self.began, self.bounded = began, bounded
        self.loop = asyncio.get_running_loop()
        self.news = asyncio.Event()
        self.gone = False
        self._answers: list[Answer] = []

    def submit(self, request: Request) -> None:
        """Begin one more; it takes over a place in `admission`.

        Raises:
            UserError, ApiError: it is refused, and the place is still the caller's.
        """
        answer = Answer(self, len(self._answers))
        answer.submit(request)
        self._answers.append(answer)

    async def come(self) -> AsyncIterator[News]:
        """News of all answers until all have ended, or their client has gone.

        Raises:
            ApiError: they were cancelled from this side.
            Exception: the engine's own.
        """
        left = list(self._answers)
        while left and not self.gone:
            self.news.clear()
            found = [news for answer in left if (news := answer.taken()) is not None]
            for news in found:
                yield news
            done = {news.index for news in found if news.finish is not None}
            left = [answer for answer in left if answer.index not in done]
            if not found:
                await self.news.wait()

    def leave(self) -> None:
        """Nobody listens any more: cancel what has not ended."""
        for answer in self._answers:
            answer.cancel("gone")

    def client_gone(self) -> None:
        self.gone = True
        self.metrics.client_gone()
        self.leave()
        self.news.set()
