"""Numbers as people read them, and as events hold them."""

from __future__ import annotations

import math
from typing import Any


def metric(value: float, unit: str = "") -> str:
    """`1.10 G`, `512`, `2.4 k`: three figures and a metric prefix."""
    for factor, prefix in (
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def tokens(count: float) -> str:
    """`3.00T`, `300B`, `52.4M`, `820k` tokens, as the field writes them."""
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= factor * 0.9995:
            return f"{count / factor:.3g}{suffix}"
    return f"{count:.0f}"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count < 1e10 else f"{count / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """`4m05s`, `3h20m`, `12.5 days`, `4.2 years`."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"
    if seconds < 172800:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02d}m"
    if seconds < 1000 * 86400:
        return f"{seconds / 86400:.1f} days"
    return f"{seconds / (365.25 * 86400):,.3g} years"


def number(value: Any) -> float:
    """A field of an event as a float; NaN for what is absent, or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
