"""A scaling law's constants from runs, and how far to trust them.

law_objective.py holds what is minimised. Here are the search, the bootstrap, the largest run left
out and predicted, and what makes a fit doubtful.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llamita.errors import UserError
from llamita.planning.law_objective import Array, Problem
from llamita.planning.laws import CONSTANTS, Law, Range, Sample
from llamita.planning.observations import Observation, Observations
from llamita.planning.quantities import tokens as short

Progress = Callable[[int, int], None]

DELTA = 1e-3
BOOTSTRAP = 400
MIN_POINTS = 6
"""One more than there are constants."""
MIN_DISTINCT = 3
"""Values of N, and of D: with fewer, E, the factor and the exponent cannot be told apart."""
FEW_GROUPS = 10
"""95% intervals of B and beta held the truth in 91 to 92% of 120 data sets of 6 or 8 groups, and in
96 to 98% of those of 12."""
LEAST_DRAWS = 10
"""Different ones. Three groups of a size each can be drawn in one way that five constants can be
fitted to, all three, and an interval from it would be nought wide."""
NUM_STARTS = 12
_WIDE = 100.0


@dataclass(frozen=True)
class HeldOut:
    """What the law says of the run of most compute (N·D) when it is fitted to smaller ones.

    largest: what was left out, in words. predicted, observed: that run's loss. rms: root mean
    square of ln(predicted/observed) of all left out. reach: its compute over the most that is left.
    """

    largest: str
    num_observations: int
    predicted: float
    observed: float
    rms: float
    reach: float

    @property
    def error(self) -> float:
        """(predicted - observed)/observed."""
        return self.predicted / self.observed - 1


@dataclass(frozen=True)
class FittedLaw:
    """A law, what it was fitted to, and how well it fits.

    residuals: ln(observed/fitted) of each observation. objective: the sum of Huber losses.
    bootstrap: fits to drawn observations that were asked for. num_resampled: observations, or
    groups, that they draw from.
    """

    law: Law
    observations: Observations
    residuals: tuple[float, ...]
    objective: float
    delta: float
    seed: int
    bootstrap: int
    converged: bool
    agreeing_starts: int
    num_starts: int
    resampled: Literal["observation", "group"]
    num_resampled: int
    held_out: HeldOut | None
    undetermined: tuple[str, ...]
    """Constants that came out as nothing, or where the search ends."""
    warnings: tuple[str, ...]

    @property
    def rms(self) -> float:
        """Root mean square of the residuals, in log-loss."""
        return math.sqrt(sum(r * r for r in self.residuals) / len(self.residuals))

    @property
    def r_squared(self) -> float:
        """Share of the variance of the log-losses that the law explains."""
        logs = [math.log(row.loss) for row in self.observations.rows]
        mean = sum(logs) / len(logs)
        total = sum((value - mean) ** 2 for value in logs)
        return 1 - sum(r * r for r in self.residuals) / total

    @property
    def samples(self) -> list[Law]:
        """The laws of the bootstrap."""
        return self.law.sampled_laws()

    def predict_interval(
        self, parameters: float, tokens: float, level: float = 0.95
    ) -> Range | None:
        """Of the law's loss at (N, D), None without a bootstrap; a single run scatters about it by
        `rms` besides."""
        return self.law.interval(parameters, tokens, level)


def fit_observations(
    observations: Observations,
    *,
    name: str = "fitted",
    source: str = "fitted by llamita",
    delta: float = DELTA,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> FittedLaw:
    """Fit L(N, D) = E + A/N^α + B/D^β.

    Starts are the best points of a grid over α, β and E, in which A and B follow by least squares;
    the `NUM_STARTS` best are polished by L-BFGS-B. Then observations are drawn with replacement,
    whole groups of them where there are groups, and fitted again from the best fit, `bootstrap`
    times. Intervals are the percentiles of these fits.

    Args:
        delta: of the Huber loss, in log-loss: residuals beyond it count linearly.
        bootstrap: fits to resampled observations; 0 gives no intervals.
        progress: called with (fits done, fits in all).

    Raises:
        UserError: too few observations, or too few different N or D, for five constants; scipy is
            not installed; arguments out of range.
    """
    require_scipy()
    _check(observations.rows, delta, bootstrap, seed)
    problem = Problem(observations.rows, delta)
    x, agreeing = _best_fit(problem)
    units, resampled = _units(observations.rows)
    drawn = _bootstrap(problem, x, units, bootstrap, seed, progress)
    law = _law(problem, x, drawn, observations, name, source)
    held_out = _leave_largest_out(observations.rows, delta)
    ends = _at_an_end(problem, x)
    fitted = FittedLaw(
        law=law,
        observations=observations,
        residuals=tuple(float(value) for value in -problem.residuals(x)),
        objective=problem.objective(x),
        delta=delta,
        seed=seed,
        bootstrap=bootstrap,
        converged=problem.is_minimum(x),
        agreeing_starts=agreeing,
        num_starts=NUM_STARTS,
        resampled=resampled,
        num_resampled=len(units),
        held_out=held_out,
        undetermined=tuple(ends),
        warnings=(*observations.warnings, *ends.values()),
    )
    return replace(fitted, warnings=(*fitted.warnings, *_warnings(fitted)))


def require_scipy() -> None:
    """
    Raises:
        UserError: scipy is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise UserError("scipy does the fits, and it is not installed: pip install 'llamita[fit]'")


