"""A run seen while it goes: a live panel on a terminal, plain lines elsewhere.

    with watching() as view:
        llamita.train(recipe, say=view.say, observers=view.observers)

The panel reads the run's events and draws on a thread of its own; what `say` prints scrolls above
it and stays.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as tokens_text
from llamita.reporting.alerts import AlertFinder
from llamita.reporting.events import Event
from llamita.reporting.live_lines import LiveLines, can_draw
from llamita.reporting.panel_lines import Line
from llamita.reporting.panel_state import RunState
from llamita.reporting.panel_view import STOPPING, draw

if TYPE_CHECKING:
    from rich.console import Console

_LEAST_COLUMNS, _LEAST_ROWS = 24, 8
# The steady line of every few steps says nothing that the panel does not show.
_STEADY_LINE = re.compile(r"step +\d+/\d+ \S+ \| loss ")


class Watcher(Protocol):
    """An observer of events, as `llamita.train` takes it."""

    live: bool

    def observe(self, event: Event) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class View:
    """What to hand to `llamita.train`."""

    say: Callable[[str], None]
    observers: Sequence[Watcher]


@contextmanager
def watching(*, plain: bool = False) -> Iterator[View]:
    """The live panel where standard output is a terminal that can show it, else plain lines."""
    if plain or not can_draw():
        yield View(print, [AlertLines(print)])
        return
    with Panel() as panel:
        yield View(panel.say, [panel])


class AlertLines:
    """Says each alert in a line when it arises."""

    live = False

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._finder = say, AlertFinder()

    def observe(self, event: Event) -> None:
        for alert in self._finder.observe(event):
            self._say(alert.line())

    def close(self) -> None: ...


class Panel:
    """Draws at most four times a second; appears with a run's first event and leaves a summary.

    Args:
        console: rich's, for tests.
    """

    live = True

    def __init__(self, console: Console | None = None) -> None:
        self._lines = LiveLines(self._frame, "panel", console)
        self._state = RunState()
        self._events: deque[Event] = deque()
        self._is_stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- what the training thread calls: nothing here draws -------------------------------

    def say(self, line: str) -> None:
        """A line that scrolls above the panel and stays."""
        if not self._lines.drawing or not _STEADY_LINE.match(line):
            self._lines.say(line)

    def observe(self, event: Event) -> None:
        self._events.append(event)
        if event["event"] in ("start", "resume") and not self._lines.drawing:
            self._lines.start()
        elif event["event"] != "step":  # a progress event follows them
            self._lines.wake()

    def stopping(self) -> None:
        """A signal asked the run to stop. Called from the signal's handler."""
        self._is_stopping = True
        if not self._lines.drawing:
            os.write(2, f"\n{STOPPING}\n".encode())
        self._lines.wake()

    def close(self) -> None:
        """Draw no more, give the terminal back, and leave a summary."""
        self._lines.stop(lambda: summary(self._state, time.time()))

    # -- the panel's own thread -------------------------------------------------------------

    def _take_in(self) -> None:
        while self._events:
            event = self._events.popleft()
            if event["event"] == "resume":
                self._state.recall(event)
            for alert in self._state.observe(event):
                self._lines.say(alert.line())

    def _frame(self, width: int, height: int) -> list[Line]:
        self._take_in()
        if width < _LEAST_COLUMNS or height < _LEAST_ROWS:
            return [[(f"step {self._state.step:,}"[:width], "")]]
        # A sixth of the window stays for the lines that scroll above.
        rows = height - max(2, height // 6)
        return draw(self._state, width, rows, time.time(), stopping=self._is_stopping)


def summary(state: RunState, now: float) -> list[str]:
    """What stays on the terminal after the panel has gone."""
    if state.step <= state.began_at:
        return []
    taken = state.step - state.began_at
    line = f"{taken:,} steps in {duration(now - state.begun)}"
    if state.tokens:
        line += f", {tokens_text(state.tokens)} tokens so far"
    if state.loss is not None:
        line += f"; loss {state.loss:.4f}"
    if state.validations:
        first, last = state.validations[0][1], state.validations[-1][1]
        line += f"; bits per byte {last:.4f}"
        if len(state.validations) > 1:
            line += f" from {first:.4f}"
    lines = [line]
    if state.past_alerts:
        told = ", ".join(f"{alert.kind} at step {alert.step:,}" for alert in state.past_alerts)
        lines.append(f"alerts, told above: {told}")
    return lines
