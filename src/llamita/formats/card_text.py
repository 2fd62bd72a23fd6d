"""Markdown and YAML that stay what they are, whatever names they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$:@])")
_BEGINS = re.compile(r"^(\d*)([-=.])(?=\s|-|=|$)")
_TICKS = re.compile(r"`+")


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a table too.

    What could be markup, an HTML tag or an address is escaped; line breaks and control characters
    become spaces.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    escaped = _SPECIAL.sub(r"\\\1", line)
    # At a line's beginning these would begin a list or a rule.
    return _BEGINS.sub(r"\1\\\2", escaped)


def code(text: str) -> str:
    """A code span: for words without `|` that go into tables."""
    longest = max((len(run) for run in _TICKS.findall(text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """A fenced block, whose fence is longer than any in the text."""
    longest = max((len(run) for run in _TICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown that is already escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML between its lines of dashes. Keys keep their order; what is empty is left out."""
    kept = {key: value for key, value in values.items() if value not in (None, [], {}, ())}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=1_000_000)
    return f"---\n{text}---\n"


def name_of(text: str) -> str:
    """A name for the front matter: one line, whatever was written."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
