"""Where the answers are in a text that was rendered already: by the marks of its speakers."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Style:
    """How a family of texts marks who speaks: an answer begins after `opens` and ends before
    `ends`. What `keeps` matches at an answer's end is its end-of-turn mark, which learns too."""

    opens: re.Pattern[str]
    ends: re.Pattern[str]
    keeps: re.Pattern[str] | None = None


_STYLES: dict[str, _Style] = {
    "<|im_start|>assistant": _Style(
        re.compile(r"<\|im_start\|>assistant\n"),
        re.compile(r"<\|im_start\|>"),
        re.compile(r"<\|im_end\|>"),
    ),
    "<|assistant|>": _Style(
        re.compile(r"<\|assistant\|>\n?"),
        re.compile(r"<\|(?:user|system|assistant)\|>"),
        re.compile(r"</s>|<\|endoftext\|>|<\|end\|>"),
    ),
    "[/INST]": _Style(
        re.compile(r"\[/INST\]"), re.compile(r"(?:<s>\s*)?\[INST\]"), re.compile(r"</s>")
    ),
    # OpenAssistant-Guanaco has its marks right behind what was said, with no line end between.
    "### Assistant:": _Style(
        re.compile(r"### Assistant:"), re.compile(r"### (?:Human|Assistant):")
    ),
    "### Response:": _Style(
        re.compile(r"^### Response:\n?", re.MULTILINE),
        re.compile(r"^### (?:Instruction|Input|Response):", re.MULTILINE),
    ),
}
MARKS = tuple(_STYLES)


def find_answers(text: str) -> tuple[tuple[int, int], ...]:
    """Character spans of the answers in `text`, end-of-turn marks included; () where no style's
    mark is in it. The style is the one whose mark comes first."""
    found = [
        (match.start(), style) for style in _STYLES.values() if (match := style.opens.search(text))
    ]
    if not found:
        return ()
    style = min(found, key=lambda pair: pair[0])[1]
    spans = []
    place = 0
    while (opened := style.opens.search(text, place)) is not None:
        start = opened.end()
        ended = style.ends.search(text, start)
        stop = ended.start() if ended is not None else len(text)
        if style.keeps is not None and (kept := style.keeps.search(text, start, stop)) is not None:
            stop = kept.end()
        spans.append((start, stop))
        place = stop
    return tuple(spans)
