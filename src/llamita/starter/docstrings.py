"""Python source taken apart: its docstrings as readable text, and its code without them.

Both work on the syntax tree alone; nothing is imported or executed.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
import warnings
from collections.abc import Iterator

_SURROGATE = re.compile("[\ud800-\udfff]")
Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | Named


class NotPythonError(ValueError):
    """Bytes that do not decode, or text that does not parse, as this Python's source."""


def decode(raw: bytes) -> str:
    """Source text of a Python file's bytes, by its declared encoding, with `\\n` line ends.

    Raises NotPythonError where the encoding is unknown or the bytes break it.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise NotPythonError(str(error)) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse(source: str) -> ast.Module:
    """`ast.parse` without the warnings about other people's escapes; NotPythonError if it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        # ValueError: null bytes; MemoryError: the parser's own stack, at about 100 brackets.
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise NotPythonError(str(error)) from error


def documented_nodes(tree: ast.Module, module: str) -> Iterator[tuple[str, Documented]]:
    """(qualified name, node) of each module, class and function with a docstring, in file order.

    Classes and functions inside functions count, as do those under `if` and `try`.
    """
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, Documented):
            if _docstring_statement(node) is not None:
                yield name, node
            children: list[ast.AST] = list(node.body)
        else:
            children = [child for child in ast.iter_child_nodes(node) if _may_hold_nodes(child)]
        for child in reversed(children):
            stack.append((f"{name}.{child.name}" if isinstance(child, Named) else name, child))


def docstrings(tree: ast.Module, module: str) -> list[tuple[str, str]]:
    """(qualified name, dedented docstring) of everything documented in a module, in file order.

    Docstrings that are blank or cannot be written as UTF-8 (lone surrogates, from escapes) or hold
    a null character are left out.
    """
    named = ((name, docstring_of(node)) for name, node in documented_nodes(tree, module))
    return [(name, text) for name, text in named if text]


def docstring_of(node: Documented) -> str:
    """A node's docstring, dedented; empty if it has none or `docstrings` would leave it out."""
    statement = _docstring_statement(node)
    if statement is None:
        return ""
    text = inspect.cleandoc(str(statement.value.value))  # type: ignore[attr-defined]
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip()
    return "" if "\0" in text or _SURROGATE.search(text) else text


def strip_docstrings(source: str, tree: ast.Module) -> str:
    """The source without its docstrings, its comments and layout kept.

    A class or function whose body was only a docstring gets `...`. `tree` is `parse(source)`.
    Raises NotPythonError if what is left does not parse, which happens for no file of the standard
    library.
    """
    lines = [line.encode() for line in source.split("\n")]  # ast's columns count UTF-8 bytes
    # From the end backwards, so that the positions still to come stay valid.
    spans = sorted(
        (
            (s.lineno, s.col_offset, s.end_lineno or s.lineno, s.end_col_offset or 0, sole)
            for s, sole in _docstring_statements(tree)
        ),
        reverse=True,
    )
    for first, start, last, end, sole in spans:
        before, after = lines[first - 1][:start], lines[last - 1][end:]
        if sole or before.strip() or after.strip():
            lines[first - 1 : last] = [before + b"..." + after]
            continue
        if last < len(lines) and not lines[last].strip():
            last += 1  # the blank line that set the docstring off
        del lines[first - 1 : last]
    stripped = b"\n".join(lines).decode().strip("\n") + "\n"
    if spans:
        parse(stripped)
    return stripped


def _docstring_statements(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool]]:
    for _, node in documented_nodes(tree, ""):
        statement = _docstring_statement(node)
        assert statement is not None
        yield statement, len(node.body) == 1 and not isinstance(node, ast.Module)


def _docstring_statement(node: Documented) -> ast.Expr | None:
    first = node.body[0] if node.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return first
    return None


def _may_hold_nodes(node: ast.AST) -> bool:
    return isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case)
