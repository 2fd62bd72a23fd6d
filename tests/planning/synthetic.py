"""Runs drawn from known laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from llamita.planning.laws import Law, find_law
from llamita.planning.observations import Observation, Observations


def truth(name: str = "epoch") -> Law:
    law = find_law(name)
    assert isinstance(law, Law)
    return law


def grid(sizes: int = 8, lengths: int = 5, low: float = 1e7, high: float = 1e9) -> list[Any]:
    """(N, D) of `sizes` models, each after 5 to 160 tokens per parameter; a size is a group."""
    return [
        (float(n), float(n * ratio))
        for n in np.geomspace(low, high, sizes)
        for ratio in np.geomspace(5, 160, lengths)
    ]


def drawn(
    law: Law,
    points: list[Any],
    noise: Callable[[int, float], float] = lambda index, n: 0.0,
    grouped: bool = False,
) -> Observations:
    """Losses of a law times e^noise."""
    rows = [
        Observation(n, d, law.at(n, d) * math.exp(noise(index, n)), f"{n:g}" if grouped else "")
        for index, (n, d) in enumerate(points)
    ]
    return Observations(tuple(rows), law.loss, law.counts)


def gaussian(seed: int, sigma: float = 0.003, shared: float = 0.0) -> Callable[[int, float], float]:
    """Log-normal noise of a run, and of a size, which all runs of it share."""
    generator = np.random.default_rng(seed)
    sizes: dict[float, float] = {}

    def noise(index: int, n: float) -> float:
        if n not in sizes:
            sizes[n] = shared * generator.standard_normal()
        return float(sizes[n] + sigma * generator.standard_normal())

    return noise


def in_its_units(law: Law, like: Law) -> dict[str, float]:
    """A law's constants for N and D in another law's units."""
    return {
        "E": law.E,
        "A": law.A * (law.parameters_unit / like.parameters_unit) ** law.alpha,
        "alpha": law.alpha,
        "B": law.B * (law.tokens_unit / like.tokens_unit) ** law.beta,
        "beta": law.beta,
    }
