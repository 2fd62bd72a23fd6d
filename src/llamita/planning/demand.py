"""What a model will be asked for: tokens read and written over its life."""

from __future__ import annotations

from dataclasses import dataclass

from llamita.errors import UserError
from llamita.planning.amounts import DAY, Amount, parse_amount, parse_seconds
from llamita.planning.quantities import tokens as short

AUTHORS_REQUEST = (70.0, 215.0)
"""Tokens in and out of a request, in Beyond Chinchilla-Optimal (arXiv 2401.00448), section 4."""
TOKENS_PER_WORD = 4 / 3
"""The field's rule of thumb for English: a token is three quarters of a word."""


@dataclass(frozen=True)
class Demand:
    """tokens_in are read (prefill) and tokens_out written (decode), over the model's life.

    seconds: the length of that life, None where only the total is known.
    """

    tokens_in: float
    tokens_out: float
    seconds: float | None = None
    requests: float | None = None
    assumptions: tuple[str, ...] = ()

    @property
    def tokens(self) -> float:
        return self.tokens_in + self.tokens_out

    @property
    def tokens_per_day(self) -> float | None:
        return None if self.seconds is None else self.tokens / self.seconds * DAY

    def times(self, factor: float) -> Demand:
        return Demand(
            self.tokens_in * factor,
            self.tokens_out * factor,
            self.seconds,
            None if self.requests is None else self.requests * factor,
            self.assumptions,
        )

    def describe(self) -> str:
        parts = [f"{short(self.tokens_in)} tokens read and {short(self.tokens_out)} written"]
        if self.requests is not None:
            parts.append(f"in {short(self.requests)} requests")
        if self.seconds is not None:
            parts.append(f"over {self.seconds / DAY:,.0f} days")
        return " ".join(parts)


def parse_demand(
    *,
    requests: str | float | None,
    request: str | None,
    serve_tokens: str | float | None,
    serve_words: str | float | None,
    lifetime: str | None,
    tokens_per_word: float,
) -> Demand | None:
    """The demand that the flags describe, or None where there is none.

    Raises:
        UserError: two totals, a rate without a lifetime, a request's size without requests.
    """
    given = {
        "--requests": requests,
        "--serve-tokens": serve_tokens,
        "--serve-words": serve_words,
    }
    named = [flag for flag, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} both say how much is served; give one of them")
    if not named:
        for flag, text in (("--request", request), ("--lifetime", lifetime)):
            if text is not None:
                raise UserError(
                    f"{flag} says nothing without an amount that is served; add --requests, "
                    "--serve-tokens or --serve-words"
                )
        return None
    flag = named[0]
    tokens_in, tokens_out = _parse_request(request, tokens_per_word)
    unit, example = {
        "--requests": ("requests", "1.5e9 or 1e6/day"),
        "--serve-tokens": ("tokens", "2e12 or 10B/day"),
        "--serve-words": ("words", "1e12 or 1B/day"),
    }[flag]
    amount = parse_amount(given[flag] or "", flag, ("", unit), example, rate=True)
    total, seconds = _over_life(amount, flag, lifetime)
    assumptions = []
    if request is None:
        assumptions.append(
            f"a request is {AUTHORS_REQUEST[0]:g} tokens read and {AUTHORS_REQUEST[1]:g} written, "
            "as in Beyond Chinchilla-Optimal (--request IN+OUT)"
        )
    if flag == "--serve-words" or (request is not None and "w" in request):
        assumptions.append(f"a word is {tokens_per_word:.4g} tokens (--tokens-per-word)")
    if flag == "--requests":
        size = tokens_in + tokens_out
        count: float | None = total
    else:
        total *= tokens_per_word if flag == "--serve-words" else 1.0
        size, count = tokens_in + tokens_out, None
        tokens_in, tokens_out = tokens_in / size, tokens_out / size
    return Demand(total * tokens_in, total * tokens_out, seconds, count, tuple(assumptions))


def _over_life(amount: Amount, flag: str, lifetime: str | None) -> tuple[float, float | None]:
    if lifetime is None:
        if amount.per_second:
            raise UserError(f"{flag} is a rate: say for how long, as in --lifetime 2y")
        return amount.value, None
    seconds = parse_seconds(lifetime, "--lifetime", "2y or 300d")
    return amount.value * (seconds if amount.per_second else 1.0), seconds


def _parse_request(text: str | None, tokens_per_word: float) -> tuple[float, float]:
    if text is None:
        return AUTHORS_REQUEST
    parts = text.split("+")
    if len(parts) != 2:
        raise UserError(f"--request {text}: write IN+OUT, as in 70+215 or 50words+160words")
    sizes = []
    for part in parts:
        amount = parse_amount(part, "--request", ("", "tokens", "words"), "70+215")
        sizes.append(amount.value * (tokens_per_word if amount.unit == "words" else 1.0))
    return sizes[0], sizes[1]
