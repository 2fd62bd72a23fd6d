"""A run seen while it goes: a live panel on a terminal, plain lines elsewhere.

    with watching() as view:
        llamita.train(recipe, say=view.say, observers=view.observers)

The panel reads the run's events and draws on a thread of its own; what `say` prints scrolls above
it and stays.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as tokens_text
from llamita.reporting.alerts import AlertFinder
from llamita.reporting.events import Event
from llamita.reporting.panel_state import RunState
from llamita.reporting.panel_view import STOPPING, STYLES, Line, draw

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_SECONDS_BETWEEN_FRAMES = 0.25
_SECONDS_OF_REST = 1.0  # without news the clock is still moved on
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
    if plain or not _can_draw():
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
        from rich.console import Console

        self._console = console or Console(highlight=False, soft_wrap=True)
        self._state = RunState()
        self._events: deque[Event] = deque()
        self._lines: deque[str] = deque()
        self._wake, self._ending = threading.Event(), False
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._live: Any = None
        self._frame: list[Line] = []
        self._size = (0, 0)

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
        if self._thread is None:
            self._print([line])
        elif not _STEADY_LINE.match(line):
            self._lines.append(line)
            self._wake.set()

    def observe(self, event: Event) -> None:
        self._events.append(event)
        if event["event"] in ("start", "resume") and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="panel", daemon=True)
            self._thread.start()
        elif event["event"] != "step":  # a progress event follows them
            self._wake.set()

    def stopping(self) -> None:
        """A signal asked the run to stop. Called from the signal's handler."""
        self._is_stopping = True
        if self._thread is None:
            os.write(2, f"\n{STOPPING}\n".encode())
        self._wake.set()

    def close(self) -> None:
        """Draw no more, give the terminal back, and leave a summary."""
        thread = self._thread
        if thread is None:
            return
        self._ending = True
        self._wake.set()
        thread.join()
        self._thread = None
        self._print([*self._drained(), *summary(self._state, time.time())])

    # -- the panel's own thread -------------------------------------------------------------

    def _work(self) -> None:
        from rich.live import Live

        try:
            with Live(
                _Drawn(self),
                console=self._console,
                auto_refresh=False,
                transient=True,
                vertical_overflow="crop",
            ) as self._live:
                self._run()
        except Exception as error:
            # Lines go on plainly: a plot must not cost a run.
            self._thread = None
            told = f"{type(error).__name__}: {error}"
            self._print([*self._drained(), f"warning: the panel failed ({told}); plain lines now"])

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            ending = self._ending
            self._take_in()
            self._refresh()
            if ending:
                return
            self._wake.wait(_SECONDS_OF_REST)
            self._wake.clear()
            if not self._ending:
                time.sleep(max(0.0, _SECONDS_BETWEEN_FRAMES - (time.monotonic() - began)))

    def _take_in(self) -> None:
        while self._events:
            event = self._events.popleft()
            if event["event"] == "resume":
                self._state.recall(event)
            for alert in self._state.observe(event):
                self._lines.append(alert.line())

    def _refresh(self) -> None:
        width, height = self._console.size
        if width < self._size[0] and self._frame:
            self._forget_wrapped(self._size[0], width)
        self._size = (width, height)
        if width < _LEAST_COLUMNS or height < _LEAST_ROWS:
            self._frame = [[(f"step {self._state.step:,}"[:width], "")]]
        else:
            # A sixth of the window stays for the lines that scroll above.
            rows = height - max(2, height // 6)
            self._frame = draw(self._state, width, rows, time.time(), stopping=self._is_stopping)
        lines = self._drained()
        if lines:
            self._print(lines)  # which draws the frame anew below them
        else:
            self._live.refresh()

    def _forget_wrapped(self, before: int, width: int) -> None:
        """The window became narrower: a terminal has broken each of the frame's lines."""
        from rich.control import Control
        from rich.segment import ControlType

        erase = Control((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        for _ in range(len(self._frame) * (-(-before // width) - 1)):
            self._console.control(erase)

    def _drained(self) -> list[str]:
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines

    def _print(self, lines: Sequence[str]) -> None:
        if lines:
            self._console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

    def rendered(self, console: Console) -> RenderResult:
        """The current frame as rich's segments."""
        from rich.segment import Segment

        styles = _styles()
        for number, line in enumerate(self._frame):
            if number:
                yield Segment.line()
            for text, style in line:
                yield Segment(text, styles[style])


class _Drawn:
    """What rich's Live shows: the panel's frame of the moment."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return self._panel.rendered(console)


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


def _can_draw() -> bool:
    stream = sys.stdout
    if not stream.isatty() or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return False
    try:
        "╭⣿▁".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


_STYLE_CACHE: dict[str, Any] = {}


def _styles() -> dict[str, Any]:
    if not _STYLE_CACHE:
        from rich.style import Style

        _STYLE_CACHE.update(
            {name: Style.parse(text) if text else None for name, text in STYLES.items()}
        )
    return _STYLE_CACHE
