"""Optima recovered from planted curves, and intervals that hold them as often as they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from llamita.errors import UserError
from llamita.windtunnel.findings import Optimum, Trial
from llamita.windtunnel.optimum import fit_of, fit_optimum
from tests.windtunnel.planted import (
    Curve,
    at_least,
    at_most,
    cosh,
    grid,
    lopsided,
    parabola,
    planted_trials,
)


def exact(optimum: float, values: Sequence[float], seeds: Sequence[int] = (0,)) -> list[Trial]:
    """Without noise, 0.5 apart from seed to seed."""
    return [
        Trial(x, 3 + 0.5 * seed + 0.02 * math.log(x / optimum) ** 2, seed)
        for seed in seeds
        for x in values
    ]


# -- recovery -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 7)])
@pytest.mark.parametrize("optimum", [0.0062, 0.01, 0.0139])
def test_a_parabola_is_recovered(optimum: float, seeds: tuple[int, ...]) -> None:
    found = fit_optimum(exact(optimum, grid(), seeds))
    assert found.value == pytest.approx(optimum, rel=1e-9)
    assert found.loss == pytest.approx(3 + 0.5 * sum(seeds) / len(seeds))
    assert found.interval == pytest.approx((optimum, optimum), rel=1e-4)
    assert found.noise == pytest.approx(0, abs=1e-9)
    assert found.edge is None
    assert found.notes == ()
    assert found.fitted is not None
    c0, c1, c2 = found.fitted
    assert c2 == pytest.approx(0.02)
    assert c1 == pytest.approx(-0.04 * math.log(optimum))
    assert c0 == pytest.approx(found.loss + 0.02 * math.log(optimum) ** 2)


def test_five_values_about_the_best_are_fitted() -> None:
    found = fit_optimum(exact(0.0101, grid(0.01, 9)))
    assert found.window == (pytest.approx(0.0025), pytest.approx(0.04))
    assert len(found.trials) == 9


def test_uneven_values_will_do() -> None:
    found = fit_optimum(exact(0.011, [0.001, 0.007, 0.01, 0.02, 0.021]))
    assert found.value == pytest.approx(0.011, rel=1e-9)


def test_the_interval_ends_where_fieller_says() -> None:
    """Where c1 + 2θ·c2 is t standard errors from nought: all by least squares with a column a
    seed."""
    trials = planted_trials(np.random.default_rng(4), 0.0101, seeds=2, values=grid(0.01, 5))
    found = fit_optimum(trials, level=0.9)
    u = np.log([trial.x / 0.01 for trial in trials])
    of_seed = [[trial.seed == 0, trial.seed == 1] for trial in trials]
    design = np.column_stack([u, u * u, np.array(of_seed, dtype=float)])
    y = np.array([trial.loss for trial in trials])
    constants, squares, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = squares[0] / (10 - 4)
    covariance = variance * np.linalg.inv(design.T @ design)
    assert found.noise == pytest.approx(math.sqrt(variance))
    assert found.value == pytest.approx(0.01 * math.exp(-constants[0] / (2 * constants[1])))
    fit = fit_of(found)
    assert fit is not None
    # This study's means lie on the parabola as well as its runs do, so that no other variance
    # counts; the cubic stretches one end.
    assert fit.misfit[0] < variance
    assert found.interval is not None
    plain = fit.parabola.fieller(variance, 6, 0.9)
    assert plain is not None
    for end in plain:
        theta = end - math.log(0.01)
        part = np.array([1, 2 * theta, 0, 0])
        error = math.sqrt(part @ covariance @ part)
        assert abs(part @ constants) == pytest.approx(student.ppf(0.95, 6) * error)
    stretched = [min(0.0, fit.skewed), max(0.0, fit.skewed)]
    wanted = [math.exp(end + extra) for end, extra in zip(plain, stretched, strict=True)]
    assert found.interval == pytest.approx(wanted)


def test_offsets_of_seeds_change_nothing() -> None:
    trials = planted_trials(np.random.default_rng(0), 0.012, seeds=3)
    far = [replace(trial, loss=(trial.loss or 0) + 5 * trial.seed) for trial in trials]
    first, second = fit_optimum(trials), fit_optimum(far)
    assert second.value == pytest.approx(first.value)
    assert second.interval == pytest.approx(first.interval)
    assert second.noise == pytest.approx(first.noise)
    assert second.loss == pytest.approx(first.loss + 5)


def test_a_seed_that_lacks_values_misleads_nobody() -> None:
    """Seed 1's losses are 0.5 higher: by plain means the values that it lacks would be best."""
    trials = exact(0.01, grid(), (0,)) + exact(0.01, grid()[2:], (1,))
    found = fit_optimum(trials)
    assert found.value == pytest.approx(0.01, rel=1e-9)
    assert found.edge is None


def test_a_value_far_too_high_is_no_part_of_the_parabola() -> None:
    trials = exact(0.009, grid())
    trials[5] = replace(trials[5], loss=9.0)
    found = fit_optimum(trials)
    assert found.value == pytest.approx(0.009, rel=1e-9)
    assert found.window[1] == pytest.approx(0.02)


# -- coverage -------------------------------------------------------------------------------------


def studies(
    count: int, curve: Curve, seeds: int, noise: float, rise: float = 0.02
) -> list[tuple[float, Optimum]]:
    generator = np.random.default_rng(2024)
    found = []
    for _ in range(count):
        optimum = 0.01 * math.exp(generator.uniform(-0.6, 0.6))
        trials = planted_trials(generator, optimum, curve, seeds=seeds, noise=noise, rise=rise)
        found.append((optimum, fit_optimum(trials)))
    return found


