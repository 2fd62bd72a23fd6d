"""Who may come in: how many answers run and wait, how long they take, and when it is over."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Literal, Protocol

from llamita.serving.errors import ApiError, shutting_down

# Of the last so many answers; what a client is asked to wait is their mean, in whole seconds.
_REMEMBERED = 32
_FIRST_GUESS = 1.0
_LONGEST = 60


# Why an answer is cancelled: the server closes, its client has gone, its client does not read.
Reason = Literal["closed", "gone", "slow"]


class Cancellable(Protocol):
    def cancel(self, reason: Reason) -> None: ...


class Admission:
    """Counts answers from the moment their prompt is read until the engine has ended them.

    An answer whose client has gone counts until then, because it holds its slot until then. All
    methods are called from the event loop's thread.

    Args:
        slots: answers that the engine works on at a time.
        max_waiting: answers that may wait behind them.
    """

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.closing = False
        self.over = False
        self.count = 0
        self._answers: set[Cancellable] = set()
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, count: int) -> None:
        """Take `count` places; `leave` gives each back.

        Raises:
            ApiError: 503 while shutting down, 429 where too many wait, 400 where `count` can never
                be let in.
        """
        room = self.slots + self.max_waiting
        if self.closing:
            raise shutting_down(self.retry_after())
        if count > room:
            raise ApiError(
                400,
                f"the request asks for {count} answers (prompts times n), and this server takes "
                f"{room} at a time, running and waiting: ask for fewer",
                param="n",
                code="invalid_value",
            )
        if self.count + count > room:
            seconds = self.retry_after()
            raise ApiError(
                429,
                f"{self.count} answers run or wait already, and this server takes {room}: try "
                f"again in {seconds} s",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        self.count += count
        self._empty.clear()

    def leave(self, seconds: float | None = None) -> None:
        """Give a place back; `seconds` of an answer that came to its end."""
        self.count -= 1
        if seconds is not None:
            self._seconds.append(seconds)
        if self.count == 0:
            self._empty.set()

    def began(self, answer: Cancellable) -> None:
        """
        Raises:
            ApiError: all were cancelled while its prompt was read.
        """
        if self.over:
            raise shutting_down(self.retry_after())
        self._answers.add(answer)

    def ended(self, answer: Cancellable) -> None:
        self._answers.discard(answer)

    def cancel_all(self) -> None:
        """End it: answers that run and wait, and those whose prompt is still being read."""
        self.closing = self.over = True
        for answer in list(self._answers):
            answer.cancel("closed")

    async def wait_empty(self, seconds: float) -> bool:
        """Whether all answers ended in time."""
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def retry_after(self) -> int:
        """Seconds until a place is likely to be free: one of the slots ends every mean/slots."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else _FIRST_GUESS
        behind = max(1, self.count - self.slots + 1)
        return min(_LONGEST, max(1, math.ceil(mean * behind / self.slots)))
