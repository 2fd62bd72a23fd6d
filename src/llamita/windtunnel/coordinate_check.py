"""Does anything grow with width? muP's coordinate check, over what `coordinates.py` measured.

No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from llamita.errors import UserError
from llamita.planning.fitting import require_scipy
from llamita.windtunnel.findings import Coordinate, CoordinateCheck, Interval
from llamita.windtunnel.parabola import student_t

Measured: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]
"""What `measure_coordinates` returns, read back from JSON or not."""
Kind = Literal["activation", "update"]

TOLERANCE = 0.2
"""The largest exponent that still counts as no growth.

It would be 0 for infinitely wide models. There muP has p ≤ 0, and one learning rate of Adam for all
matrices p = 1 in a change that passes through one of them, more through several (Yang et al., arXiv
2203.03466). Of 64 to 512 elements what is wrong shows less, because the embedding, which every rule
moves alike, moves all that lies behind it. Measured at a tenth of the peak rate after 10 steps (2
blocks, text of Python's manual, 2 or 3 seeds of 4 widths):

- `minicpm` at 0.01: updates in blocks -0.10 to -0.07, no upper bound above 0.02; at widths of 256
  to 1024, 4 blocks, -0.01 to 0.00, no upper bound above 0.04.
- the same with one learning rate: 0.29 to 0.44, the surest after 1 step 0.56 (0.51 to 0.61).
- `llama` at 0.003: residual stream 1.83 (1.68 to 1.98), logits 1.06 (0.93 to 1.18).
- `tinyllama` at 0.003: residual stream 0.91 (0.78 to 1.03), logits 0.65 (0.55 to 0.75).

One seed of four widths passed, too, each of nine times; of three widths it takes two seeds.
"""
_LEVEL = 0.95
_LEAST_WIDTHS = 3
"""Two lie on any line."""


def check_coordinates(
    parametrization: str,
    measured: Mapping[int, Sequence[Measured]],
    tolerance: float = TOLERANCE,
) -> CoordinateCheck:
    """Fits rms ∝ width^p to everything that was measured, and judges what must not grow.

    Judged are the updates after every step but the noughth, and the activations after the last one;
    an activation of step 0 is what initialisation makes of it. What shrinks is no failure: under
    MiniCPM's parametrisation logits do as width^-0.5 at first, because a product with an untrained
    head is a sum of independent terms, divided by width.

    - fails: some lower bound lies above `tolerance`.
    - passes: all upper bounds lie at or below it.
    - else it cannot be said, `passed` is False, and the verdict asks for more widths or seeds.

    Args:
        measured: width → one measurement a seed, all of the same steps.
        tolerance: see `TOLERANCE`.

    Raises:
        UserError: fewer than three widths, measurements of different steps or depths, a number
            that is not finite or not positive; scipy is not installed.
    """
    require_scipy()
    kept = {width: measured[width] for width in sorted(measured) if measured[width]}
    if len(kept) < _LEAST_WIDTHS:
        missing = _LEAST_WIDTHS - len(kept)
        raise UserError(
            f"coordinates of {parametrization}: {_LEAST_WIDTHS} widths at the least tell growth "
            f"from noise, and {len(kept)} {'is' if len(kept) == 1 else 'are'} there "
            f"({', '.join(map(str, kept)) or 'none'}); measure {missing} more"
        )
    coordinates = [_fit(*each) for each in _series(parametrization, kept)]
    judged = _judged(coordinates)
    growing = sorted(
        (each for each in judged if each.interval[0] > tolerance),
        key=lambda each: -each.interval[0],
    )
    open_ones = [each for each in judged if each.interval[1] > tolerance]
    return CoordinateCheck(
        parametrization=parametrization,
        widths=tuple(kept),
        coordinates=tuple(coordinates),
        passed=not open_ones,
        growing=tuple(f"{_name(each)} as {_power(each)}" for each in growing),
        verdict=_verdict(judged, growing, open_ones),
        tolerance=tolerance,
    )


def _judged(coordinates: Sequence[Coordinate]) -> list[Coordinate]:
    last = max(each.step for each in coordinates)
    return [each for each in coordinates if each.kind == "update" or each.step == last]


# -- what was measured ----------------------------------------------------------------------------

_Series: TypeAlias = tuple[str, Kind, int, dict[int, tuple[float, ...]]]


def _series(parametrization: str, measured: Mapping[int, Sequence[Measured]]) -> Iterator[_Series]:
    """What, kind, step, and width → one value a seed, in the order in which they were measured.

    Raises:
        UserError: measurements that cannot be compared, a number that has no logarithm.
    """
    first = next(iter(measured.values()))[0]
    _refuse_unlike(measured, first)
    kinds: tuple[Kind, ...] = ("activation", "update")
    for step in sorted(first, key=int):
        for what, kind in ((what, kind) for kind in kinds for what in first[step]):
            if kind not in first[step][what]:
                continue  # before the first step there is no update
            rms = {
                width: tuple(float(each[step][what][kind]) for each in seeds)
                for width, seeds in measured.items()
            }
            for width, values in rms.items():
                for number, value in enumerate(values, start=1):
                    if not (math.isfinite(value) and value > 0):
                        raise UserError(
                            f"coordinates of {parametrization}: at width {width} {what} ({kind}) "
                            f"after {_steps(int(step))} is {value:g} (measurement {number} of "
                            f"{len(values)}); {_remedy(value)}"
                        )
            yield what, kind, int(step), rms


def _remedy(value: float) -> str:
    if value == 0:
        return "nothing moved there: raise the learning rate"
    return "the model was lost: lower the learning rate, or leave that width out"


def _refuse_unlike(measured: Mapping[int, Sequence[Measured]], first: Measured) -> None:
    for width, seeds in measured.items():
        for each in seeds:
            if each.keys() != first.keys():
                raise UserError(
                    f"coordinates at width {width} are of steps {', '.join(each)} and others of "
                    f"{', '.join(first)}; measure all after the same steps"
                )
            for step in first:
                if each[step].keys() != first[step].keys():
                    names = ", ".join(sorted(each[step].keys() ^ first[step].keys()))
                    raise UserError(
                        f"at width {width} not the same was measured as at others ({names}): their "
                        "depths differ; vary the width alone"
                    )


# -- exponents ------------------------------------------------------------------------------------


def _fit(what: str, kind: Kind, step: int, rms: dict[int, tuple[float, ...]]) -> Coordinate:
    exponent, interval = fit_power(rms)
    return Coordinate(what, kind, step, rms, exponent, interval)


def fit_power(rms: Mapping[int, Sequence[float]]) -> tuple[float, Interval]:
    """p of rms ∝ width^p and its 95% interval: ln over ln by least squares, Student's t.

    What a curve departs from a line counts as noise. Where it departs much, several seeds that
    depart alike make the interval narrower than it should be; more widths do not.
    """
    pairs = [(math.log(width), math.log(v)) for width, values in rms.items() for v in values]
    x, y = np.array(pairs).T
    away = x - x.mean()
    spread = float(away @ away)
    slope = float(away @ y) / spread
    residuals = y - y.mean() - slope * away
    freedom = len(y) - 2
    error = math.sqrt(float(residuals @ residuals) / freedom / spread)
    half = student_t(freedom, _LEVEL) * error
    return slope, (slope - half, slope + half)


# -- in words -------------------------------------------------------------------------------------


def _verdict(
    judged: Sequence[Coordinate],
    growing: Sequence[Coordinate],
    open_ones: Sequence[Coordinate],
) -> str:
    if growing:
        others = len(growing) - 1
        verb = "does" if others == 1 else "do"
        more = f"; of {len(judged)} things that should not, {others} more {verb}" if others else ""
        return f"fails: {_name(growing[0])} grows as {_power(growing[0], interval=True)}{more}"
    if open_ones:
        worst = max(open_ones, key=lambda each: each.exponent)
        return (
            f"whether anything grows cannot be said: {_name(worst)} goes as "
            f"{_power(worst, interval=True)}; measure more widths or seeds"
        )
    largest = max(judged, key=lambda each: each.exponent)
    bound = max(each.interval[1] for each in judged)
    return (
        f"passes: nothing grows with width (largest exponent {_number(largest.exponent)}, of "
        f"{_name(largest)} after {_steps(largest.step)}; none above {_number(bound)} at 95%)"
    )


def _name(each: Coordinate) -> str:
    return each.what if each.kind == "activation" else f"{each.what} (update)"


def _power(each: Coordinate, *, interval: bool = False) -> str:
    low, high = each.interval
    shown = f" ({_number(low)} to {_number(high)})" if interval else ""
    return f"width^{_number(each.exponent)}{shown} after {_steps(each.step)}"


def _number(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
