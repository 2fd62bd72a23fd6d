"""A line through sizes' optima: ln optimum over ln width, with each one's standard error.

The weights are what an optimum's standard error would be if all sizes had one noise, the pooled
one: noises estimated from two or three degrees of freedom each would make wild weights. The
interval propagates each size's own noise with Student's t, its degrees of freedom by Welch and
Satterthwaite; where the optima scatter more than they should about a line through three or more, it
is widened by the square root of χ² over its degrees of freedom, as the Particle Data Group does.
Where no size has a degree of freedom, the scatter about the line is all there is, and of two optima
no interval follows. What curves are skewed by, as `fit_optimum` has it, stretches the interval too;
in an exponent it cancels where all sizes are skewed alike.

Of 200 studies each of 2 to 4 widths, intervals of 95% held a planted exponent in 94 to 98%, and the
value to take further in 94 to 99%, or, where losses rise 1.5 times as fast on one side, in 80%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llamita.windtunnel.findings import Interval, Optimum, SizeOptimum
from llamita.windtunnel.optimum import fit_of
from llamita.windtunnel.parabola import Array, student_t
from llamita.windtunnel.window import Fit

_LEVEL = 0.95


@dataclass(frozen=True)
class Placed:
    """An optimum inside its grid. x: ln width. y: ln optimum. shape: its standard error at noise 1.
    noise: of its own runs, None with no degree of freedom."""

    size: str
    optimum: Optimum
    x: float
    y: float
    shape: float
    noise: float | None
    freedom: int
    skewed: float


@dataclass(frozen=True)
class Estimate:
    value: float
    interval: Interval | None


def place_optima(optima: Sequence[SizeOptimum]) -> tuple[list[Placed], list[str]]:
    """Optima that a line may go through, and sentences about the others."""
    fits = [(each, fit) for each in optima if (fit := fit_of(each.optimum)) is not None]
    freedom = sum(fit.parabola.freedom for _, fit in fits)
    squares = sum(fit.parabola.squares for _, fit in fits)
    placed: list[Placed] = []
    flat: list[str] = [
        each.size for each in optima if each.optimum.edge is None and not each.optimum.is_found
    ]
    for each, fit in fits:
        parabola, known = fit.parabola, each.optimum.interval is not None
        if not known and parabola.freedom == 0:
            known = freedom == 0 or (
                not fit.cut and parabola.fieller(squares / freedom, freedom, _LEVEL) is not None
            )
        if known:
            placed.append(_place(each, fit))
        else:
            flat.append(each.size)
    if not flat:
        return placed, []
    return placed, [f"the curvature of {', '.join(flat)} cannot be told from nought at this noise"]


def _place(each: SizeOptimum, fit: Fit) -> Placed:
    parabola = fit.parabola
    return Placed(
        size=each.size,
        optimum=each.optimum,
        x=math.log(each.hidden_size),
        y=math.log(each.optimum.value),
        shape=parabola.vertex_error,
        noise=each.optimum.noise,
        freedom=max(0, parabola.freedom),
        skewed=fit.skewed,
    )


def fit_line(placed: Sequence[Placed]) -> Estimate | None:
    """The exponent, by weighted least squares; None with fewer than two widths."""
    x = np.array([each.x for each in placed])
    if len(set(x)) < 2:
        return None
    weights = _weights(placed)
    away = x - weights @ x / weights.sum()
    return _combined(placed, weights * away / (weights @ away**2), constants=2)


def fit_mean(placed: Sequence[Placed]) -> Estimate | None:
    """ln of the weighted geometric mean."""
    if not placed:
        return None
    weights = _weights(placed)
    return _combined(placed, weights / weights.sum(), constants=1)


def _weights(placed: Sequence[Placed]) -> Array:
    """1/variance at one noise; equal ones where none can be told."""
    shapes = np.array([each.shape for each in placed])
    return np.asarray(1 / shapes**2)


def _combined(placed: Sequence[Placed], parts: Array, constants: int) -> Estimate:
    """Σ partᵢ·yᵢ with its interval. constants: of the line that the optima are fitted to."""
    y = np.array([each.y for each in placed])
    value = float(parts @ y)
    residuals = _residuals(placed, constants)
    left = len(placed) - constants
    skewed = float(parts @ np.array([each.skewed for each in placed]))
    freedoms = np.array([each.freedom for each in placed], dtype=float)
    if freedoms.sum() == 0:
        if left < 1:
            return Estimate(value, None)
        shapes = np.array([each.shape for each in placed])
        noise = float(np.sum((residuals / shapes) ** 2)) / left
        half = student_t(left, _LEVEL) * math.sqrt(noise * float(parts**2 @ shapes**2))
        return Estimate(value, _stretched(value, half, skewed))
    pooled, variances = _variances(placed)
    freedoms = np.where(freedoms > 0, freedoms, freedoms.sum())
    shares = parts**2 * variances
    total = float(shares.sum())
    if total == 0:
        return Estimate(value, _stretched(value, 0.0, skewed))
    freedom = total**2 / float((shares**2 / freedoms).sum())
    excess = float((residuals**2 / pooled).sum()) / left if left > 0 else 1.0
    half = student_t(freedom, _LEVEL) * math.sqrt(total * max(1.0, excess))
    return Estimate(value, _stretched(value, half, skewed))


def _variances(placed: Sequence[Placed]) -> tuple[Array, Array]:
    """Of each y: by the noise of all sizes, and by its own where it has one."""
    freedoms = np.array([each.freedom for each in placed])
    noises = np.array([each.noise or 0.0 for each in placed])
    common = float(freedoms @ noises**2) / freedoms.sum()
    shapes = np.array([each.shape for each in placed]) ** 2
    return shapes * common, shapes * np.where(freedoms > 0, noises**2, common)


def _residuals(placed: Sequence[Placed], constants: int) -> Array:
    """From the weighted mean, or from the weighted line."""
    x = np.array([each.x for each in placed])
    y = np.array([each.y for each in placed])
    weights = _weights(placed)
    away = x - weights @ x / weights.sum()
    rest = y - weights @ y / weights.sum()
    if constants == 2:
        rest = rest - away * float(weights * away @ y) / float(weights @ away**2)
    return np.asarray(rest)


def _stretched(value: float, half: float, skewed: float) -> Interval:
    return value - half + min(0.0, skewed), value + half + max(0.0, skewed)


def exponentials(interval: Interval | None) -> Interval | None:
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
