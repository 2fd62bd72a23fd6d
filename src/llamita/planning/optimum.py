"""Which N and D cost least: training and serving together, within limits.

Whatever is counted, FLOPs or money, a model of N parameters trained on D tokens costs
N·(a·D + b): a for each parameter and token of training, b for each parameter over the years that it
serves (Sardana et al., Beyond Chinchilla-Optimal, arXiv 2401.00448, eq. 2 and 3). In x = ln D,
everything that is minimised here is convex, so that a golden-section search finds the minimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llamita.errors import UserError
from llamita.planning.laws import Law
from llamita.planning.quantities import tokens as short

TRAINING_FLOPS = 6
"""FLOPs of a parameter and a token: 2 forward, 4 backward."""
SERVING_FLOPS = 2
_GOLDEN = (math.sqrt(5) - 1) / 2
_WIDEST = 60.0
"""e^60 times the fewest tokens: beyond any optimum."""


@dataclass(frozen=True)
class Spending:
    """What a point costs: N·(training·D + serving), in FLOPs or in dollars."""

    training: float = float(TRAINING_FLOPS)
    serving: float = 0.0

    def of(self, point: Point) -> float:
        return point.parameters * (self.training * point.tokens + self.serving)

    def of_training(self, point: Point) -> float:
        return point.parameters * self.training * point.tokens

    def of_serving(self, point: Point) -> float:
        return point.parameters * self.serving

    @property
    def demand_ratio(self) -> float:
        """b/a: the serving, in tokens of training that cost as much."""
        return self.serving / self.training


@dataclass(frozen=True)
class Point:
    """N parameters trained on D tokens, and the loss that the law gives them."""

    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        return TRAINING_FLOPS * self.parameters * self.tokens


@dataclass(frozen=True)
class Limits:
    """What a point must keep within, and whose words say so in errors."""

    parameters: float = math.inf
    tokens: float = math.inf
    training_flops: float = math.inf
    reasons: tuple[tuple[str, str], ...] = ()
    """Field's name → where the limit comes from."""

    def broken_by(self, point: Point) -> list[str]:
        """What the point has too much of: size, tokens, training."""
        checks = (
            ("size", point.parameters, self.parameters),
            ("tokens", point.tokens, self.tokens),
            ("training", point.flops, self.training_flops),
        )
        return [what for what, value, most in checks if value > most * (1 + 1e-6)]

    def because(self, name: str) -> str:
        return dict(self.reasons).get(name, f"the limit on {name}")


def cheapest(
    law: Law,
    loss: float,
    spending: Spending,
    *,
    unique: float | None = None,
    limits: Limits | None = None,
) -> Point:
    """The N and D that reach `loss` at the least cost (eq. 2 with the loss held).

    Args:
        unique: tokens that there are; more of them are repetitions. None: as many as wanted.

    Raises:
        UserError: the loss lies below the law's irreducible one, or out of the limits' reach.
    """
    law.refuse_below_irreducible(loss, "a loss of")
    low, high = _reach(law, loss, unique, limits or Limits())

    def cost(x: float) -> float:
        tokens = math.exp(x)
        parameters = law.parameters_for(loss, tokens, unique)
        return math.log(parameters) + math.log(spending.training * tokens + spending.serving)

    tokens = math.exp(_minimise(cost, low, high))
    return Point(law.parameters_for(loss, tokens, unique), tokens, loss)


def best_within(
    law: Law,
    budget: float,
    spending: Spending,
    *,
    unique: float | None = None,
    limits: Limits | None = None,
) -> Point:
    """The N and D of the least loss that cost no more than `budget`, in the spending's unit."""
    limits = limits or Limits()

    def parameters_at(tokens: float) -> float:
        return min(
            limits.parameters,
            budget / (spending.training * tokens + spending.serving),
            limits.training_flops / (TRAINING_FLOPS * tokens),
        )

    def loss(x: float) -> float:
        tokens = math.exp(x)
        return law.at(parameters_at(tokens), tokens, unique)

    high = min(math.log(limits.tokens) if limits.tokens < math.inf else 80.0, 80.0)
    tokens = math.exp(_minimise(loss, 0.0, high))
    parameters = parameters_at(tokens)
    if not parameters >= 1:
        raise UserError("the budget does not pay for serving a model of one parameter; raise it")
    return Point(parameters, tokens, law.at(parameters, tokens, unique))


def trained_to(law: Law, loss: float, parameters: float, *, unique: float | None = None) -> Point:
    """A model of a size that is chosen already, trained until it reaches `loss`.

    Raises:
        UserError: it never does.
    """
    tokens = law.tokens_for(loss, parameters, unique)
    if math.isinf(tokens):
        least = law.parameters_for(loss, math.inf if unique is None else 1e6 * unique, unique)
        data = "" if unique is None else f" on {short(unique)} unique tokens, however often read"
        size = f"it takes more than {short(least)}" if least < math.inf else "no size does"
        raise UserError(
            f"{short(parameters)} parameters never reach a loss of {loss:.4f} under {law.name}"
            f"{data}: {size}; choose a larger model, a higher loss, or more text"
        )
    return Point(parameters, tokens, loss)


