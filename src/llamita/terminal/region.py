"""The last lines of a terminal, drawn anew as they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.segment import Segment, Segments

if TYPE_CHECKING:
    from rich.console import Console

Lines = Sequence[Sequence[Segment]]


class Region:
    """Lines at the end of what stands on a terminal, which may be replaced until they are kept.

    No line may be wider than the window less one cell, so that none wraps, and `draw` shows no
    more than fit: the last ones. When the window has become narrower, terminals have broken the
    lines; as many rows as that has made are erased.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._widths: list[int] = []

    def draw(self, lines: Lines) -> None:
        """Show these in place of those that were drawn."""
        fitting = lines[-max(1, self._console.height - 1) :]
        self._write(self._erasing() + self._text(fitting))
        self._widths = [sum(segment.cell_length for segment in line) for line in fitting]

    def keep(self, lines: Lines) -> None:
        """Show these, all of them, in place of those that were drawn, and leave them there."""
        text = self._text(lines)
        self._write(self._erasing() + (f"{text}\n" if lines else ""))
        self._widths = []

    def _erasing(self) -> str:
        width = max(1, self._console.width)
        rows = sum(max(1, -(-wide // width)) for wide in self._widths)
        up = f"\x1b[{rows - 1}A" if rows > 1 else ""
        return f"\r{up}\x1b[J" if self._widths else ""

    def _text(self, lines: Lines) -> str:
        segments: list[Segment] = []
        for number, line in enumerate(lines):
            if number:
                segments.append(Segment.line())
            segments += line
        with self._console.capture() as captured:
            self._console.print(Segments(segments), end="")
        return captured.get()

    def _write(self, text: str) -> None:
        # In one piece, so that no half-drawn state is seen.
        self._console.file.write(text)
        self._console.file.flush()
