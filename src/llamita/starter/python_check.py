"""How much of what a model writes is Python, as far as can be told without running it."""

from __future__ import annotations

import io
import token
import tokenize
from collections.abc import Callable, Sequence

from llamita.starter.docstrings import NotPythonError, parse

# How `tokenize` says that the text ended too early: up to 3.11 the first, later the others.
_UNFINISHED = ("EOF in multi-line", "unexpected EOF in multi-line", "unterminated triple-quoted")
# Of a sample's lines, the share at the end that may be dropped as an unfinished statement.
_UNFINISHED_SHARE = 0.25


def share_that_tokenizes(samples: Sequence[str]) -> float:
    """Share of samples, in [0, 1], that `tokenize` accepts as Python.

    A sample may have been cut anywhere, so it is read up to its last full line, and may end inside
    a bracket or a triple-quoted string. It fails on unterminated strings, on characters that are
    no token, on indentation that matches no outer level, and if it has no full line of code or
    comment. Nothing is executed. ValueError if there are no samples.
    """
    return _share(samples, tokenizes)


def share_that_parses(samples: Sequence[str]) -> float:
    """Share of samples, in [0, 1], that parse as Python once an unfinished end is cut off.

    A sample is read up to its last full line; of its lines, up to a quarter (at least one) may be
    dropped at the end until the rest parses. A sample that leaves no statement fails. Nothing is
    executed. ValueError if there are no samples.
    """
    return _share(samples, parses)


def tokenizes(sample: str) -> bool:
    """Whether one sample counts for `share_that_tokenizes`."""
    text = _full_lines(sample)
    if not text.strip():
        return False
    try:
        for found in tokenize.generate_tokens(io.StringIO(text).readline):
            # `$` and `?` come as errors up to Python 3.11, as unnamed operators later.
            unknown = found.type == token.OP and found.exact_type == token.OP
            if found.type == token.ERRORTOKEN or unknown:
                return False
    except tokenize.TokenError as error:
        return str(error.args[0]).startswith(_UNFINISHED)
    except SyntaxError:  # indentation that matches no outer level
        return False
    return True


def parses(sample: str) -> bool:
    """Whether one sample counts for `share_that_parses`."""
    lines = _full_lines(sample).splitlines(keepends=True)
    droppable = max(1, int(len(lines) * _UNFINISHED_SHARE))
    for end in range(len(lines), max(len(lines) - droppable - 1, 0), -1):
        try:
            return bool(parse("".join(lines[:end])).body)
        except NotPythonError:
            continue
    return False


def _full_lines(sample: str) -> str:
    """The sample up to its last line end."""
    text = sample.replace("\r\n", "\n").replace("\r", "\n")
    return text[: text.rfind("\n") + 1]


def _share(samples: Sequence[str], passes: Callable[[str], bool]) -> float:
    if not samples:
        raise ValueError("There are no samples to check: give at least one.")
    return sum(passes(sample) for sample in samples) / len(samples)
