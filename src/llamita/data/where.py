"""Conditions on record fields: `meta.redpajama_set_name != RedPajamaGithub and stars >= 10`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from llamita.errors import UserError

Record = Mapping[str, Any]
Condition = Callable[[Record], bool]

_TOKEN = re.compile(
    r"\s*(?:(?P<quoted>\"[^\"]*\"|'[^']*')|(?P<operator>==|!=|<=|>=|<|>)"
    r"|(?P<mark>[()\[\],])|(?P<word>[^\s\"'()\[\],=!<>]+))"
)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KEYWORDS = ("and", "or", "not", "in")


class FieldError(ValueError):
    """A record lacks a field, or has a value there that the comparison cannot take."""


def field_of(record: Record, path: str) -> Any:
    """The value at a field or, with dots, at a nested one (`meta.source`).

    Raises:
        FieldError: the record has no such field; the message names those that it has.
    """
    if path in record:  # a field whose own name has dots
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            names = ", ".join(map(repr, list(value)[:12])) if isinstance(value, Mapping) else "none"
            raise FieldError(f"no field {path!r} (fields here: {names})")
        value = value[part]
    return value


def parse_where(text: str) -> Condition:
    """Compile a condition.

    Comparisons are `FIELD OP VALUE` with ==, !=, <, <=, >, >=, `in [A, B]`, `not in [A, B]`; they
    join with `and`, `or`, `not` and parentheses. Values are words, numbers, true, false, null, or
    quoted strings. Nothing is evaluated as Python.

    Raises:
        UserError: `text` is not such a condition.
    """
    parser = _Parser(text)
    condition = parser.either()
    parser.end()
    return condition


def fields_of(text: str) -> tuple[str, ...]:
    """The fields that a condition looks at, in the order in which it names them.

    Raises:
        UserError: `text` is no condition (see `parse_where`).
    """
    parser = _Parser(text)
    parser.either()
    parser.end()
    return tuple(dict.fromkeys(parser.fields))


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self.fields: list[str] = []
        self._tokens: list[tuple[str, str]] = []
        self._place = 0
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"cannot read {text[position:].strip()!r}")
            assert match.lastgroup is not None
            self._tokens.append((match.lastgroup, match.group(match.lastgroup)))
            position = match.end()

    def either(self) -> Condition:
        sides = [self._both()]
        while self._take("or"):
            sides.append(self._both())
        return sides[0] if len(sides) == 1 else lambda record: any(side(record) for side in sides)

    def end(self) -> None:
        if self._place < len(self._tokens):
            raise self._error(f"did not expect {self._tokens[self._place][1]!r}")

    def _both(self) -> Condition:
        sides = [self._single()]
        while self._take("and"):
            sides.append(self._single())
        return sides[0] if len(sides) == 1 else lambda record: all(side(record) for side in sides)

    def _single(self) -> Condition:
        if self._take("not"):
            inner = self._single()
            return lambda record: not inner(record)
        if self._take("("):
            inner = self.either()
            self._expect(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Condition:
        kind, field = self._next("a field")
        if kind not in ("word", "quoted") or (kind == "word" and field in _KEYWORDS):
            raise self._error(f"expected a field, found {field!r}")
        field = field[1:-1] if kind == "quoted" else field
        self.fields.append(field)
        sign = self._next("an operator")[1]
        if sign == "not":
            self._expect("in")
            values = self._list()
            return lambda record: not _among(field_of(record, field), values)
        if sign == "in":
            values = self._list()
            return lambda record: _among(field_of(record, field), values)
        value = self._value()
        if sign == "==":
            return lambda record: _equal(field_of(record, field), value)
        if sign == "!=":
            return lambda record: not _equal(field_of(record, field), value)
        if sign not in _ORDER:
            raise self._error(f"{sign!r} is no operator (==, !=, <, <=, >, >=, in, not in)")
        return lambda record: _ordered(field, field_of(record, field), sign, value)

    def _list(self) -> list[_Value]:
        closing = {"[": "]", "(": ")"}.get(self._next("a list")[1])
        if closing is None:
            raise self._error("after 'in' write a list: in [A, B]")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._expect(closing)
        return values

    def _value(self) -> _Value:
        kind, text = self._next("a value")
        if kind == "quoted":
            return _Value(text[1:-1], quoted=True)
        if kind != "word" or text in _KEYWORDS:
            raise self._error(f"expected a value, found {text!r}")
        return _Value(text, quoted=False)

    def _take(self, wanted: str) -> bool:
        if self._place < len(self._tokens) and self._tokens[self._place][1] == wanted:
            self._place += 1
            return True
        return False

    def _expect(self, wanted: str) -> None:
        if not self._take(wanted):
            raise self._error(f"expected {wanted!r}")

    def _next(self, what: str) -> tuple[str, str]:
        if self._place >= len(self._tokens):
            raise self._error(f"expected {what} at the end")
        self._place += 1
        return self._tokens[self._place - 1]

    def _error(self, problem: str) -> UserError:
        return UserError(
            f"where {self._text!r}: {problem}; write for example "
            "'meta.source != github', 'stars >= 10 and lang in [en, de]'."
        )


class _Value:
    """A literal: compared as text with text, as a number with numbers."""

    def __init__(self, text: str, *, quoted: bool) -> None:
        self.text = text
        words: dict[str, bool | None] = {"true": True, "false": False, "null": None, "none": None}
        self.is_word = not quoted and text.lower() in words
        self.word = words.get(text.lower())
        self.number: float | None = None
        if not quoted and not self.is_word:
            try:
                self.number = float(text)
            except ValueError:
                self.number = None


def _equal(found: object, value: _Value) -> bool:
    if isinstance(found, str):
        return found == value.text
    if found is None or isinstance(found, bool):
        return value.is_word and found is value.word
    if isinstance(found, int | float):
        return value.number is not None and found == value.number
    return False


def _among(found: object, values: list[_Value]) -> bool:
    return any(_equal(found, value) for value in values)


def _ordered(field: str, found: object, sign: str, value: _Value) -> bool:
    if isinstance(found, int | float) and not isinstance(found, bool) and value.number is not None:
        return _ORDER[sign](found, value.number)
    if isinstance(found, str):
        return _ORDER[sign](found, value.text)
    raise FieldError(f"{field} {sign} {value.text}: cannot order {type(found).__name__} {found!r}")
