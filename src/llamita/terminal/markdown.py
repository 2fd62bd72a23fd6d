"""Markdown as a model writes it, block by block, for rich.

Nothing that a model writes disappears: HTML, pictures and link definitions are shown as text,
links with their address, and a line's end stays one. What would steer a terminal is left out.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from rich.console import Console, ConsoleOptions, RenderResult

# C0 but for tab and line feed, DEL, and C1, in which terminals have escape sequences too.
_STEERING = {
    code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\t\n"
}
# The terminal's own colours, so that code can be read on light and on dark ones.
_THEME = "ansi_dark"
# Of text, a heading, a list or a quote, with as much as it takes for it to stay one.
_SURELY_A_START = re.compile(r"[^\W\d_]|#{1,6} +[^\W_]|[-*+] +[^\W\d_]|\d{1,9}[.)] +[^\W\d_]|>")
# Kinds of blocks that show what is in them and nothing else.
_FRAMES = ("blockquote", "heading", "paragraph", "bullet_list", "ordered_list", "list_item")
_SHOW_NOTHING = {"inline", *(f"{kind}_{side}" for kind in _FRAMES for side in ("open", "close"))}


def harmless(text: str) -> str:
    """`text` without control characters but tabs and line feeds: nothing in it can move the
    cursor, set colours or a title, or ask the terminal for an answer."""
    return text.translate(_STEERING)


def block_starts(text: str) -> list[int]:
    """Where the blocks of `text` begin. One that shows nothing, such as an empty quote, is the
    beginning of the next."""
    starts, shows = set[int](), True
    for token in _blocks().parse(text):
        if token.level == 0 and token.nesting >= 0 and token.map:
            if shows:
                starts.add(token.map[0])
            shows = False
        shows = shows or bool(token.content) or token.type not in _SHOW_NOTHING
    places, place = [], 0
    for number, line in enumerate(text.split("\n")):
        if number in starts:
            places.append(place)
        place += len(line) + 1
    return places


def last_block(text: str) -> int:
    """Where the last block of a growing text begins. What stands before it does not change any
    more, whatever may follow: a line that is not whole begins one only where that is sure, since
    "-" is a list and "-1" belongs to what stands before."""
    line = text.rfind("\n") + 1
    starts = block_starts(text)
    return max((at for at in starts if at < line or _SURELY_A_START.match(text, at)), default=0)


def blank_line_before(text: str, place: int) -> bool:
    """Does an empty line stand before `place`, where a line begins?"""
    before = text[:place].split("\n")
    return len(before) > 1 and not before[-2].strip()


def rendered(console: Console, text: str, width: int) -> list[list[Segment]]:
    """Lines of `text`, of at most `width` cells and without spaces at their ends; between blocks
    as many empty ones, none or one, as the model left."""
    options = console.options.update(width=width, height=None)
    places = block_starts(text)
    lines: list[list[Segment]] = []
    for place, end in pairwise([*places, len(text)]):
        block = console.render_lines(_Answer(text[place:end]), options, pad=False)
        if lines and blank_line_before(text, place):
            lines.append([])
        lines += _trimmed([_without_spaces(line) for line in block])
    return lines


class _Code(CodeBlock):
    """Code between its fences, without indentation, so that it can be copied as it is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip("\n")
        shown = Syntax(code, self.lexer_name, theme=_THEME).highlight(code)
        shown.rstrip()
        shown.expand_tabs(4)
        name = "" if self.lexer_name == "text" else self.lexer_name
        yield Text(f"```{name}", style="dim")
        yield shown
        yield Text("```", style="dim")


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self.text.copy()
        shown.justify = "left"
        yield shown


class _Answer(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
    }

    def __init__(self, text: str) -> None:
        # Addresses are shown: a link's text may claim another than its own.
        super().__init__("", code_theme=_THEME, hyperlinks=False)
        self.parsed = _parser().parse(text)


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    # Without the rule `newline`, line ends and the spaces after them are text: code that a small
    # model writes without fences keeps its indentation.
    return parser.disable(["image", "reference", "newline"])


@cache
def _blocks() -> MarkdownIt:
    """As `_parser`, which finds blocks alone: their insides cost most and are not needed."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    return parser.disable(["reference", "inline"])


def _without_spaces(line: list[Segment]) -> list[Segment]:
    kept = list(line)
    while kept:
        last = kept.pop()
        text = last.text.rstrip()
        if text:
            return [*kept, Segment(text, last.style)]
    return []


def _trimmed(lines: list[list[Segment]]) -> list[list[Segment]]:
    """Without empty lines at both ends."""
    full = [number for number, line in enumerate(lines) if line]
    return lines[full[0] : full[-1] + 1] if full else []
