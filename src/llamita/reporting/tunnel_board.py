"""A study seen while it runs: a live board on a terminal, plain lines elsewhere.

    with Board("lr-transfer") as board:
        board.planned(60, 3e17, 5400.0)
        board.started(0, "3f9c", "sweep 9m seed 0", tokens=92_000_000, flops=5e15)
        board.progress(0, 120, 1400, 2.31)
        board.ended(0, result)

Any thread may call it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from llamita.planning.quantities import duration
from llamita.reporting.live_lines import LiveLines, can_draw
from llamita.reporting.panel_lines import Line, printable
from llamita.reporting.tunnel_board_view import LOOKED_INTO, BoardState, Running, draw_board

if TYPE_CHECKING:
    from rich.console import Console

    from llamita.windtunnel.findings import RunResult

_SECONDS_BETWEEN_SUMMARIES = 60.0


class Board:
    """
    Args:
        name: the study's.
        plain: lines even on a terminal.
        console: rich's, which draws whatever standard output is; for tests.
        clock: seconds that only grow; for tests.
    """

    def __init__(
        self,
        name: str = "wind tunnel",
        *,
        plain: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = BoardState(name)
        self._clock = clock
        self._lock = threading.Lock()
        self._summarised = clock()
        live = console is not None or (not plain and can_draw())
        self._live = LiveLines(self._frame, "board", console) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def planned(self, total_runs: int, total_flops: float, seconds_expected: float | None) -> None:
        """What is to be made from here on, all that `ended` will tell of."""
        with self._lock:
            state = self._state
            state.total, state.flops = total_runs, total_flops
            state.expected = seconds_expected
        self._changed()

    def started(
        self,
        slot: int,
        key: str,
        name: str,
        *,
        tokens: int = 0,
        flops: float = 0.0,
        first_step: int = 0,
    ) -> None:
        """
        Args:
            tokens, flops: what the run takes from `first_step` on. Without the first its speed is
                in steps, and without the second the time left knows of it only when it has ended.
        """
        with self._lock:
            if self._state.began is None:
                self._state.began = self._clock()
            self._state.running[slot] = Running(key, name, tokens, flops, first_step, first_step)
        self._changed()

    def progress(self, slot: int, step: int, last_step: int, loss: float | None) -> None:
        with self._lock:
            self._state.progress(slot, step, last_step, loss, self._clock())
        self._changed()

    def ended(self, slot: int, result: RunResult) -> None:
        """A run has ended. One that was found done needs no `started`: it counts as done, and not
        towards the speed."""
        with self._lock:
            line = self._state.end(slot, result)
        if self._drawing is None or result.loss is None:
            self.say(line)  # a board shows the others as they come
        self._changed()

    def left(self, slot: int, *, done: bool = False) -> None:
        """A slot's run has no result here: another process makes it, or `done`, a model was looked
        into and nothing trained."""
        with self._lock:
            self._state.leave(slot, LOOKED_INTO if done else "")
        self._changed()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.say(line)

    def close(self) -> None:
        """Give the terminal back and leave a summary."""
        if self._live is None:
            for line in self._closing():
                self.say(line)
        else:
            self._live.stop(self._closing)

    @property
    def _drawing(self) -> LiveLines | None:
        """None off a terminal, and after the board failed."""
        return self._live if self._live is not None and self._live.drawing else None

    def _changed(self) -> None:
        if self._drawing is not None:
            self._drawing.wake()
            return
        now = self._clock()
        with self._lock:
            due = now - self._summarised >= _SECONDS_BETWEEN_SUMMARIES
            if due:
                self._summarised = now
            summary = self._state.summary(now)
        if due:
            self.say(summary)

    def _frame(self, width: int, height: int) -> list[Line]:
        # A sixth of the window stays for the lines that scroll above.
        with self._lock:
            return draw_board(self._state, width, height - max(2, height // 6), self._clock())

    def _closing(self) -> list[str]:
        with self._lock:
            state, now = self._state, self._clock()
            if not state.ended:
                return []
            state.running.clear()
            gone = "" if state.began is None else f" in {duration(now - state.began)}"
            lines = [f"{printable(state.name)}: {state.summary(now)}{gone}"]
            for experiment in sorted(state.best):
                loss, name = state.best[experiment]
                lines.append(f"best of {experiment}: {loss:.4f} bits per byte, {name}")
            return lines
