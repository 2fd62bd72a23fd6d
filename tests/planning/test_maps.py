"""Ratio maps against Beyond Chinchilla-Optimal (arXiv 2401.00448) and mathematics."""

from __future__ import annotations

import itertools
import math
import time

import pytest

from llamita.errors import UserError
from llamita.planning.laws import Law, find_law
from llamita.planning.maps import (
    FLOPS_A_TOKEN,
    compute_optimal,
    compute_optimal_size,
    ratio_map,
    spaced,
)
from llamita.planning.optimum import Spending

# Training on an A100-80 at $1.50 an hour, serving on an A100-40 in int8 at $1.10 (312e12 and 624e12
# FLOP/s), MFU 0.5 for training and reading, 0.01 for writing; a request is 70 tokens in, 215 out.
TRAINING = 6 * 1.50 / 3600 / 312e12 / 0.5
SERVING = 2 * 1.10 / 3600 / 624e12 * (70 / 0.5 + 215 / 0.01) / 285


@pytest.fixture(scope="module")
def law() -> Law:
    found = find_law("beyond-chinchilla")
    assert isinstance(found, Law)
    return found


@pytest.mark.parametrize(
    ("size", "demand", "tokens", "saving"),
    [  # section 3 of the paper, and points derived from its equation 2
        (30e9, 10e12, 2.845, 0.2798),
        (70e9, 10e12, 7.92 / 4.255, 0.1195),
    ],
)
def test_published_points_in_flops(
    law: Law, size: float, demand: float, tokens: float, saving: float
) -> None:
    found = ratio_map(law, [size], [demand], FLOPS_A_TOKEN)
    assert found.tokens[0][0] == pytest.approx(tokens, rel=1e-3)
    assert 1 - found.total[0][0] == pytest.approx(saving, rel=1e-3)


def test_where_a_cell_lies(law: Law) -> None:
    """Rows are demands, columns sizes; 41.55B of 70B at 10T, 13.6B of 30B, 57.9B of 70B at 2T."""
    found = ratio_map(law, [30e9, 70e9], [2e12, 10e12], FLOPS_A_TOKEN)
    assert found.parameters[1][1] == pytest.approx(41.55 / 70, rel=1e-3)
    assert found.parameters[1][0] == pytest.approx(13.6 / 30, rel=5e-3)
    assert found.parameters[0][1] == pytest.approx(57.9 / 70, rel=1e-3)
    assert 1 / found.total[0][1] - 1 == pytest.approx(0.0133, rel=1e-2)
    assert found.losses[1] == pytest.approx(1.8917925, rel=1e-6)


@pytest.mark.parametrize(
    ("size", "requests", "parameters", "saving"),
    [(30e9, 1.5e9, 15.7, 0.190), (30e9, 17.5e9, 8.38, 0.592), (70e9, 35.1e9, 20.97, 0.553)],
)
def test_points_in_dollars(
    law: Law, size: float, requests: float, parameters: float, saving: float
) -> None:
    """Equation 4 with the prices that the paper states."""
    found = ratio_map(law, [size], [requests * 285], Spending(TRAINING, SERVING))
    assert found.parameters[0][0] == pytest.approx(parameters * 1e9 / size, rel=5e-3)
    assert 1 - found.total[0][0] == pytest.approx(saving, abs=1e-3)


@pytest.mark.parametrize("name", ["beyond-chinchilla", "epoch", "data-constrained"])
def test_first_order_condition_in_every_cell(name: str) -> None:
    """At the optimum αA/N^α = (1 + D_inf/3D)·βB/D^β, at the loss of the compute-optimal model."""
    law = find_law(name)
    assert isinstance(law, Law)
    found = ratio_map(law, spaced(1e8, 1e11, 7), spaced(1e9, 1e13, 6), FLOPS_A_TOKEN)
    for row, demand in enumerate(found.demands):
        for column, size in enumerate(found.sizes):
            n = found.parameters[row][column] * size
            d = found.tokens[row][column] * law.optimal_tokens(size)
            left = law.alpha * law.parameters_term(n)
            right = law.beta * law.tokens_term(d) * (1 + demand / (3 * d))
            assert left == pytest.approx(right, rel=1e-4)
            assert law.at(n, d) == pytest.approx(found.losses[column], rel=1e-9)


def test_one_without_demand_and_monotone_in_it(law: Law) -> None:
    found = ratio_map(law, [1e9, 7e9, 70e9], (0.0, *spaced(1e6, 1e15, 40)), FLOPS_A_TOKEN)
    for grid, sign in ((found.parameters, -1), (found.tokens, 1), (found.total, -1)):
        for column in range(3):
            values = [row[column] for row in grid]
            assert values[0] == pytest.approx(1, abs=1e-4)
            assert values[1] == pytest.approx(1, abs=1e-3)
            # At 1e6 tokens nothing moves yet but the search's last digits, some 1e-6.
            assert all(
                sign * (later - earlier) > 0 for earlier, later in itertools.pairwise(values[10:])
            )


@pytest.mark.parametrize(
    "name", ["beyond-chinchilla", "epoch", "minicpm-average", "data-constrained"]
)
def test_size_of_a_loss_is_the_inverse(name: str) -> None:
    law = find_law(name)
    assert isinstance(law, Law)
    for size in (1e7, 1.1e9, 70e9):
        assert compute_optimal_size(law, compute_optimal(law, size).loss) == pytest.approx(size)
    with pytest.raises(UserError, match="irreducible"):
        compute_optimal_size(law, law.E)


def test_spaced_ends_and_ratios() -> None:
    found = spaced(3.0, 3e4, 5)
    assert (found[0], found[-1], len(found)) == (3.0, 3e4, 5)
    assert [math.log10(b / a) for a, b in itertools.pairwise(found)] == pytest.approx([1.0] * 4)


def test_hundred_by_hundred_under_five_seconds(law: Law) -> None:
    began = time.perf_counter()
    ratio_map(law, spaced(1e9, 1e11, 100), spaced(1e10, 1e14, 100), FLOPS_A_TOKEN)
    assert time.perf_counter() - began < 5
