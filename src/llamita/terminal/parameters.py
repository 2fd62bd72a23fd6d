"""What `/params` shows and sets: sampling, max_tokens and stop."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from llamita.inference.conversation import Conversation


def _whole_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


_SAMPLING: Mapping[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": _whole_or_none,
}
NAMES = (*_SAMPLING, "max_tokens", "stop")


def shown(conversation: Conversation) -> str:
    """`temperature=0.7 top_k=50 …`, as it can be typed."""
    values = {name: getattr(conversation.sampling, name) for name in _SAMPLING}
    values["max_tokens"] = conversation.max_tokens
    parts = [f"{name}={_typed(value)}" for name, value in values.items()]
    stops = [f"stop={shlex.quote(text)}" for text in conversation.stop] or ["stop=none"]
    return " ".join([*parts, *stops])


def _typed(value: float | None) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def set_parameters(conversation: Conversation, text: str) -> None:
    """Set all that `text` names, `NAME=VALUE …`, or nothing if one of them is wrong.

    Raises:
        UserError: an unknown name, or a value that is none.
    """
    sampling: dict[str, Any] = {}
    max_tokens, stop = conversation.max_tokens, conversation.stop
    stops: list[str] = []
    for name, value in _pairs(text):
        if name == "stop":
            stops.append(value)
        elif name == "max_tokens":
            max_tokens = _parsed(name, value, _whole_or_none)
            if max_tokens is not None and max_tokens < 1:
                raise UserError(f"max_tokens {max_tokens}: give 1 or more, or none")
        else:
            sampling[name] = _parsed(name, value, _SAMPLING[name])
    if stops:
        stop = () if stops == ["none"] else tuple(stops)
    conversation.sampling = dataclasses.replace(conversation.sampling, **sampling)
    conversation.max_tokens, conversation.stop = max_tokens, stop


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text}: {str(error).lower()}") from error
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if name not in NAMES:
            raise UserError(
                f"there is no parameter {name!r}.{did_you_mean(name, NAMES)} "
                f"There are {', '.join(NAMES)}"
            )
        if not equals or not value:
            raise UserError(f"{name}: write {name}=VALUE, without spaces round the =")
        pairs.append((name, value))
    return pairs


def _parsed(name: str, value: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(value)
    except ValueError:
        kind = "a number" if parse is float else "a whole number"
        also = ", or none" if parse is _whole_or_none else ""
        raise UserError(f"{name} {value!r}: give {kind}{also}") from None
