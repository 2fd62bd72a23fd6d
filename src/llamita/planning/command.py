"""The command line that gives an answer again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_POSITIONAL = "recipe"
_WRITERS = ("html", "figures", "write_recipe", "as_json")
"""Where an answer goes is no part of what was asked."""
_FLAGS = {"overrides": "--set"}
"""Flags that do not bear their argument's name."""


def command_of(given: Mapping[str, Any]) -> list[str]:
    """`llamita plan …` from the arguments of `plan` by name, those left at their defaults aside.

    What was given several times is given several times.
    """
    command = ["llamita", "plan"]
    if given.get(_POSITIONAL) is not None:
        command.append(str(given[_POSITIONAL]))
    for name, value in given.items():
        if name in (_POSITIONAL, *_WRITERS) or value is None:
            continue
        flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
        several = isinstance(value, Sequence) and not isinstance(value, str)
        for each in value if several else [value]:
            command += [flag, str(each)]
    return command
