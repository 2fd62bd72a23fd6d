"""Whether an optimum stays as models grow: its exponent in width, and the value to take further."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llamita.errors import UserError
from llamita.planning.fitting import require_scipy
from llamita.windtunnel.findings import (
    Interval,
    RunResult,
    SizeOptimum,
    Transfer,
    Trial,
)
from llamita.windtunnel.optimum import fit_optimum
from llamita.windtunnel.width_line import (
    Estimate,
    Placed,
    exponentials,
    fit_line,
    fit_mean,
    place_optima,
)

_ENDS = {"low": "smallest value", "high": "largest value"}
_TELLING = 0.5
"""Exponents within ±0.5 count as staying: under the standard parametrisation the optimal learning
rate goes as about width^-1 (Yang et al., arXiv 2203.03466), and this is half of that."""


def find_transfers(
    runs: Sequence[RunResult], axis: str = "optimizer.learning_rate"
) -> tuple[Transfer, ...]:
    """A `Transfer` for each parametrisation among the runs that have a value of the axis.

    Each size's optimum is `fit_optimum`'s; width_line.py lays a line through them. The value to
    take further is, under MiniCPM's parametrisation, the weighted geometric mean of the optima that
    lie inside their grids, and under others the largest such size's: no exponent is extrapolated.

    Optima whose own curvature cannot be told from nought are left out of the line. Runs that were
    pruned, failed or were killed have no loss and do not count; diverged ones do.

    Raises:
        UserError: no run has a value of the axis; scipy is not installed.
    """
    require_scipy()
    chosen = [run for run in runs if axis in run.values]
    if not chosen:
        raise UserError(f"no run has a value of {axis}; name an axis that the study searched")
    names = dict.fromkeys(run.parametrization for run in chosen)
    return tuple(
        _transfer(name, axis, [run for run in chosen if run.parametrization == name])
        for name in names
    )


def _transfer(parametrization: str, axis: str, runs: Sequence[RunResult]) -> Transfer:
    optima, remarks = _optima(runs, axis)
    placed, left_out = place_optima(optima)
    remarks += left_out
    line = fit_line(placed)
    mean = fit_mean(placed)
    last = placed[-1] if placed else None
    value: float | None = None
    interval: Interval | None = None
    if last is not None and mean is not None:
        value, interval = last.optimum.value, last.optimum.interval
        if parametrization == "minicpm":
            value, interval = math.exp(mean.value), exponentials(mean.interval)
    cost, remark = _cost(placed)
    return Transfer(
        parametrization=parametrization,
        axis=axis,
        optima=tuple(optima),
        exponent=line.value if line else None,
        exponent_interval=line.interval if line else None,
        cost=cost,
        transferred=value,
        transferred_interval=interval,
        verdict="; ".join([_verdict(optima, placed, line, mean), *remark, *remarks]),
    )


def _optima(runs: Sequence[RunResult], axis: str) -> tuple[list[SizeOptimum], list[str]]:
    """Each size's optimum, narrow to wide, and sentences about sizes that have none."""
    found: list[SizeOptimum] = []
    remarks: list[str] = []
    sizes: dict[str, list[RunResult]] = {}
    for run in sorted(runs, key=lambda run: (run.hidden_size, run.parameters)):
        sizes.setdefault(run.size, []).append(run)
    for size, members in sizes.items():
        trials = [
            Trial(float(run.values[axis]), run.loss if run.status == "done" else None, run.seed)
            for run in members
            if run.status in ("done", "diverged")
        ]
        unfinished = len(members) - len(trials)
        if unfinished:
            remarks.append(f"not counted: {unfinished} of {size}'s runs that came to no end")
        try:
            optimum = fit_optimum(trials)
        except UserError as error:
            remarks.append(f"{size} is left out: {error}")
            continue
        first = members[0]
        found.append(SizeOptimum(size, first.hidden_size, first.parameters, optimum))
    return found, remarks


# -- in words -------------------------------------------------------------------------------------


def _cost(placed: Sequence[Placed]) -> tuple[float | None, list[str]]:
    """What the largest size loses at the smallest one's optimum, by its own parabola."""
    if len(placed) < 2:
        return None, []
    small, large = placed[0], placed[-1]
    assert large.optimum.fitted is not None
    c2 = large.optimum.fitted[2]
    cost = c2 * (small.y - large.y) ** 2
    low, high = large.optimum.window
    where = "" if low <= small.optimum.value <= high else ", beyond what its parabola was fitted to"
    return cost, [
        f"at the optimum of {small.size}, {small.optimum.value:.3g}, {large.size} loses "
        f"{cost:.2g}{where}"
    ]


def _verdict(
    optima: Sequence[SizeOptimum],
    placed: Sequence[Placed],
    line: Estimate | None,
    mean: Estimate | None,
) -> str:
    edges = [
        f"{each.size} at the {_ENDS[each.optimum.edge]}, {each.optimum.value:.3g}"
        for each in optima
        if each.optimum.edge is not None
    ]
    at_edges = f"; lowest at an edge of its grid: {', '.join(edges)}" if edges else ""
    if mean is None:
        if edges:
            return (
                "nothing can be said: losses are lowest at the edges of the grids "
                f"({', '.join(edges)}); widen them"
            )
        return "nothing can be said: no size has an optimum inside its grid"
    if line is None:
        names = ", ".join(each.size for each in placed)
        one = f"{math.exp(mean.value):.3g}{_range(exponentials(mean.interval))}"
        return (
            f"whether the optimum moves cannot be said: only {names} has one inside its grid, "
            f"{one}{at_edges}"
        )
    factor = math.exp(line.value * (placed[-1].x - placed[0].x))
    return _of_line(line, mean, factor) + at_edges


def _of_line(line: Estimate, mean: Estimate, factor: float) -> str:
    """factor: the largest size's optimum over the smallest one's, on the line."""
    if line.interval is None:
        return (
            f"whether the optimum moves cannot be said: the exponent is {line.value:.2g}, and "
            "nothing tells how far noise could move it; add seeds or values"
        )
    low, high = line.interval
    shown = f"{line.value:.2g} ({low:.2g} to {high:.2g})"
    if not low <= 0 <= high:
        return f"the optimum moves as width^{shown}, by a factor of {factor:.2g} over these sizes"
    if low < -_TELLING or high > _TELLING:
        return (
            f"whether the optimum moves cannot be said: its exponent {shown} includes nought, and "
            "much else; add seeds, or sizes further apart"
        )
    at = f"{math.exp(mean.value):.3g}{_range(exponentials(mean.interval))}"
    return f"the optimum stays: {at} at every width; exponent {shown} includes nought"


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2g} to {interval[1]:.2g})"
