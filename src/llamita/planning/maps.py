"""How far the cheapest model departs from the compute-optimal one, over its loss and its demand.

For each loss and each number of tokens served: parameters, training tokens and total of the point
that costs least (`optimum.cheapest`) over those of the compute-optimal point of the same loss, both
serving the same tokens. Figures 2 (FLOPs) and 3 (cost) of Sardana et al., Beyond
Chinchilla-Optimal, arXiv 2401.00448.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llamita.planning.laws import Law
from llamita.planning.optimum import SERVING_FLOPS, TRAINING_FLOPS, Point, Spending, cheapest

Grid = tuple[tuple[float, ...], ...]
FLOPS_A_TOKEN = Spending(float(TRAINING_FLOPS), float(SERVING_FLOPS))
"""What serving one token costs beside training on one, per parameter, in FLOPs."""


@dataclass(frozen=True)
class RatioMap:
    """Ratios as rows of demands by columns of sizes: `total[row][column]`.

    sizes: parameters of the compute-optimal models. losses: what each of them reaches.
    demands: tokens served in all. total: in FLOPs or in dollars, as the spending counts.
    """

    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    demands: tuple[float, ...]
    parameters: Grid
    tokens: Grid
    total: Grid


def ratio_map(
    law: Law, sizes: Sequence[float], demands: Sequence[float], a_token: Spending
) -> RatioMap:
    """The map over compute-optimal models of `sizes` parameters, and `demands` in tokens.

    Args:
        a_token: what a parameter costs for each token trained on and for each token served:
            `FLOPS_A_TOKEN`, or in dollars.
    """
    rivals = [compute_optimal(law, size) for size in sizes]
    rows = []
    for demand in demands:
        spending = Spending(a_token.training, a_token.serving * demand)
        rows.append([_ratios(law, rival, spending) for rival in rivals])
    parameters, tokens, total = (
        tuple(tuple(cell[number] for cell in row) for row in rows) for number in range(3)
    )
    losses = tuple(rival.loss for rival in rivals)
    return RatioMap(tuple(sizes), losses, tuple(demands), parameters, tokens, total)


def _ratios(law: Law, rival: Point, spending: Spending) -> tuple[float, float, float]:
    best = cheapest(law, rival.loss, spending)
    return (
        best.parameters / rival.parameters,
        best.tokens / rival.tokens,
        spending.of(best) / spending.of(rival),
    )


def compute_optimal(law: Law, parameters: float) -> Point:
    """The model of that size trained compute-optimally."""
    tokens = law.optimal_tokens(parameters)
    return Point(parameters, tokens, law.at(parameters, tokens))


def compute_optimal_size(law: Law, loss: float) -> float:
    """Parameters of the compute-optimal model of a loss; its inverse is `compute_optimal`.

    There αA/N^α = βB/D^β (Hoffmann et al., arXiv 2203.15556, eq. 4), so that the loss above E is
    (1 + α/β)·A/N^α.

    Raises:
        UserError: no model reaches that loss.
    """
    law.refuse_below_irreducible(loss, "a loss of")
    share = (1 + law.alpha / law.beta) * law.A / (loss - law.E)
    return float(law.parameters_unit * share ** (1 / law.alpha))


def spaced(low: float, high: float, num: int) -> tuple[float, ...]:
    """`num` numbers from `low` to `high`, evenly spaced in their logarithms."""
    first, last = math.log(low), math.log(high)
    inner = (math.exp(first + (last - first) * k / (num - 1)) for k in range(1, num - 1))
    return (low, *inner, high)
