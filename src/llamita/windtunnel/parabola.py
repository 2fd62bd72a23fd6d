"""A parabola in ln x with an offset for each seed: least squares, and how far its vertex is known.

All runs of one seed begin with the same weights and meet the same text, so that what is peculiar to
them moves all their losses together. loss = offset(seed) + c1·v + c2·v², v = ln x − centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

_SINGULAR = 1e-12
"""Of the product of the diagonal: a determinant below it leaves c1 and c2 undetermined."""


@lru_cache(maxsize=4096)
def student_t(freedom: float, level: float) -> float:
    """The t beyond which, both ways, 1 − `level` of Student's distribution lies."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


@dataclass(frozen=True)
class Parabola:
    """Least squares of n losses.

    c0: the mean of the seeds' offsets. unit: (2, 2), covariance of (c1, c2) if a loss has variance
    1. maps: (2, n), what c1 and c2 take from each loss. residuals, leverages: (n,). freedom: n less
    seeds less two.
    """

    centre: float
    c0: float
    c1: float
    c2: float
    unit: Array
    maps: Array
    residuals: Array
    leverages: Array
    freedom: int

    @cached_property
    def squares(self) -> float:
        """Sum of squared residuals."""
        return float(self.residuals @ self.residuals)

    @property
    def variance(self) -> float | None:
        """Of a loss about the parabola, lack of fit included; None with no degree of freedom."""
        return self.squares / self.freedom if self.freedom > 0 else None

    @property
    def vertex(self) -> float | None:
        """ln x where the loss is lowest; None where it is nowhere."""
        return self.centre - self.c1 / (2 * self.c2) if self.c2 > 0 else None

    @property
    def vertex_error(self) -> float:
        """Standard error of `vertex` if a loss has variance 1, to first order."""
        slope = np.array([-1 / (2 * self.c2), self.c1 / (2 * self.c2**2)])
        return math.sqrt(float(slope @ self.unit @ slope))

    def at(self, u: float) -> float:
        v = u - self.centre
        return self.c0 + v * (self.c1 + v * self.c2)

    def in_powers(self) -> tuple[float, float, float]:
        """(c0, c1, c2) of loss = c0 + c1·ln x + c2·(ln x)²."""
        m = self.centre
        return self.at(0.0), self.c1 - 2 * self.c2 * m, self.c2

    def without_cubic(self, u: Array, c3: float) -> float:
        """ln x of the minimum if the losses, at u (n,), have a term c3·(u − centre)³ beside."""
        taken = self.maps @ (c3 * (u - self.centre) ** 3)
        c1, c2 = self.c1 - float(taken[0]), self.c2 - float(taken[1])
        # 3·c3·v² + 2·c2·v + c1 = 0: the root that is −c1/(2·c2) where c3 is nought. Where there is
        # none, the cubic only has an inflection.
        root = c2 + math.sqrt(max(0.0, c2 * c2 - 3 * c3 * c1))
        return self.centre - c1 / root if root > 0 else self.centre - self.c1 / (2 * self.c2)

    def fieller(self, variance: float, freedom: float, level: float) -> Interval | None:
        """Where ln x of the vertex lies, by Fieller's theorem (J. R. Stat. Soc. B 16:175, 1954).

        −c1/(2·c2) = θ makes c1 + 2θ·c2 nought, and that is a normal variable of known variance for
        each θ: those θ are kept for which it lies within t standard errors. They are all between
        two ends only where c2 itself is further than t standard errors from nought.

        Returns:
            Their ends; None where there are none, as the vertex may be at infinity.
        """
        squared = student_t(freedom, level) ** 2 * variance
        u11, u12, u22 = self.unit[0, 0], self.unit[0, 1], self.unit[1, 1]
        # a·θ² + b·θ + c ≤ 0
        a = 4 * (self.c2**2 - squared * u22)
        b = 4 * (self.c1 * self.c2 - squared * u12)
        c = self.c1**2 - squared * u11
        if a <= 0 or self.c2 <= 0:
            return None
        root = math.sqrt(max(0.0, b * b - 4 * a * c))
        low, high = (-b - root) / (2 * a), (-b + root) / (2 * a)
        return self.centre + low, self.centre + high


def fit_parabola(u: Array, y: Array, seeds: NDArray[np.int64]) -> Parabola | None:
    """Least squares of y (n,) over u = ln x (n,), with an offset for each seed (n,).

    Returns:
        None where c1 and c2 are not determined: with fewer than three different x, or with none
        that have a seed in common.
    """
    centre = float(u.mean())
    v = u - centre
    z = np.stack([v, v * v], axis=1)
    names, index, counts = np.unique(seeds, return_inverse=True, return_counts=True)
    within = z - _means(z, index, counts)[index]
    gram = within.T @ within
    determinant = gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2
    if not determinant > _SINGULAR * gram[0, 0] * gram[1, 1]:
        return None
    unit = np.array([[gram[1, 1], -gram[0, 1]], [-gram[0, 1], gram[0, 0]]]) / determinant
    maps = unit @ within.T
    c1, c2 = (float(value) for value in maps @ y)
    offsets = _means((y - z @ np.array([c1, c2]))[:, None], index, counts)[:, 0]
    return Parabola(
        centre=centre,
        c0=float(offsets.mean()),
        c1=c1,
        c2=c2,
        unit=unit,
        maps=maps,
        residuals=y - offsets[index] - z @ np.array([c1, c2]),
        leverages=1 / counts[index] + np.einsum("ni,ij,nj->n", within, unit, within),
        freedom=len(y) - len(names) - 2,
    )


def cubic_term(u: Array, y: Array, seeds: NDArray[np.int64]) -> float:
    """c3 of a cubic, a term c3·(ln x)³ beside the parabola's, by least squares; nought where the
    trials do not determine it."""
    v = u - u.mean()
    _, index, counts = np.unique(seeds, return_inverse=True, return_counts=True)
    z = np.stack([v, v * v, v**3], axis=1)
    within = z - _means(z, index, counts)[index]
    gram = within.T @ within
    if len(np.unique(u)) < 4 or np.linalg.cond(gram) > 1 / _SINGULAR:
        return 0.0
    return float(np.linalg.solve(gram, within.T @ y)[2])


def _means(z: Array, index: NDArray[np.int64], counts: NDArray[np.int64]) -> Array:
    """Of each seed's rows: z (n, k) → (seeds, k)."""
    sums = np.zeros((len(counts), z.shape[1]))
    np.add.at(sums, index, z)
    return np.asarray(sums / counts[:, None])


@dataclass(frozen=True)
class Additive:
    """y = mean(value) + offset(seed).

    means: (values,), with offsets that sum to nought. squares: sum of those of the residuals, whose
    degrees of freedom are `freedom`.
    """

    means: Array
    squares: float
    freedom: int


def fit_additive(values: NDArray[np.int64], y: Array, seeds: NDArray[np.int64]) -> Additive:
    """Least squares of y (n,) at values numbered 0, 1, … (n,). Where seeds share no value, what is
    of seeds and what of values cannot be told apart, and the smallest offsets are taken."""
    names = np.unique(seeds)
    of_value = values[:, None] == np.arange(values.max() + 1)[None, :]
    of_seed = seeds[:, None] == names[None, 1:]  # the first one's offset is nought
    design = np.concatenate([of_value, of_seed], axis=1).astype(float)
    found, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    residuals = y - design @ found
    count = of_value.shape[1]
    return Additive(
        means=np.asarray(found[:count] + found[count:].sum() / len(names)),
        squares=float(residuals @ residuals),
        freedom=len(y) - int(rank),
    )
