"""The batch size by the loss that is to be reached: bs = a / L^b tokens.

MiniCPM's method (arXiv 2404.06395, section 3.3): at several losses and sizes, the batch with which
fewest tokens are needed; then a line through these minima in ln(loss) and ln(batch). Theirs was
1.21e9 / L^6.24, of losses in nats per token of C4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamita.errors import UserError
from llamita.planning.fitting import require_scipy
from llamita.windtunnel.equal_loss import Cut, cut_curves, mean_curves
from llamita.windtunnel.findings import BatchLaw, Interval, RunResult
from llamita.windtunnel.optimum import fit_of
from llamita.windtunnel.parabola import Array

MIN_MINIMA = 3
_DETERMINED = 0.05
"""1 − leverage: a run below it lies on its own parabola, and its residual tells of no noise."""


def fit_batch_law(runs: Sequence[RunResult], *, bootstrap: int = 200, seed: int = 0) -> BatchLaw:
    """Least squares of ln(batch) over ln(loss), through the minima of all sizes.

    Intervals come from a bootstrap of residuals. A run's residuals about the parabolas, at all
    losses, are one vector, because what sets a run apart at one loss does so at the next; divided
    by √(1 − leverage), the vectors of all sizes are drawn with replacement, a run each, and the
    minima and the line are computed again. Runs of one size and batch themselves are not resampled:
    of two or three seeds that would show half to two thirds of their variance. Each draw multiplies
    its vectors by √(ν/χ²_ν), as Student's t does for a noise known from ν degrees of freedom.

    Of 200 studies each, planted with 1.21e9 / L^6.24 in three sizes and eight batches, intervals
    of 95% held b in 92 to 99% where ln(tokens) is a parabola in ln(batch), the fewest with two
    seeds, and in 85 to 98% where it is not and batches too large cost more than those too small.

    Raises:
        UserError: fewer than three minima at different losses; scipy is not installed.
    """
    require_scipy()
    by_size: dict[str, list[RunResult]] = {}
    for run in sorted(runs, key=lambda run: (run.parameters, run.batch_tokens, run.seed)):
        by_size.setdefault(run.size, []).append(run)
    cuts: list[Cut] = []
    skipped: list[str] = []
    for size, members in by_size.items():
        found = cut_curves(size, members)
        if isinstance(found, str):
            skipped.append(found)
        else:
            cuts.append(found)
            skipped += found.skipped
    minima = [each for cut in cuts for each in cut.minima()]
    _refuse_too_few(len({each.loss for each in minima}), skipped)
    losses = np.log([each.loss for each in minima])
    batches = np.log([each.best.value for each in minima])
    a, b = (float(value[0]) for value in _line(losses, batches[None, :]))
    samples, note = _resample(cuts, losses, bootstrap, seed)
    return BatchLaw(
        a=math.exp(a),
        b=b,
        a_interval=_percentiles(np.exp(samples[:, 0])),
        b_interval=_percentiles(samples[:, 1]),
        samples=tuple((math.exp(each[0]), float(each[1])) for each in samples),
        minima=tuple(minima),
        curves={size: mean_curves(members) for size, members in by_size.items()},
        skipped=tuple(skipped),
        notes=(
            *note,
            "a holds for losses in this unit and of this text alone; b does not depend on the unit",
        ),
    )


def _refuse_too_few(count: int, skipped: Sequence[str]) -> None:
    if count < MIN_MINIMA:
        why = f" ({'; '.join(skipped)})" if skipped else ""
        raise UserError(
            f"a batch law takes {MIN_MINIMA} minima at different losses, and there are {count}: "
            f"missing are {MIN_MINIMA - count} more{why}"
        )


def _line(x: Array, y: Array) -> tuple[Array, Array]:
    """Least squares of y = ln a − b·x for each row, NaN left out: y (rows, n) → two of (rows,)."""
    there = ~np.isnan(y)
    filled = np.where(there, y, 0.0)
    count = there.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # of fewer than two points: NaN
        mean_x, mean_y = there @ x / count, filled.sum(axis=1) / count
        away = np.where(there, x[None, :] - mean_x[:, None], 0.0)
        slope = (away * filled).sum(axis=1) / (away**2).sum(axis=1)
    return np.asarray(mean_y - slope * mean_x), np.asarray(-slope)


def _percentiles(values: Array) -> Interval | None:
    if not len(values):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


# -- the bootstrap --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Minimum:
    """What a minimum is computed from again. rows: numbers of the runs, n of them, `maps` (2, n)
    their parts in c1 and c2. ends: of the window, in ln(batch)."""

    index: int
    rows: NDArray[np.int64]
    maps: Array
    centre: float
    ends: Interval


@dataclass(frozen=True)
class _Residuals:
    """Of one size. own, scaled: (runs, losses), `scaled` over √(1 − leverage); NaN in all of a row
    whose run is in no window. freedom: of a typical loss."""

    own: Array
    scaled: Array
    minima: list[_Minimum]
    freedom: float


def _resample(
    cuts: Sequence[Cut], losses: Array, bootstrap: int, seed: int
) -> tuple[Array, tuple[str, ...]]:
    """(ln a, b) of each draw, (draws, 2), and what is to be said of them."""
    sizes = [_residuals(cut) for cut in cuts]
    pool = np.concatenate([each.scaled for each in sizes])
    pool = pool[~np.isnan(pool).any(axis=1)]
    freedom = sum(each.freedom for each in sizes)
    if bootstrap == 0:
        return np.empty((0, 2)), ()
    if freedom < 1 or not len(pool):
        return np.empty((0, 2)), (
            "no intervals: every parabola goes through all its points, so that nothing tells of "
            "noise; at least 1 more batch size, or a seed at all of them, is missing",
        )
    pool = pool - pool.mean(axis=0)
    generator = np.random.default_rng(seed)
    stretch = np.sqrt(freedom / generator.chisquare(freedom, size=bootstrap))
    columns: list[Array] = []
    for cut, each in zip(cuts, sizes, strict=True):
        drawn = pool[generator.integers(len(pool), size=(bootstrap, len(cut.batches)))]
        drawn = drawn * stretch[:, None, None] - each.own  # NaN where a run is in no window
        moved = cut.tokens + np.where(np.isnan(drawn), 0.0, drawn)  # (draws, runs, losses)
        columns += [_vertices(minimum, moved) for minimum in each.minima]
    a, b = _line(losses, np.stack(columns, axis=1))
    found = np.stack([a, b], axis=1)
    found = found[np.isfinite(found).all(axis=1)]
    if len(found) < bootstrap / 2:
        return np.empty((0, 2)), (
            "no intervals: with noise like these runs' most draws have no minima; add seeds",
        )
    return found, ()


def _residuals(cut: Cut) -> _Residuals:
    own = np.full(cut.tokens.shape, np.nan)
    scaled = own.copy()
    minima: list[_Minimum] = []
    freedoms: list[int] = []
    batches = np.array(cut.batches)
    for index, optimum in enumerate(cut.optima):
        fit = fit_of(optimum) if optimum is not None else None
        if fit is None or optimum is None:
            continue
        low, high = optimum.window
        there = ~np.isnan(cut.tokens[:, index])
        rows = np.flatnonzero(there & (batches >= low) & (batches <= high))
        parabola = fit.parabola
        free = 1 - parabola.leverages
        own[rows, index] = parabola.residuals
        told = free > _DETERMINED
        scaled[rows[told], index] = parabola.residuals[told] / np.sqrt(free[told])
        minima.append(
            _Minimum(index, rows, parabola.maps, parabola.centre, (math.log(low), math.log(high)))
        )
        freedoms.append(parabola.freedom)
    typical = float(np.median(freedoms)) if freedoms else 0.0
    return _Residuals(_nearest(own), _nearest(scaled), minima, typical)


def _nearest(rows: Array) -> Array:
    """NaN replaced by the nearest number of the same row, if it has one."""
    found = rows.copy()
    for row in found:
        known = np.flatnonzero(~np.isnan(row))
        if len(known):
            places = np.abs(np.arange(len(row))[:, None] - known[None, :]).argmin(axis=1)
            row[:] = row[known[places]]
    return found


def _vertices(minimum: _Minimum, tokens: Array) -> Array:
    """ln(batch) of a minimum in each draw: tokens (draws, runs, losses) → (draws,); NaN where the
    parabola has none, and no further than its window, which is where a fit of its own would end."""
    c1, c2 = minimum.maps @ tokens[:, minimum.rows, minimum.index].T
    vertex = minimum.centre - c1 / (2 * np.where(c2 > 0, c2, np.nan))
    return np.asarray(np.clip(vertex, *minimum.ends))