def _check(rows: Sequence[Observation], delta: float, bootstrap: int, seed: int) -> None:
    if seed < 0:
        raise UserError(f"--seed is {seed}: it must be at least 0")
    if not 0 < delta < math.inf:
        raise UserError(f"--delta is {delta:g}: it must lie above 0, as in 1e-3")
    if bootstrap < 0 or 0 < bootstrap < 40:
        raise UserError(
            f"--bootstrap is {bootstrap}: a 95% interval takes at least 40 fits, and hundreds to "
            "hold still; or write 0 for no intervals"
        )
    problem = _too_few(rows)
    if problem is not None:
        raise UserError(problem)


def _too_few(rows: Sequence[Observation]) -> str | None:
    """Why observations do not determine five constants, if they do not."""
    points = {(row.parameters, row.tokens) for row in rows}
    if len(points) < MIN_POINTS:
        return (
            f"{len(points)} different points (N, D) are too few for five constants: it takes at "
            f"least {MIN_POINTS}, and a few tens for intervals that say much"
        )
    for what, values in (
        ("model sizes", {row.parameters for row in rows}),
        ("token counts", {row.tokens for row in rows}),
    ):
        if len(values) < MIN_DISTINCT:
            return (
                f"the observations have {len(values)} different {what} "
                f"({', '.join(short(value) for value in sorted(values))}): with fewer than "
                f"{MIN_DISTINCT}, E, the factor and the exponent cannot be told apart; add runs"
            )
    return None


# -- the fit ---------------------------------------------------------------------------------------


def _best_fit(problem: Problem) -> tuple[Array, int]:
    """The best of the polished starts, and how many of them end there."""
    polished = [problem.polish(start) for start in problem.starts()[:NUM_STARTS]]
    value, x = min(polished, key=lambda found: found[0])
    # As far apart as two ends of one valley lie: a thousandth, or a tenth of δ in one residual.
    near = value * 1.001 + 0.1 * problem.delta**2
    return x, sum(found <= near for found, _ in polished)


# -- the bootstrap --------------------------------------------------------------------------------


