"""Docstrings taken out of source, checked against the syntax tree and `inspect`."""

from __future__ import annotations

import ast
import inspect
import json
import json.decoder
import sysconfig
import warnings
from pathlib import Path

import pytest

from llamita.starter.docstrings import NotPythonError, decode, docstrings, parse, strip_docstrings

SOURCE = '''\
# -*- a comment above -*-
"""Module."""

import os  # kept


class A:
    """Class.

    More: ünïcode.
    """

    x = 1

    def only(self):
        """Nothing else."""

    def more(self):  # kept too
        r"""Backslash \\d."""
        return """not a docstring"""

    def one_line(self): "Here"; return 2

    async def commented(self):
        "é é"  # behind
        return 3


if os:
    def under_if():
        ("In "
         "parts.")
        def inner():
            """Inside."""
            return 1
        return inner
'''


def stripped(source: str) -> str:
    return strip_docstrings(source, parse(source))


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The oracle: docstrings removed from the tree itself; `...` statements dropped everywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            node.body = [
                s
                for s in body
                if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                or s.value.value is not ...
            ]
    return tree


def test_only_docstrings_are_taken_out() -> None:
    text = stripped(SOURCE)
    for gone in (
        "Module",
        "Class",
        "ünïcode",
        "Nothing",
        "Backslash",
        "Here",
        "é",
        "In ",
        "Inside",
    ):
        assert gone not in text
    for kept in ("# -*- a comment above -*-", "# kept", "# kept too", '"""not a docstring"""'):
        assert kept in text
    assert "    def only(self):\n        ...\n" in text
    assert "class A:\n    x = 1\n" in text
    assert "def one_line(self): ...; return 2" in text
    compile(text, "stripped", "exec", dont_inherit=True)


def test_a_module_of_a_docstring_alone_leaves_nothing() -> None:
    assert stripped('"""Only this."""\n').strip() == ""


def test_names_and_texts_of_docstrings() -> None:
    assert docstrings(parse(SOURCE), "m") == [
        ("m", "Module."),
        ("m.A", "Class.\n\nMore: ünïcode."),
        ("m.A.only", "Nothing else."),
        ("m.A.more", "Backslash \\d."),
        ("m.A.one_line", "Here"),
        ("m.A.commented", "é é"),
        ("m.under_if", "In parts."),
        ("m.under_if.inner", "Inside."),
    ]


def test_docstrings_equal_those_of_the_running_module() -> None:
    found = dict(docstrings(parse(Path(json.decoder.__file__).read_text()), "json.decoder"))
    for name, value in (
        ("json.decoder", json.decoder),
        ("json.decoder.JSONDecoder", json.decoder.JSONDecoder),
        ("json.decoder.JSONDecoder.raw_decode", json.decoder.JSONDecoder.raw_decode),
    ):
        expected = inspect.getdoc(value) or ""
        assert found[name].split() == expected.split()


def test_texts_that_no_file_can_hold_are_left_out() -> None:
    source = (
        'def f():\n    "\\ud800"\ndef g():\n    "a\\0b"\ndef h():\n    "  "\ndef i():\n    "i"\n'
    )
    assert docstrings(parse(source), "m") == [("m.i", "i")]


@pytest.mark.parametrize("folder", ["json", "email", "asyncio", "unittest"])
def test_stripping_the_standard_library_changes_nothing_else(folder: str) -> None:
    paths = sorted(Path(sysconfig.get_path("stdlib"), folder).glob("*.py"))
    assert paths
    for path in paths:
        source = decode(path.read_bytes())
        text = stripped(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            left, whole = ast.parse(text), ast.parse(source)
        assert docstrings(left, "m") == []
        assert ast.dump(without_docstrings(left)) == ast.dump(without_docstrings(whole)), path


@pytest.mark.parametrize(
    "raw",
    [
        b"x = '\xff'\n",  # not the UTF-8 that is the default
        b"# -*- coding: nonsense -*-\n",
    ],
)
def test_bytes_in_no_known_encoding_are_refused(raw: bytes) -> None:
    with pytest.raises(NotPythonError):
        decode(raw)


def test_declared_encodings_and_line_ends_are_understood() -> None:
    assert decode(b"# -*- coding: latin-1 -*-\r\nx = '\xe9'\r\n").endswith("x = 'é'\n")
    assert decode(b"\xef\xbb\xbfx = 1\n") == "x = 1\n"


@pytest.mark.parametrize("source", ["print 'two'\n", "x = '\0'\n", "(" * 5000 + ")" * 5000])
def test_text_that_does_not_parse_is_refused(source: str) -> None:
    with pytest.raises(NotPythonError):
        parse(source)