def coverage(found: list[tuple[float, Optimum]]) -> float:
    told = [(truth, each.interval) for truth, each in found if each.interval is not None]
    assert len(told) > 0.6 * len(found)
    return sum(low <= truth <= high for truth, (low, high) in told) / len(told)


@pytest.mark.parametrize("noise", [0.0005, 0.003])
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_intervals_hold_a_parabolas_optimum_at_the_stated_rate(seeds: int, noise: float) -> None:
    """Neither less often nor, by being wide, nearly always."""
    found = studies(300, parabola, seeds, noise)
    assert at_least(0.95, 300) <= coverage(found) <= at_most(0.95, 300)
    errors = [math.log(each.value / truth) for truth, each in found]
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(300)


@pytest.mark.parametrize("noise", [0.001, 0.003])
@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize(
    ("curve", "rate"),
    [(cosh, 0.9), (lopsided(1.5), 0.85), (lopsided(3.0), 0.9)],
    ids=["cosh", "lopsided 1.5", "lopsided 3"],
)
def test_other_curves_optima_are_held_less_often(
    curve: Curve, rate: float, seeds: int, noise: float
) -> None:
    """A parabola is drawn to the side where the loss rises less: asked for is less than is said."""
    assert coverage(studies(200, curve, seeds, noise)) >= at_least(rate, 200)


def test_where_there_is_no_curvature_few_intervals_are_given() -> None:
    """Of losses that are noise alone. Fieller's are bounded in 2.5%, if the values were chosen
    without looking; the best lies among them because it was looked for, and that makes it more."""
    found = [each for _, each in studies(400, parabola, 2, 0.002, rise=0.0)]
    assert sum(each.interval is not None for each in found) < 0.1 * len(found)
    flat = [each for each in found if each.edge is None and each.interval is None]
    assert all("no interval" in each.notes[-1] or "no parabola" in each.notes[-1] for each in flat)


# -- what the trials do not tell ------------------------------------------------------------------


def test_an_unbounded_interval_is_none_and_said() -> None:
    losses = [3.004, 3.0, 2.999, 3.003, 3.001]
    found = fit_optimum([Trial(x, y) for x, y in zip(grid(0.01, 5), losses, strict=True)])
    assert found.edge is None
    assert found.fitted is not None
    assert found.interval is None
    assert "curvature cannot be told from nought" in found.notes[0]


def test_without_a_degree_of_freedom_there_is_no_interval() -> None:
    found = fit_optimum(exact(0.011, grid(0.01, 3)))
    assert found.value == pytest.approx(0.011, rel=1e-9)
    assert found.interval is None
    assert found.noise is None
    assert "at least 1 more value about the best is missing, or a seed" in found.notes[0]
    # A second seed gives two: six losses less two offsets and two constants.
    assert fit_optimum(exact(0.011, grid(0.01, 3), (0, 1))).interval is not None


@pytest.mark.parametrize(
    ("optimum", "edge", "end", "advice"),
    [(1.0, "high", 0.08, "0.16 and 0.32"), (1e-4, "low", 0.00125, "0.000625 and 0.000313")],
)
def test_a_best_value_at_an_end_is_no_optimum(
    optimum: float, edge: str, end: float, advice: str
) -> None:
    found = fit_optimum(exact(optimum, grid()))
    assert (found.edge, found.value) == (edge, pytest.approx(end))
    assert (found.fitted, found.interval) == (None, None)
    assert f"widen the grid to {advice}" in found.notes[0]
    assert fit_of(found) is None


def diverging(optimum: float, above: float) -> list[Trial]:
    return [
        replace(trial, loss=None) if trial.x > above else trial for trial in exact(optimum, grid())
    ]


def test_a_minimum_beside_what_diverged_is_one_if_losses_lie_on_both_sides() -> None:
    found = fit_optimum(diverging(0.009, 0.03))
    assert found.edge is None
    assert found.value == pytest.approx(0.009, rel=1e-9)
    assert found.diverged == (0.04, 0.08)


def test_a_minimum_whose_one_side_all_diverged_is_an_edge() -> None:
    found = fit_optimum(diverging(0.019, 0.03))
    assert (found.edge, found.value) == ("high", 0.02)
    assert "try values between 0.02 and 0.04" in found.notes[0]


def test_a_value_that_diverged_with_one_seed_counts_as_diverged() -> None:
    trials = exact(0.011, grid(), (0, 1))
    trials[5] = replace(trials[5], loss=math.nan)
    found = fit_optimum(trials)
    assert found.diverged == (0.04,)
    assert found.notes == ("0.04 diverged with 1 of 2 seeds and counts as diverged",)
    assert found.value == pytest.approx(0.011, rel=1e-9)


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([], r"3 different values .*there are 0 \(none\): add at least 3"),
        (exact(0.01, [0.01, 0.02], (0, 1)), r"there are 2 \(0.01, 0.02\): add at least 1"),
        (diverging(0.01, 0.004), r"there are 2 \(0.00125, 0.0025; diverged: 0.005, 0.01, .*add"),
        ([Trial(0.0, 1.0)], "a value of 0 was tried"),
    ],
)
def test_too_few_values(trials: list[Trial], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_optimum(trials)
