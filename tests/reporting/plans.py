"""Answers of `plan` for tests of what is drawn and written of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from llamita.planning.answer import Answer, Option
from llamita.planning.asking import Asked, question_of
from llamita.planning.laws import Law, Rule, find_law
from llamita.planning.solving import solve


def answer(law: str = "beyond-chinchilla", **flags: Any) -> Answer:
    found = find_law(law)
    assert isinstance(found, Law)
    question, assumptions = question_of(Asked(**flags), found, None)
    return replace(solve(question), assumptions=tuple(assumptions))


@cache
def served() -> Answer:
    """30B at 10T tokens, in FLOPs: 13.6B on 2.845 times the data, 28% saved (the paper's)."""
    return answer(quality="30B", serve_tokens="10e12")


@cache
def priced() -> Answer:
    """30B at 1.5 billion requests, in dollars, at the paper's prices."""
    return answer(
        quality="30B",
        requests="1.5e9",
        hardware="a100-80",
        serve_hardware="a100-40",
        serve_precision="int8",
    )


@cache
def repeated() -> Answer:
    """Training on 20B tokens, which repeat."""
    return answer("data-constrained", budget="1e21flops", unique_tokens="20B")


@cache
def budgeted() -> Answer:
    return answer(budget="1e21flops")


@cache
def limited() -> Answer:
    return answer(quality="100M", serve_tokens="1e9", max_size="60M")


def rule_of_thumb() -> Answer:
    law = find_law("20-tokens-per-parameter")
    assert isinstance(law, Rule)
    only = Option(law.name, 1e9, 20e9, None, 1.2e20, 0.0)
    return Answer(None, "20 tokens a parameter: 1e9 parameters", law, (only,))
