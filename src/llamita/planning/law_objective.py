"""What a fit of a scaling law minimises.

ln L = ln(E + A/N^α + B/D^β) is fitted to the logarithms of the losses by the sum of Huber losses of
the residuals (Hoffmann et al., arXiv 2203.15556, eq. 3: δ = 1e-3). It is a sum and no mean: L-BFGS
stops once the objective falls by less than a fixed amount, and dividing by the number of
observations made it stop early in the fit that gave Chinchilla its constants (Besiroglu et al.,
arXiv 2404.10102).

Everything is computed in x = (ln P, α, ln Q, β, ln E), where P and Q are the two terms at the
geometric means of N and D. There the five depend on each other little: of 20 starts on 40 noisy
points all reach the minimum, in 54 evaluations (median); in (ln A, α, ln B, β, ln E) it takes 109,
and some stop far away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llamita.planning.observations import Observation

Array = NDArray[np.float64]

EXPONENTS = (0.01, 3.0)
"""Between which α and β are sought. Published ones lie between 0.08 and 0.5."""
_GRID_EXPONENTS = np.geomspace(0.03, 1.5, 12)
_GRID_IRREDUCIBLE = np.array([0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.87, 0.92, 0.95, 0.97, 0.985, 0.995])
"""E as a share of the lowest loss seen."""
_LEAST = 1e-6
"""Of the lowest loss: below it a term counts as absent."""


class Problem:
    """Sum of Huber losses over weighted observations. Shapes: n observations; x of 5."""

    def __init__(
        self, rows: Sequence[Observation], delta: float, centres: tuple[float, float] | None = None
    ) -> None:
        n = np.log([row.parameters for row in rows])
        d = np.log([row.tokens for row in rows])
        self.centres = centres or (float(n.mean()), float(d.mean()))
        self.n: Array = n - self.centres[0]
        self.d: Array = d - self.centres[1]
        self.y: Array = np.log([row.loss for row in rows])
        self.delta = delta
        self.weights: Array = np.ones(len(rows))

    @property
    def lowest(self) -> float:
        return float(np.exp(self.y.min()))

    @property
    def bounds(self) -> list[tuple[float, float]]:
        least, most = math.log(_LEAST * self.lowest), math.log(1e6) + float(self.y.max())
        term, lowest = (least, most), (least, float(self.y.max()))
        return [term, EXPONENTS, term, EXPONENTS, lowest]

    def residuals(self, x: Array) -> Array:
        """ln(fitted/observed), (n,)."""
        terms = np.exp(x[0] - x[1] * self.n) + np.exp(x[2] - x[3] * self.d) + math.exp(x[4])
        return np.asarray(np.log(terms) - self.y)

    def objective(self, x: Array) -> float:
        return self.with_gradient(x)[0]

    def with_gradient(self, x: Array) -> tuple[float, Array]:
        """Σ wᵢ·Huber(rᵢ) and its gradient, (5,)."""
        p, q = np.exp(x[0] - x[1] * self.n), np.exp(x[2] - x[3] * self.d)
        e = math.exp(x[4])
        total = p + q + e
        r = np.log(total) - self.y
        slope = np.clip(r, -self.delta, self.delta)  # the derivative of Huber
        value = float(self.weights @ (slope * (r - slope / 2)))
        pull = self.weights * slope / total
        by_p, by_q = pull * p, pull * q
        gradient = [
            by_p.sum(), -(by_p @ self.n), by_q.sum(), -(by_q @ self.d), pull.sum() * e,
        ]  # fmt: skip
        return value, np.array(gradient)

    def is_minimum(self, x: Array) -> bool:
        """Whether no bound-respecting direction leads down by more than rounding: the gradient is
        below 1e-4 of what all residuals could pull together."""
        gradient = self.with_gradient(x)[1]
        for index, (low, high) in enumerate(self.bounds):
            at_low, at_high = x[index] <= low + 1e-9, x[index] >= high - 1e-9
            if (at_low and gradient[index] > 0) or (at_high and gradient[index] < 0):
                gradient[index] = 0
        return bool(np.abs(gradient).max() < 1e-4 * self.delta * self.weights.sum())

    def polish(self, x: Array) -> tuple[float, Array]:
        """L-BFGS-B from x: (objective, x)."""
        from scipy.optimize import minimize

        scale = 1 / self.delta  # then residuals count as they are, and not their thousandths

        def scaled(point: Array) -> tuple[float, Array]:
            value, gradient = self.with_gradient(point)
            return value * scale, gradient * scale

        options = {"maxiter": 1000, "maxfun": 2000, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-9}
        found = minimize(
            scaled, x, jac=True, method="L-BFGS-B", bounds=self.bounds, options=options
        )
        return float(found.fun) / scale, np.asarray(found.x)

    def starts(self) -> list[Array]:
        """The best E of every (α, β) of a grid, best first. P and Q are those of least squares of
        the relative residuals, of which the objective is a robust form."""
        alpha, beta, share = (
            grid.ravel()
            for grid in np.meshgrid(
                _GRID_EXPONENTS, _GRID_EXPONENTS, _GRID_IRREDUCIBLE, indexing="ij"
            )
        )
        e = np.maximum(share, _LEAST) * self.lowest
        observed = np.exp(self.y)
        weight = self.weights / observed**2
        p, q = np.exp(-np.outer(alpha, self.n)), np.exp(-np.outer(beta, self.d))  # (starts, n)
        rest = observed - e[:, None]
        pp, pq, qq = p * p @ weight, p * q @ weight, q * q @ weight
        py, qy = p * rest @ weight, q * rest @ weight
        determinant = np.maximum(pp * qq - pq * pq, 1e-12 * pp * qq)
        least = 10 * _LEAST * self.lowest
        big_p = np.maximum((qq * py - pq * qy) / determinant, least)
        big_q = np.maximum((pp * qy - pq * py) / determinant, least)
        r = np.log(big_p[:, None] * p + big_q[:, None] * q + e[:, None]) - self.y
        slope = np.clip(r, -self.delta, self.delta)
        values = (slope * (r - slope / 2)) @ self.weights
        x = np.stack([np.log(big_p), alpha, np.log(big_q), beta, np.log(e)], axis=1)
        per_pair = values.reshape(-1, len(_GRID_IRREDUCIBLE))
        best = per_pair.argmin(axis=1) + np.arange(len(per_pair)) * len(_GRID_IRREDUCIBLE)
        return [x[index] for index in best[np.argsort(values[best])]]