def _units(
    rows: Sequence[Observation],
) -> tuple[list[list[int]], Literal["observation", "group"]]:
    """Which observations are drawn together."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group or f"\0{index}", []).append(index)
    grouped = any(len(members) > 1 for members in groups.values())
    return list(groups.values()), "group" if grouped else "observation"


def _bootstrap(
    problem: Problem,
    x: Array,
    units: list[list[int]],
    count: int,
    seed: int,
    progress: Progress,
) -> list[Array]:
    """Fits to units drawn with replacement. Draws with too few different N or D are drawn again;
    none at all where too few draws differ."""
    generator = np.random.default_rng(seed)
    drawn: list[Array] = []
    attempts = 0
    different = set()
    whole = problem.weights
    while len(drawn) < count:
        attempts += 1
        if attempts > 20 * count:
            problem.weights = whole
            return []
        times = np.bincount(generator.integers(len(units), size=len(units)), minlength=len(units))
        weights = np.zeros(len(problem.n))
        for unit, number in zip(units, times, strict=True):
            weights[unit] = number
        kept = weights > 0
        if min(len(set(values[kept])) for values in (problem.n, problem.d)) < MIN_DISTINCT:
            continue
        different.add(tuple(times))
        problem.weights = weights
        drawn.append(problem.polish(x)[1])
        progress(len(drawn), count)
    problem.weights = whole
    return drawn if len(different) >= min(LEAST_DRAWS, count) else []


def _leave_largest_out(rows: Sequence[Observation], delta: float) -> HeldOut | None:
    """Fit without the model of the run of most compute, or, where that leaves too little, without
    that run alone; None where that does too."""
    most = max(rows, key=_compute)
    same = [row for row in rows if row.parameters == most.parameters]
    run = f"the run of {short(most.parameters)} parameters and {short(most.tokens)} tokens"
    choices = [(run, [most])]
    if len(same) > 1:
        choices.insert(0, (f"all {len(same)} runs of {short(most.parameters)} parameters", same))
    for words, left_out in choices:
        kept = [row for row in rows if not any(row is other for other in left_out)]
        if _too_few(kept) is not None:
            continue
        problem = Problem(kept, delta)
        x, _ = _best_fit(problem)
        errors = Problem(left_out, delta, problem.centres).residuals(x)
        place = next(index for index, row in enumerate(left_out) if row is most)
        return HeldOut(
            largest=words,
            num_observations=len(left_out),
            predicted=most.loss * math.exp(float(errors[place])),
            observed=most.loss,
            rms=float(np.sqrt((errors**2).mean())),
            reach=_compute(most) / max(_compute(row) for row in kept),
        )
    return None


def _compute(row: Observation) -> float:
    return row.parameters * row.tokens


# -- the law --------------------------------------------------------------------------------------


def _law(
    problem: Problem,
    x: Array,
    drawn: Sequence[Array],
    observations: Observations,
    name: str,
    source: str,
) -> Law:
    rows = observations.rows
    units = (_unit(problem.centres[0]), _unit(problem.centres[1]))
    samples = tuple(_constants(problem, each, units) for each in drawn)
    intervals: dict[str, Range] = {}
    if samples:
        low, high = np.quantile(np.array(samples), [0.025, 0.975], axis=0)
        intervals = {
            key: (float(low[index]), float(high[index])) for index, key in enumerate(CONSTANTS)
        }
    sizes, counts = [row.parameters for row in rows], [row.tokens for row in rows]
    ratios = [row.tokens / row.parameters for row in rows]
    e, a, alpha, b, beta = _constants(problem, x, units)
    return Law(
        name=name,
        E=e,
        A=a,
        alpha=alpha,
        B=b,
        beta=beta,
        loss=observations.loss,
        counts=observations.counts,
        source=source,
        parameters_unit=units[0],
        tokens_unit=units[1],
        intervals=intervals,
        samples=samples,
        fitted_parameters=(min(sizes), max(sizes)),
        fitted_tokens=(min(counts), max(counts)),
        fitted_ratio=(min(ratios), max(ratios)),
        data=observations.data,
    )


def _unit(centre: float) -> float:
    """The power of a thousand below a geometric mean, so that A and B are numbers to be read."""
    return float(10.0 ** (3 * max(0, math.floor(centre / math.log(1000)))))


def _constants(problem: Problem, x: Array, units: tuple[float, float]) -> Sample:
    """(E, A, α, B, β) for N and D in these units."""
    n, d = (centre - math.log(unit) for centre, unit in zip(problem.centres, units, strict=True))
    p, alpha, q, beta, e = (float(value) for value in x)
    return (math.exp(e), math.exp(p + alpha * n), alpha, math.exp(q + beta * d), beta)


def _warnings(fitted: FittedLaw) -> list[str]:
    """What else makes the constants doubtful."""
    found = []
    if not fitted.converged:
        found.append("the optimiser did not reach a minimum; the constants are not to be trusted")
    for name, (low, high) in fitted.law.intervals.items():
        if high > _WIDE * low:
            found.append(
                f"{name} is ill-determined: its interval, {low:.3g} to {high:.3g}, spans more than "
                f"a factor of {_WIDE:g}. Trust the law between its runs, not beyond them"
            )
    if fitted.bootstrap and not fitted.samples:
        found.append(
            f"{fitted.num_resampled} {fitted.resampled}s can be drawn in too few ways for "
            "intervals; add runs, of another size or another seed"
        )
    elif fitted.resampled == "group" and fitted.num_resampled < FEW_GROUPS:
        found.append(
            f"there are {fitted.num_resampled} groups: intervals drawn from fewer than "
            f"{FEW_GROUPS} miss the truth more often than they say"
        )
    if fitted.held_out is None:
        found.append("there are too few runs to leave the largest out and predict it")
    return found


def _at_an_end(problem: Problem, x: Array) -> dict[str, str]:
    """Constants that lie where the search ends, and terms below a ten-thousandth of the loss, each
    with a sentence about it."""
    found = {}
    for value, bounds, name in zip(
        x, problem.bounds, ("A", "alpha", "B", "beta", "E"), strict=True
    ):
        what = "size" if name in ("A", "alpha") else "tokens"
        if name in ("alpha", "beta"):
            if value in bounds:
                found[name] = (
                    f"{name} came out as {value:g}, where the search ends: these runs do not "
                    f"determine it; add runs that differ more in {what}"
                )
        elif value < math.log(1e-4 * problem.lowest):
            reason = f"the loss hardly depends on {what}; add runs that differ more in it"
            if name == "E":
                reason = "these runs do not come near an irreducible loss; add larger, longer ones"
            found[name] = f"{name} came out as nothing: {reason}"
    return found
