"""What a plan's figures draw: cost against size at one loss, loss against size for one budget, loss
against tokens read once or repeatedly, and all (N, D) of one loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamita.errors import UserError
from llamita.planning.answer import Answer, Option, Question
from llamita.planning.laws import Law
from llamita.planning.maps import FLOPS_A_TOKEN, RatioMap, compute_optimal_size, ratio_map, spaced
from llamita.planning.optimum import Spending
from llamita.planning.solving import of_size, option

_SIZES = 121
_MOST_COST = 6.0
"""Times the recommended cost: beyond that a curve is left out."""
_AROUND = 30.0
"""A map reaches so many times below and above what was asked."""


def cost_against_size(answer: Answer) -> list[Option]:
    """Models of the recommended one's loss, by size, each with all that it costs.

    Sizes that never reach the loss are left out, and so are those that cost more than six times as
    much as the recommended one.
    """
    question, best = _asked(answer), answer.recommended
    held = replace(question, loss=best.loss, budget=None)
    found = _by_size(held, best.parameters)
    return [each for each in found if each.total <= _MOST_COST * best.total]


def loss_against_size(answer: Answer) -> list[Option]:
    """Models that the budget pays for, by size; empty where a loss was asked for."""
    question = _asked(answer)
    if question.budget is None:
        return []
    return _by_size(question, answer.recommended.parameters)


def _by_size(question: Question, centre: float) -> list[Option]:
    found = []
    for size in spaced(centre / 16, centre * 16, _SIZES):
        try:
            found.append(option(question, "", of_size(question, size)))
        except UserError:
            continue  # it never reaches the loss: the curve begins beyond it
    return found


@dataclass(frozen=True)
class LossCurve:
    """Loss of a size after so many tokens. repeated: drawn from the unique ones, None where there
    are as many as wanted."""

    parameters: float
    tokens: tuple[float, ...]
    fresh: tuple[float, ...]
    repeated: tuple[float, ...] | None


def loss_against_tokens(
    law: Law, parameters: float, tokens: Sequence[float], unique: float | None
) -> LossCurve:
    return LossCurve(
        parameters,
        tuple(tokens),
        tuple(law.at(parameters, each) for each in tokens),
        None if unique is None else tuple(law.at(parameters, each, unique) for each in tokens),
    )


def tokens_of_loss(
    law: Law, loss: float, sizes: Sequence[float], unique: float | None = None
) -> list[tuple[float, float]]:
    """(N, D) of one loss for those sizes that reach it."""
    found = ((size, law.tokens_for(loss, size, unique)) for size in sizes)
    return [(size, tokens) for size, tokens in found if math.isfinite(tokens)]


@dataclass(frozen=True)
class AnswerMap:
    """The map around an answer.

    asked: the one cell of what was asked, None where nothing is served. size: of the
    compute-optimal model of its loss. demand: in tokens. requests_a_token: None where demand is not
    counted in requests.
    """

    ratios: RatioMap
    asked: RatioMap | None
    size: float
    demand: float | None
    in_money: bool
    requests_a_token: float | None = None


def map_around(answer: Answer, num: int = 100) -> AnswerMap:
    """The ratios of `maps.ratio_map`, `num` × `num`, around what was asked.

    Counted in dollars where serving has a price, else in FLOPs. Limits and repetition are left out:
    the map is of the law alone.
    """
    question, best = _asked(answer), answer.recommended
    law, demand = question.law, question.demand
    assert best.loss is not None
    size = compute_optimal_size(law, best.loss)
    a_token, in_money, requests = FLOPS_A_TOKEN, False, None
    served = law.optimal_tokens(size)
    around = (served, served)
    if demand is not None:
        around = (min(served, demand.tokens), max(served, demand.tokens))
        in_money = question.economics.in_money
        spending = question.economics.spending(demand)
        a_token = Spending(spending.training, spending.serving / demand.tokens)
        requests = None if demand.requests is None else demand.requests / demand.tokens
    sizes = spaced(size / _AROUND, size * _AROUND, num)
    demands = spaced(around[0] / _AROUND, around[1] * _AROUND, num)
    return AnswerMap(
        ratio_map(law, sizes, demands, a_token),
        None if demand is None else ratio_map(law, [size], [demand.tokens], a_token),
        size,
        None if demand is None else demand.tokens,
        in_money,
        requests,
    )


def _asked(answer: Answer) -> Question:
    """
    Raises:
        UserError: the law is a rule of thumb, which knows no loss.
    """
    if answer.question is None:
        raise UserError(
            f"{answer.law.name} says nothing of loss, so that there are no curves to draw; "
            "choose another --law"
        )
    return answer.question
