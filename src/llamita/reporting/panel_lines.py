"""Lines of styled pieces for a terminal: cut, padded, wrapped and framed to a width.

Lines are made by hand and not of rich's tables: a frame then takes a millisecond or two of the
interpreter, which a training thread needs too.
"""

from __future__ import annotations

import re

Line = list[tuple[str, str]]
"""Pieces of text, each with the name of its style in `STYLES`."""

STYLES = {
    "": "",
    "frame": "bright_black",
    "dim": "bright_black",
    "title": "bold",
    "value": "bold",
    "accent": "cyan",
    "stage": "bold cyan",
    "loss raw": "dim cyan",
    "loss": "bold bright_cyan",
    "rate raw": "dim green",
    "rate": "bold bright_green",
    "bits": "magenta",
    "good": "green",
    "warn": "bold yellow",
    "action": "yellow",
    "text": "italic",
}
_NARROW = re.compile(r"[ -~─-╿▁-▏⠀-⣿▲△·–…→↵]*")  # plainly one column each: a quick answer


def titled(title: str, right: str, width: int, least: str = "") -> Line:
    """The frame's top: what it is about, and facts on the right as far as there is room.

    Args:
        least: stands on the right where `right` is too long.
    """
    notes = f" {right} "
    if len(notes) + len(title) + 10 > width:
        notes = f" {least} " if least and len(least) + len(title) + 10 <= width else ""
    title = cut(title, max(4, width - len(notes) - 8))
    end = "─╮" if notes else "╮"
    fill = "─" * max(0, width - 4 - cells(title) - len(notes) - len(end))
    line: Line = [("╭─ ", "frame"), (title, "title"), (f" {fill}", "frame"), (notes, "dim")]
    return pad([*line, (end, "frame")], width)


def bottom(width: int) -> Line:
    return [("╰" + "─" * (width - 2) + "╯", "frame")]


def framed(line: Line, width: int) -> Line:
    return [("│ ", "frame"), *pad(line, width - 4), (" │", "frame")]


def cells(text: str) -> int:
    """Columns on a terminal: CJK and emoji take two."""
    if _NARROW.fullmatch(text):
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def length(line: Line) -> int:
    return sum(cells(text) for text, _ in line)


def cut(text: str, width: int) -> str:
    if cells(text) <= width:
        return text
    from rich.cells import set_cell_size

    return set_cell_size(text, max(0, width - 1)) + "…"


def printable(text: str) -> str:
    """Text from outside, which must not move the cursor."""
    return "".join(each if each.isprintable() else "·" for each in text)


def clip(line: Line, width: int) -> Line:
    """As many pieces as fit; the first that does not is cut."""
    kept: Line = []
    room = width
    for text, style in line:
        size = cells(text)
        if size > room:
            if room > 1:
                kept.append((cut(text, room), style))
            return kept
        kept.append((text, style))
        room -= size
    return kept


def pad(line: Line, width: int) -> Line:
    line = clip(line, width)
    used = length(line)
    return [*line, (" " * (width - used), "")] if used < width else line


def wrap(text: str, width: int) -> list[str]:
    """At spaces where there are any, else anywhere; wide characters counted as two."""
    lines, line, used = [], "", 0
    for word in _words(text, width):
        size = cells(word)
        if used + size > width and line:
            lines.append(line.rstrip())
            line, used = "", 0
            word = word.lstrip() or word
            size = cells(word)
        line, used = line + word, used + size
    return [*lines, line] if line else lines


def shortened(lines: list[str], most: int) -> list[str]:
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], lines[most - 1][:-1] + "…"]


def _words(text: str, width: int) -> list[str]:
    words: list[str] = []
    for number, word in enumerate(text.split(" ")):
        piece = word if number == 0 else " " + word
        while cells(piece) > width:
            head = piece[: max(1, width // 2)]
            words.append(head)
            piece = piece[len(head) :]
        words.append(piece)
    return words
