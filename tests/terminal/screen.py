"""A terminal, as far as the chat needs one: wrapping, cursor movements, reflow."""

from __future__ import annotations

import re

from rich.cells import cell_len

_TOKENS = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|(\x1b)")


class Screen:
    """Logical lines, as terminals that reflow keep them, and a cursor counted in rows.

    Anything but text, CR, LF, colours, "cursor up" and "erase to the end" is an error.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows: list[list[str]] = [[""]]  # logical lines, each as its rows
        self._row, self._column = 0, 0

    def feed(self, text: str) -> None:
        for match in _TOKENS.finditer(text):
            number, kind, control, shown, escape = match.groups()
            assert escape is None, f"an escape sequence that nobody wrote: {text!r}"
            if control == "\n":
                self._row, self._column = self._row + 1, 0
                if self._row == self._count():
                    self.rows.append([""])
            elif control == "\r":
                self._column = 0
            elif shown is not None:
                self._put(shown)
            elif kind == "A":
                # What has scrolled out of the window is out of reach.
                self._row = max(0, self._count() - self.height, self._row - int(number))
            elif kind == "J":
                assert number == ""
                self._erase()
            else:
                assert kind == "m", f"unexpected sequence {match.group()!r}"

    def resize(self, width: int) -> None:
        """As VTE, tmux and most do: every line is broken anew; the cursor stays at its end."""
        lines = self.lines()
        self.width = width
        self.rows = [self._broken(line) for line in lines]
        self._row, self._column = self._count() - 1, cell_len(self.rows[-1][-1])

    def lines(self) -> list[str]:
        """What stands there, a logical line each."""
        return ["".join(parts) for parts in self.rows]

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines()).rstrip("\n")

    def _put(self, text: str) -> None:
        line, part = self._place()
        assert part == len(self.rows[line]) - 1
        before = self.rows[line][-1]
        assert self._column == cell_len(before), "text is written over text"
        self.rows[line][-1:] = self._broken(before + text)
        self._row += len(self.rows[line]) - 1 - part
        self._column = cell_len(self.rows[line][-1])

    def _broken(self, text: str) -> list[str]:
        parts = [""]
        for character in text:
            if cell_len(parts[-1] + character) > self.width:
                parts.append("")
            parts[-1] += character
        return parts

    def _erase(self) -> None:
        assert self._column == 0
        line, part = self._place()
        self.rows = self.rows[:line] + ([[*self.rows[line][:part], ""]] if part else [[""]])

    def _place(self) -> tuple[int, int]:
        row = self._row
        for number, parts in enumerate(self.rows):
            if row < len(parts):
                return number, row
            row -= len(parts)
        raise AssertionError("the cursor is below the last line")

    def _count(self) -> int:
        return sum(map(len, self.rows))
