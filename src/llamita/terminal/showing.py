"""How an answer is shown while it grows: as Markdown on a terminal that can, else as it is."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol, TextIO

from llamita.terminal.markdown import blank_line_before, harmless, last_block, rendered

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

# A frame costs up to some milliseconds that the model's threads would use.
_SECONDS_BETWEEN_FRAMES = 0.1
# Narrower ones hold no words.
_LEAST_WIDTH = 20


class View(Protocol):
    """What an answer and what is said about it are shown by."""

    def begin(self, waiting: str) -> None:
        """An answer is awaited; `waiting` says what for, where that can be taken away again."""

    def add(self, text: str) -> None:
        """More of the answer, as the model wrote it."""

    def end(self) -> None:
        """The answer is whole; what follows begins on a new line."""

    def say(self, text: str, *, dim: bool = False) -> None:
        """Lines of the program's own."""


class PlainView:
    """Text as it comes, nothing that moves."""

    def __init__(self, file: TextIO, notes: TextIO | None = None) -> None:
        self._file, self._notes = file, notes or file
        self._open = False

    def begin(self, waiting: str) -> None:
        self._open = False

    def add(self, text: str) -> None:
        shown = harmless(text)
        if shown:
            self._file.write(shown)
            self._file.flush()
            self._open = not shown.endswith("\n")

    def end(self) -> None:
        if self._open:
            self._file.write("\n")
        self._file.flush()
        self._open = False

    def say(self, text: str, *, dim: bool = False) -> None:
        print(harmless(text), file=self._notes, flush=True)


class MarkdownView:
    """Finished blocks stay on the terminal; the one being written is drawn anew below them."""

    def __init__(self, console: Console) -> None:
        from llamita.terminal.region import Region

        self._console = console
        self._region = Region(console)
        self._text = ""
        self._drawn_at = 0.0
        self._begun = False  # is some of the answer above what is drawn anew?
        self._gap = False  # does an empty line come between?

    def begin(self, waiting: str) -> None:
        self._text, self._drawn_at = "", 0.0
        self._begun = self._gap = False
        self._region.draw([[_dim(waiting)]])

    def add(self, text: str) -> None:
        self._text += harmless(text)
        if not self._text.strip():
            return
        now = time.monotonic()
        if now - self._drawn_at < _SECONDS_BETWEEN_FRAMES:
            return
        self._drawn_at = now
        place = last_block(self._text)
        if place:
            before = self._lines(self._text[:place])
            self._region.keep(before)
            self._begun = self._begun or bool(before)
            self._gap = self._begun and blank_line_before(self._text, place)
            self._text = self._text[place:]
        self._region.draw(self._lines(self._text))

    def end(self) -> None:
        self._region.keep(self._lines(self._text))
        self._text = ""

    def say(self, text: str, *, dim: bool = False) -> None:
        self._console.print(
            harmless(text), style="dim" if dim else None, markup=False, highlight=False
        )

    def _lines(self, text: str) -> list[list[Segment]]:
        width = max(_LEAST_WIDTH, self._console.width) - 1
        lines = rendered(self._console, text, width)
        return [[], *lines] if lines and self._gap else lines


def view_of(file: TextIO, *, plain: bool) -> View:
    """Markdown on a terminal that can move its cursor, else plain text."""
    if plain or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return PlainView(file)
    from rich.console import Console

    return MarkdownView(Console(file=file, highlight=False))


def _dim(text: str) -> Segment:
    from rich.segment import Segment
    from rich.style import Style

    return Segment(text, Style(dim=True))
