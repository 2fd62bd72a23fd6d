"""Lines redrawn in place on a terminal by a thread of their own; others scroll above them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llamita.reporting.panel_lines import STYLES, Line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_SECONDS_BETWEEN_FRAMES = 0.25
_SECONDS_OF_REST = 1.0  # without news the clock is still moved on


def can_draw() -> bool:
    """Whether standard output is a terminal that can show a frame."""
    stream = sys.stdout
    if not stream.isatty() or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return False
    try:
        "╭⣿▁".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class LiveLines:
    """Draws at most four times a second, from `start` to `stop`.

    Args:
        frame: the lines for a window's columns and rows; called on the drawing thread.
        what: the frame's name, for the line that says it failed.
        console: rich's, for tests.
    """

    def __init__(
        self, frame: Callable[[int, int], list[Line]], what: str, console: Console | None = None
    ) -> None:
        from rich.console import Console

        self._draw, self._what = frame, what
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._lines: deque[str] = deque()
        self._wake, self._ending = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._live: Any = None
        self._frame: list[Line] = []
        self._size = (0, 0)

    # -- what any thread calls: nothing here draws -----------------------------------------

    @property
    def drawing(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._what, daemon=True)
            self._thread.start()

    def say(self, line: str) -> None:
        """A line that scrolls above the frame and stays."""
        if self._thread is None:
            self._print([line])
        else:
            self._lines.append(line)
            self._wake.set()

    def wake(self) -> None:
        """There is news: draw as soon as the last frame is old enough."""
        self._wake.set()

    def stop(self, closing: Callable[[], Sequence[str]]) -> None:
        """Draw no more, give the terminal back, and leave closing lines, made after the last
        frame; nothing where nothing is drawn."""
        thread = self._thread
        if thread is None:
            return
        self._ending = True
        self._wake.set()
        thread.join()
        self._thread = None
        self._print([*self._drained(), *closing()])

    # -- the drawing thread ----------------------------------------------------------------

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
            failed = f"warning: the {self._what} failed ({told}); plain lines now"
            self._print([*self._drained(), failed])

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            ending = self._ending
            self._refresh()
            if ending:
                return
            self._wake.wait(_SECONDS_OF_REST)
            self._wake.clear()
            if not self._ending:
                time.sleep(max(0.0, _SECONDS_BETWEEN_FRAMES - (time.monotonic() - began)))

    def _refresh(self) -> None:
        width, height = self._console.size
        if width < self._size[0] and self._frame:
            self._forget_wrapped(self._size[0], width)
        self._size = (width, height)
        self._frame = self._draw(width, height)
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
    """What rich's Live shows: the frame of the moment."""

    def __init__(self, lines: LiveLines) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return self._lines.rendered(console)


_STYLE_CACHE: dict[str, Any] = {}


def _styles() -> dict[str, Any]:
    if not _STYLE_CACHE:
        from rich.style import Style

        _STYLE_CACHE.update(
            {name: Style.parse(text) if text else None for name, text in STYLES.items()}
        )
    return _STYLE_CACHE