def break_even(point: Point, other: Point, spending: Spending) -> float | None:
    """Serving, in the unit that `spending.serving` counts per parameter, from which on the smaller
    of two models costs less in all; None where the larger never wins (it costs more to train too).
    """
    small, large = sorted((point, other), key=lambda each: each.parameters)
    if small.parameters == large.parameters:
        return None
    extra = spending.of_training(small) - spending.of_training(large)
    return extra / (large.parameters - small.parameters) if extra > 0 else None


# -- the search -----------------------------------------------------------------------------------


def _minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a convex function is least between `low` and `high`, to the precision of floats."""
    inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_inner, at_outer = function(inner), function(outer)
    while high - low > 1e-10:
        if at_inner <= at_outer:
            high, outer, at_outer = outer, inner, at_inner
            inner = high - _GOLDEN * (high - low)
            at_inner = function(inner)
        else:
            low, inner, at_inner = inner, outer, at_outer
            outer = low + _GOLDEN * (high - low)
            at_outer = function(outer)
    return (low + high) / 2


def _reach(law: Law, loss: float, unique: float | None, limits: Limits) -> tuple[float, float]:
    """The interval of ln D in which a model reaches `loss` and keeps within the limits."""
    low = _fewest_tokens(law, loss, unique)
    high = low + _WIDEST
    if limits.parameters < math.inf:
        low = max(low, _log(law.tokens_for(loss, limits.parameters, unique)))
        if math.isinf(low):
            raise UserError(
                f"no model of at most {short(limits.parameters)} parameters "
                f"({limits.because('parameters')}) reaches a loss of {loss:.4f} under {law.name}"
                f"{_of_unique(unique)}; allow a larger one, or a higher loss"
            )
    if limits.tokens < math.inf:
        high = min(high, math.log(limits.tokens))
    if limits.training_flops < math.inf:
        low, high = _within_training(law, loss, unique, limits, low, high)
    if low > high:
        within = ""
        if limits.parameters < math.inf:
            within = f" within {limits.because('parameters')}"
        raise UserError(
            f"a loss of {loss:.4f} takes at least {short(math.exp(low))} tokens under {law.name}"
            f"{within}, and at most {short(math.exp(high))} are allowed by "
            f"{limits.because('tokens')}; allow more, or a higher loss"
        )
    return low, high


def _within_training(
    law: Law, loss: float, unique: float | None, limits: Limits, low: float, high: float
) -> tuple[float, float]:
    """The part of the interval in which training takes no more FLOPs than allowed."""
    allowed = math.log(limits.training_flops / TRAINING_FLOPS)

    def excess(x: float) -> float:
        return math.log(law.parameters_for(loss, math.exp(x), unique)) + x - allowed

    least = _minimise(excess, low, high)
    if excess(least) > 0:
        needed = math.exp(excess(least))
        raise UserError(
            f"a loss of {loss:.4f} takes {needed:.3g} times the training that "
            f"{limits.because('training_flops')} allows "
            f"({limits.training_flops:.3g} FLOPs); allow more, or a higher loss"
        )
    return _root(excess, least, low), _root(excess, least, high)


def _root(function: Callable[[float], float], inside: float, outside: float) -> float:
    """Where a function that is negative inside crosses zero on the way out; else the end."""
    if function(outside) <= 0:
        return outside
    for _ in range(80):
        middle = (inside + outside) / 2
        if function(middle) <= 0:
            inside = middle
        else:
            outside = middle
    return inside


def _fewest_tokens(law: Law, loss: float, unique: float | None) -> float:
    """ln D below which no model reaches the loss, a little above it so that N is finite."""
    seen = law.tokens_unit * (law.B / (loss - law.E)) ** (1 / law.beta)
    if unique is None or seen <= unique:
        return math.log(seen) + 1e-9
    if seen >= law.most_effective_tokens(unique):
        floor = law.E + law.tokens_term(law.most_effective_tokens(unique))
        raise UserError(
            f"no model reaches a loss of {loss:.4f} under {law.name} on {short(unique)} unique "
            f"tokens: repeated for ever they are worth {short(law.most_effective_tokens(unique))}, "
            f"and end above {floor:.4f}; find more text, or ask for a higher loss"
        )
    epochs = 1.0
    while law.effective_tokens(epochs * unique, unique) < seen:
        epochs *= 1.001
    return math.log(epochs * unique)


def _of_unique(unique: float | None) -> str:
    return "" if unique is None else f" on {short(unique)} unique tokens"


def _log(value: float) -> float:
    return math.inf if math.isinf(value) else math.log(value)
