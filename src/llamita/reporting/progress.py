"""One line that says how far a long job is: redrawn on a terminal, now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from llamita.planning.quantities import duration

_TERMINAL_SECONDS = 0.2
_PLAIN_SECONDS = 5.0


class ProgressLine:
    """Use as a context manager; `update` as often as you like."""

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self._what = what
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = _TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS
        self._start = self._last = time.monotonic()
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clear()

    def update(self, done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        elapsed = now - self._start
        if total:
            share = done / total
            rest = duration(elapsed / share - elapsed) if share > 0 else "?"
            line = f"{self._what}: {share:.0%}, {rest} left"
        else:  # nobody knows where a stream ends
            line = f"{self._what}: for {duration(elapsed)}"
        line += f", {detail}" if detail else ""
        if self._terminal:
            self._stream.write(f"\r\x1b[K{line}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        self._drawn = True

    def say(self, message: str) -> None:
        """A sentence that stays."""
        self._clear()
        self._stream.write(message + "\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._terminal and self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
