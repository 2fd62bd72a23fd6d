"""Studies whose truth is known: losses computed from it, and noise added."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from llamita.windtunnel.findings import RunResult, Trial

Array = NDArray[np.float64]
Curve = Callable[[float], float]
AXIS = "optimizer.learning_rate"


def run(key: str, **changed: Any) -> RunResult:
    """A run that is done, of a model and a length that do not matter."""
    values = {
        "experiment": "planted",
        "status": "done",
        "size": "9m",
        "hidden_size": 320,
        "layers": 8,
        "parameters": 9_000_000,
        "total_parameters": 10_000_000,
        "parametrization": "minicpm",
        "seed": 0,
        "tokens": 100_000_000,
        "batch_tokens": 65_536,
        "values": {},
        "loss": 1.2,
    }
    return RunResult(key=key, **(values | changed))


def at_least(rate: float, count: int) -> float:
    """What a share of `count` studies falls below once in a thousand, if the rate is this."""
    return float(binom.ppf(0.001, count, rate) / count)


def at_most(rate: float, count: int) -> float:
    return float(binom.ppf(0.999, count, rate) / count)


# -- curves whose minimum, nought, is at v = 0, with a curvature of about 1 ------------------------


def parabola(v: float) -> float:
    return v * v


def cosh(v: float) -> float:
    return 2 * (math.cosh(v) - 1)


def lopsided(ratio: float) -> Curve:
    """Rises e-fold on one side over 1/a, on the other over 1/b, a/b = ratio and a + b = 2:
    e^(a·v)/a + e^(−b·v)/b has no slope at v = 0."""
    b = 2 / (1 + ratio)
    a = 2 - b

    def curve(v: float) -> float:
        return math.exp(a * v) / a + math.exp(-b * v) / b - 1 / a - 1 / b

    return curve


def grid(middle: float = 0.01, count: int = 7, factor: float = 2.0) -> list[float]:
    return [middle * factor ** (index - count // 2) for index in range(count)]


def planted_trials(
    generator: np.random.Generator,
    optimum: float,
    curve: Curve = parabola,
    *,
    seeds: int = 2,
    noise: float = 0.002,
    rise: float = 0.02,
    values: Sequence[float] | None = None,
) -> list[Trial]:
    """Losses 3 + rise·curve(ln x − ln optimum), an offset a seed ten times its noise, and noise."""
    offsets = 10 * noise * generator.standard_normal(seeds)
    return [
        Trial(
            x,
            3
            + rise * curve(math.log(x / optimum))
            + float(offsets[seed] + noise * generator.standard_normal()),
            seed,
        )
        for seed in range(seeds)
        for x in (values or grid())
    ]
