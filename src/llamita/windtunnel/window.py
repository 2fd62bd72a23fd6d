"""Which values a parabola is fitted to: it holds near the minimum only.

Up to five, the nearest to the best in ln x. Values are left out whose rise above the best is more
than three times what a parabola through the best and its steeper neighbour would allow; and the
farthest, one by one, as long as several seeds show that the means do not lie on a parabola (F-test
of lack of fit, 5%) or the vertex lies outside of what is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llamita.windtunnel.findings import Edge, Trial
from llamita.windtunnel.parabola import Array, Parabola, cubic_term, fit_additive, fit_parabola

MIN_VALUES = 3
WIDEST = 5
"""Values that a parabola is fitted to. On a grid of factors of 2 they span a factor of 16."""
_STEEP = 3.0
_MISFIT = 0.05


@dataclass(frozen=True)
class Tried:
    """Trials with a loss, by value. x: (values,) sorted, means: (values,). The others: (n,), a
    trial each: which value, its loss, its seed."""

    x: Array
    means: Array
    values: NDArray[np.int64]
    losses: Array
    seeds: NDArray[np.int64]
    trials: tuple[Trial, ...]
    diverged: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> int:
        return int(self.means.argmin())

    @property
    def edge(self) -> Edge | None:
        if self.best == 0:
            return "low"
        return "high" if self.best == len(self.x) - 1 else None


@dataclass(frozen=True)
class Fit:
    """
    window: numbers of the values fitted. misfit: mean square of their means' lack of fit, and its
    degrees of freedom. significant: noise seldom makes it so large. cut: the vertex of a wider
    window lay outside of that. skewed: what ln x of the minimum moves by if a cubic is taken for
    the parabola.
    """

    parabola: Parabola
    window: list[int]
    misfit: tuple[float, int]
    significant: bool
    cut: bool = False
    skewed: float = 0.0


def widest_fit(tried: Tried) -> Fit | None:
    """The parabola of the widest window that one describes."""
    cut = False
    for window in _windows(tried):
        found = _fit_window(tried, window)
        if found is None:
            continue
        u = np.log(tried.x[window])
        vertex = found.parabola.vertex
        if vertex is None or not u[0] <= vertex <= u[-1]:
            cut = True
            continue
        if found.significant and len(window) > MIN_VALUES:
            continue
        return replace(found, cut=cut, skewed=_skewed(tried, found))
    return None


def _skewed(tried: Tried, found: Fit) -> float:
    """By the cubic of the widest window, of which a narrower one shows less."""
    widest = np.isin(tried.values, next(_windows(tried)))
    u = np.log(tried.x[tried.values])
    c3 = cubic_term(u[widest], tried.losses[widest], tried.seeds[widest])
    vertex = found.parabola.vertex
    assert vertex is not None
    kept = np.isin(tried.values, found.window)
    return found.parabola.without_cubic(u[kept], c3) - vertex if c3 else 0.0


def _windows(tried: Tried) -> Iterator[list[int]]:
    """Values to fit to, most first: the best, its neighbours, and the nearest beyond them."""
    u, rise, best = np.log(tried.x), tried.means - tried.means.min(), tried.best
    distance = np.abs(u - u[best])
    below, above = best - 1, best + 1
    steep = max((below, above), key=lambda index: rise[index] / distance[index] ** 2)
    allowed = _STEEP * rise[steep] * (distance / distance[steep]) ** 2
    first, last = below, above
    while first > 0 and rise[first - 1] <= allowed[first - 1]:
        first -= 1
    while last < len(u) - 1 and rise[last + 1] <= allowed[last + 1]:
        last += 1
    # Of two as far, to within rounding, the lower one is the nearer to a parabola.
    beyond = sorted(
        (index for index in range(first, last + 1) if index not in (below, best, above)),
        key=lambda index: (round(float(distance[index]), 6), rise[index]),
    )[: WIDEST - MIN_VALUES]
    for count in range(len(beyond), -1, -1):
        yield sorted([below, best, above, *beyond[:count]])


def _fit_window(tried: Tried, window: list[int]) -> Fit | None:
    kept = np.isin(tried.values, window)
    u = np.log(tried.x[tried.values[kept]])
    y, seeds = tried.losses[kept], tried.seeds[kept]
    parabola = fit_parabola(u, y, seeds)
    if parabola is None:
        return None
    pure = fit_additive(np.searchsorted(window, tried.values[kept]), y, seeds)
    freedom = parabola.freedom - pure.freedom
    if freedom <= 0 or pure.freedom <= 0:
        return Fit(parabola, window, (0.0, 0), False)
    misfit = max(0.0, parabola.squares - pure.squares) / freedom
    significant = _exceeds(misfit, pure.squares / pure.freedom, freedom, pure.freedom)
    return Fit(parabola, window, (misfit, freedom), significant)


def _exceeds(above: float, below: float, freedom: int, pure: int) -> bool:
    from scipy.stats import f

    return bool(f.sf(above / below, freedom, pure) < _MISFIT) if below > 0 else False
