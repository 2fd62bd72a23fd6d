"""Jinja for templates that nobody here wrote: no way out, and an end to time and memory.

Jinja's own sandbox keeps a template from Python's internals. It lets a short template run for
hours or ask for all memory, so loops, calls and whatever makes a string longer are metered here.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import wraps
from itertools import islice
from types import GeneratorType
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 32 << 20
MAX_SECONDS = 10.0
# Loops' turns and calls: real templates make some ten for a message.
_STEPS, _STEPS_A_MESSAGE = 10_000, 1000
# A step can put out as much as the template's own text, so that a long one has fewer of them.
_MAX_PLAIN_CHARACTERS = 512 << 20
_MAX_NUMBER = 1 << 20
_MAX_BITS = 1 << 14
_MAX_DEPTH = 64
# Unicode noncharacters, which no text has: what a template's {% generation %} put out.
BEGIN, END = "\ufdd0", "\ufdd1"

# Methods and filters whose result can be the product of what goes in.
_MULTIPLYING = (
    "replace",
    "join",
    "expandtabs",
    "translate",
    "indent",
    "wordwrap",
    "batch",
    "slice",
)
_FORMATTING = ("format", "format_map")
_WIDTH = re.compile(r"\d{5,}|\*")


class TemplateLimitError(SecurityError):
    """A template wants more time or memory than any chat needs."""


class TemplateRefusalError(TemplateError):
    """A template called raise_exception."""


class _Meter(threading.local):
    """What the rendering on this thread may still spend."""

    steps = _STEPS
    characters = MAX_CHARACTERS
    deadline = float("inf")
    marking = False

    def reset(self, source: str, num_messages: int, *, marking: bool) -> None:
        steps = _STEPS + _STEPS_A_MESSAGE * num_messages
        self.steps = min(steps, _MAX_PLAIN_CHARACTERS // max(len(source), 1))
        self.characters = MAX_CHARACTERS
        self.deadline = time.monotonic() + MAX_SECONDS
        self.marking = marking

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise TemplateLimitError("it takes more steps than any chat needs; does it end?")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"it takes longer than {MAX_SECONDS:g} s")

    def put_out(self, count: int) -> None:
        self.characters -= count
        if self.characters < 0:
            raise TemplateLimitError(f"it puts out more than {MAX_CHARACTERS >> 20} MiB")


def _weight(value: object, depth: int = 0) -> int:
    """About the characters that `value` has as a string; stops counting past the limit."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3 + 1
    if depth > _MAX_DEPTH:
        raise TemplateLimitError("it nests its values too deeply")
    if isinstance(value, Mapping):
        parts: Iterable[object] = (part for pair in value.items() for part in pair)
    elif isinstance(value, range):
        return 8 * len(value)
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    else:
        return 1
    total = 1
    for part in parts:
        total += 2 + _weight(part, depth + 1)
        if total > MAX_CHARACTERS:
            raise _too_large()
    return total


def _too_large() -> TemplateLimitError:
    return TemplateLimitError(f"it makes a value of more than {MAX_CHARACTERS >> 20} MiB")


def _check_arguments(name: str, subject: object, arguments: Sequence[object]) -> None:
    """Refuse a call, of a method or a filter, that could make something huge."""
    own = _weight(subject)
    weights = [_weight(argument) for argument in arguments]
    if own + sum(weights) > MAX_CHARACTERS:
        raise _too_large()
    numbers = [abs(value) for value in arguments if isinstance(value, int)]
    if any(number > _MAX_NUMBER for number in numbers):
        raise TemplateLimitError(f"it calls {name} with the number {max(numbers)}")
    if name in _FORMATTING and _WIDTH.search(str(subject)):
        raise TemplateLimitError("it formats to a width of 10,000 or more")
    product = max(own, 1) * max([*weights, *numbers, 1])
    if name in (*_MULTIPLYING, *_FORMATTING) and product > MAX_CHARACTERS:
        raise _too_large()


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its arguments checked; the marks that Jinja keeps on a filter stay on it."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = [list(arg) if isinstance(arg, GeneratorType) else arg for arg in args]
        subject = given[passed] if len(given) > passed else ""
        _check_arguments(name, subject, [*given[passed + 1 :], *kwargs.values()])
        return function(*given, **kwargs)

    return checked


class _Metering(NodeTransformer):
    """Sends loops and joined strings through filters that meter them."""

    def __init__(self, environment: Sandbox) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._through("metered steps", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self._through("metered joining", nodes.List(node.nodes, lineno=node.lineno))

    def _through(self, name: str, node: nodes.Node) -> nodes.Filter:
        assert isinstance(node, nodes.Expr)
        made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        made.set_environment(self._environment)
        return made


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: what of a template's output the assistant says."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        environment = self.environment
        assert isinstance(environment, Sandbox)
        said = caller()
        return f"{BEGIN}{said}{END}" if environment.meter.marking else said


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates: Transformers' settings and additions, metered."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        self.meter = _Meter()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self._finalize,
            extensions=[_Generation, loopcontrols],
        )
        self.filters["tojson"] = _to_json
        for name, function in list(self.filters.items()):
            self.filters[name] = _guarded(name, function)
        self.filters["metered steps"] = self._metered_steps
        self.filters["metered joining"] = self._metered_joining
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        _Metering(self).visit(source)
        return super()._generate(source, *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        # Jinja raises once the value is used; printed alone, it would be empty without a word.
        kind = type(obj).__name__
        raise SecurityError(f"it reaches for {attribute!r} of a value of type {kind}")

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.meter.step()
        # Jinja wraps str.format to sandbox what a format reaches for.
        method = getattr(called, "__wrapped__", called)
        subject = getattr(method, "__self__", None)
        if isinstance(subject, str | bytes | list | tuple | dict):
            name = getattr(method, "__name__", "a method")
            _check_arguments(name, subject, [*args, *kwargs.values()])
        result = super().call(context, called, *args, **kwargs)
        if isinstance(result, range):
            self.meter.step(len(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise TemplateLimitError("it formats to a width of 10,000 or more")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else 0
            if max(bits, left.bit_length() + right.bit_length()) > _MAX_BITS:
                raise TemplateLimitError("it computes a number of thousands of digits")
        elif operator == "*":
            sides = [
                max(0, side) if isinstance(side, int) else _weight(side) for side in (left, right)
            ]
            if sides[0] * sides[1] > MAX_CHARACTERS:
                raise _too_large()
        elif _weight(left) + _weight(right) > MAX_CHARACTERS:
            raise _too_large()
        return super().call_binop(context, operator, left, right)

    def _finalize(self, value: Any) -> Any:
        self.meter.put_out(_weight(value))
        return value

    def _metered_steps(self, values: Iterable[Any]) -> list[Any]:
        found = list(islice(values, self.meter.steps + 1))
        self.meter.step(len(found) + 1)
        return found

    def _metered_joining(self, values: Sequence[Any]) -> str:
        if _weight(values) > MAX_CHARACTERS:
            raise _too_large()
        return "".join(map(str, values))


def _refuse(message: object) -> NoReturn:
    raise TemplateRefusalError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes what HTML needs escaped."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
