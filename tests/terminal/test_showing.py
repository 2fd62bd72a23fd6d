"""An answer on a screen: the same however it came in pieces, whole, and harmless."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from llamita.terminal import showing
from llamita.terminal.markdown import harmless, last_block
from llamita.terminal.showing import MarkdownView, PlainView, view_of
from tests.terminal.screen import Screen

ANSWER = """# Sails

A *ship* has **masts**, see [the list](http://example.org/masts):
1. the fore mast
2. the main mast
   - with a `topsail`

> They said so.

```python
def sail(wind: int) -> int:
    return wind * 2  # 漢字

print(sail(3))
```

| sail | area |
|------|------|
| jib  | 20   |

line one
line two <b>bold</b> &amp; ![picture](x.png) naïve 😀

def unfenced():
    return 3

[note]: http://example.org
Done."""


@pytest.fixture(autouse=True)
def _every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "_SECONDS_BETWEEN_FRAMES", -1.0)


class Feed(io.StringIO):
    """What is written goes to a screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.screen = screen

    def write(self, text: str) -> int:
        self.screen.feed(text)
        return super().write(text)


def shown(
    pieces: Sequence[str], *, width: int = 50, height: int = 12, resized: Sequence[int] = ()
) -> str:
    """The screen after an answer; `resized`: widths that the window takes, one after a piece."""
    screen = Screen(width, height)
    console = Console(
        file=Feed(screen), force_terminal=True, width=width, height=height, highlight=False
    )
    view = MarkdownView(console)
    view.say("> question")
    view.begin("… reading 10 tokens")
    widths = iter(resized)
    for piece in pieces:
        view.add(piece)
        new = next(widths, None)
        if new is not None:
            screen.resize(new)
            console.width = new
    view.end()
    view.say("42 tokens", dim=True)
    return screen.text()


def cut(text: str, seed: int) -> list[str]:
    dice, pieces, place = random.Random(seed), [], 0
    while place < len(text):
        size = dice.randint(1, 9)
        pieces.append(text[place : place + size])
        place += size
    return pieces


@pytest.mark.parametrize("height", [4, 12, 100])
def test_the_screen_is_the_same_however_the_answer_came(height: int) -> None:
    whole = shown([ANSWER])
    for seed in range(3):
        assert shown(cut(ANSWER, seed), height=height) == whole


def test_nothing_that_was_written_is_missing() -> None:
    screen = shown(cut(ANSWER, 1), width=100)
    for words in (
        *("Sails", "A ship has masts, see the list (http://example.org/masts):"),
        *("1 the fore mast", "2 the main mast", "with a topsail", "They said so."),
        *("def sail(wind: int) -> int:\n    return wind * 2  # 漢字\n\nprint(sail(3))\n"),
        *("jib", "20", "line one\nline two <b>bold</b> & !picture (x.png) naïve 😀"),
        *(
            "def unfenced():\n    return 3\n",
            "[note]: http://example.org\nDone.",
        ),
    ):
        assert words in screen, words
    assert screen.startswith("> question\nSails\n\nA ship")
    assert screen.endswith("Done.\n42 tokens")


@pytest.mark.parametrize("resized", [[50, 30, 30, 30, 22], [50] * 30 + [24], [80, 20, 80, 20]])
def test_a_window_that_is_resized_is_not_torn(resized: list[int]) -> None:
    """Nothing doubled and nothing lost, whatever was broken when."""
    prose = "Every ship that ever sailed had a keel and a rudder. " * 4
    text = f"{prose}\n\n{prose}\n\nThe end."
    screen = shown(cut(text, 0), width=50, resized=resized, height=30)
    assert "".join(screen.split()) == "".join(f">question{text}42tokens".split())


@settings(max_examples=40, deadline=None)
@example(["1. 1\n", "-", "1"])  # a list of its own, until it is none
@example(["1\n\n", ">", "\n1"])  # an empty quote shows nothing, and the empty line before it stays
@given(
    st.lists(
        st.text(alphabet="ab *_`#->1.|\\[]()~:=!&;<\t漢\n", max_size=6)
        | st.sampled_from(
            ["\n", "\n\n", "- a\n", "1. b\n", "# c\n", "```\n", "> d\n", "a|b\n-|-\n"]
        ),
        max_size=30,
    )
)
def test_any_markdown_in_any_pieces(pieces: list[str]) -> None:
    assert shown(pieces) == shown(["".join(pieces)])


ATTACKS = [
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\",
    "\x9b2J",
    "\x90q\x9c",
    "\x1bP+q\x1b\\",
    "&#27;[2J &#x1b;[2J &#155;2J &Tab;",
    "\r\x08\x0b\x0c\x7f\x00\x05",
    "`\x1b[2J`\n\n```\x1b[2J\n\x1b[2J\x1b[6n\n```",
    "[a\x1b[2J](http://x/\x1b[2J)",
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_what_steers_a_terminal_never_reaches_it(attack: str, one_by_one: bool) -> None:
    pieces = list(attack) if one_by_one else [attack]
    file = io.StringIO()
    view = MarkdownView(Console(file=file, force_terminal=True, width=50, height=20))
    view.begin("…")
    plain = io.StringIO()
    bare = PlainView(plain)
    bare.begin("")
    for piece in ["say ", *pieces, " so"]:
        view.add(piece)
        bare.add(piece)
    view.end()
    bare.end()
    # What is left after our own colours, movements and erasing is text, line ends and CR before
    # them.
    ours = re.sub(r"\x1b\[[0-9;]*m|\r(\x1b\[\d+A)?\x1b\[J", "", file.getvalue())
    for written in (ours, plain.getvalue()):
        assert not [character for character in written if _steers(character)], written
    assert "2J" not in attack or "2J" in ours  # the letters of it are seen


def _steers(character: str) -> bool:
    code = ord(character)
    return character not in "\n\t" and (code < 32 or 127 <= code < 160)


def test_harmless_keeps_all_that_is_text() -> None:
    text = "tab\there\nnaïve 漢字 😀 é \u2028"
    assert harmless(text) == text
    assert harmless("a\r\nb") == "a\nb"


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("one", "one"),
        ("one\n\ntwo", "two"),
        ("- a\n\n- b\n  c", "- a\n\n- b\n  c"),
        ("x\n\n```\na\n\nb", "```\na\n\nb"),
        ("x\n\n```\na\n```\n", "```\na\n```\n"),
        ("# h\ntext\n", "text\n"),
        ("", ""),
    ],
)
def test_the_last_block(text: str, last: str) -> None:
    assert text[last_block(text) :] == last


def test_a_dumb_terminal_gets_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_of(io.StringIO(), plain=False), PlainView)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(view_of(io.StringIO(), plain=True), PlainView)
    assert isinstance(view_of(io.StringIO(), plain=False), MarkdownView)
