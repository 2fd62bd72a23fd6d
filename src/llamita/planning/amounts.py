"""Amounts as people write them: `7B`, `5000usd`, `2000gpu-hours`, `14d`, `10B/day`.

A unit is part of the value, or of the flag's name; a number whose unit is anybody's guess is
refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llamita.errors import UserError

DAY = 86400.0
YEAR = 365.25 * DAY
_SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "": 1.0}
_UNITS = {
    "flops": ("flops", 1.0),
    "flop": ("flops", 1.0),
    "usd": ("usd", 1.0),
    "$": ("usd", 1.0),
    "gpu-hours": ("device-hours", 1.0),
    "gpu-hour": ("device-hours", 1.0),
    "device-hours": ("device-hours", 1.0),
    "device-hour": ("device-hours", 1.0),
    "s": ("seconds", 1.0),
    "min": ("seconds", 60.0),
    "h": ("seconds", 3600.0),
    "d": ("seconds", DAY),
    "w": ("seconds", 7 * DAY),
    "y": ("seconds", YEAR),
    "tokens": ("tokens", 1.0),
    "words": ("words", 1.0),
    "requests": ("requests", 1.0),
    "": ("", 1.0),
}
_PERIODS = {
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": DAY,
    "day": DAY,
    "w": 7 * DAY,
    "week": 7 * DAY,
    "month": YEAR / 12,
    "y": YEAR,
    "year": YEAR,
}
_AMOUNT = re.compile(
    r"\$?(?P<number>[0-9][0-9_,]*\.?[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s*"
    r"(?P<suffix>[kMBGT]?)\s*(?P<unit>[a-zA-Z$]+(?:-[a-zA-Z]+)?)?(?:/(?P<period>[a-zA-Z]+))?"
)


@dataclass(frozen=True)
class Amount:
    """A value in its base unit: flops, usd, device-hours, seconds, tokens, words, requests or "".

    per_second: whether it is a rate.
    """

    value: float
    unit: str
    per_second: bool = False


def parse_amount(
    text: str | float, flag: str, units: tuple[str, ...], example: str, *, rate: bool = False
) -> Amount:
    """Read an amount in one of `units` ("" allows a bare number).

    Args:
        flag: what it was given to, for errors.
        example: how it is written, for errors.
        rate: whether it may be an amount per time.

    Raises:
        UserError: not a positive number, or not in such a unit.
    """
    written = str(text).strip()
    found = _AMOUNT.fullmatch(written)
    wrong = f"{flag} {written}: "
    if found is None:
        if written.startswith("-"):
            raise UserError(f"{wrong}it must be above 0; write {example}")
        raise UserError(f"{wrong}this is no amount; write {example}")
    name = (found["unit"] or "").lower() or ("$" if written.startswith("$") else "")
    if name not in _UNITS or _UNITS[name][0] not in units:
        what = f"{found['unit']!r} is no unit here" if name else "a number without a unit"
        raise UserError(f"{wrong}{what}; write {example}")
    unit, scale = _UNITS[name]
    value = float(re.sub("[_,]", "", found["number"])) * _SUFFIXES[found["suffix"]] * scale
    if not 0 < value < math.inf:
        raise UserError(f"{wrong}it must be above 0 and finite; write {example}")
    period = found["period"]
    if period is None:
        return Amount(value, unit)
    if not rate:
        raise UserError(f"{wrong}an amount and no rate is wanted; write {example}")
    if period.lower() not in _PERIODS:
        raise UserError(f"{wrong}{period!r} is no period of time; write /s, /h, /day or /year")
    return Amount(value / _PERIODS[period.lower()], unit, per_second=True)


def parse_count(text: str | float, flag: str, example: str, unit: str = "") -> float:
    """A plain count such as `7B`; `unit` may be written behind it."""
    return parse_amount(text, flag, ("", unit), example).value


def parse_seconds(text: str | float, flag: str, example: str = "14d, 36h or 2y") -> float:
    return parse_amount(text, flag, ("seconds",), example).value


def parse_share(value: float, flag: str) -> float:
    """A share such as a utilisation: above 0 and up to 1.

    Raises:
        UserError: it is not.
    """
    if not 0 < value <= 1:
        raise UserError(f"{flag} {value:g}: a share lies above 0 and up to 1, as in 0.4 for 40%")
    return value
