"""A wind tunnel's values in words, for its page and its figures alike."""

from __future__ import annotations

import re

from llamita.planning.quantities import tokens as short
from llamita.windtunnel.findings import Interval, Optimum

BITS = "loss, bits per byte"


def axis_words(axis: str) -> str:
    """`optimizer.learning_rate` → `learning rate`."""
    return axis.rpartition(".")[2].replace("_", " ")


def value_text(value: float) -> str:
    """Three figures: `0.0103`, `65.5k`."""
    return short(value) if value >= 999.5 else f"{value:.3g}"


def interval_text(interval: Interval | None, unknown: str = "not determined") -> str:
    if interval is None:
        return unknown
    return f"{value_text(interval[0])} to {value_text(interval[1])}"


def optimum_text(optimum: Optimum) -> str:
    """`0.0103`, or that there is none: `at the edge, 0.03 or higher`, `not determined`."""
    value = value_text(optimum.value)
    if optimum.is_found:
        return value
    if optimum.edge is None:
        return f"not determined, {value} the best tried"
    return f"at the edge, {value} or {'lower' if optimum.edge == 'low' else 'higher'}"


def power_text(exponent: float, interval: Interval | None) -> str:
    """`^−0.98 (−1.05 to −0.91)`."""
    found = f"^{signed(exponent)}"
    if interval is not None:
        found += f" ({signed(interval[0])} to {signed(interval[1])})"
    return found


def signed(value: float, digits: int = 2, *, plus: bool = False) -> str:
    """With a true minus, and no sign before nought.

    Args:
        plus: of a difference, which says that it is one.
    """
    found = f"{value:+.{digits}f}"
    if float(found) == 0 or (value > 0 and not plus):
        found = found[1:]
    return found.replace("-", "−")


def share_text(share: float) -> str:
    """`2.5%`."""
    return f"{100 * share:.3g}%"


def slug(name: str) -> str:
    """What may stand in a file's name and in an id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"
