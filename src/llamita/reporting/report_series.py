"""Columns of numbers behind a report's curves: elapsed time, smoothing, thinning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.planning.quantities import number
from llamita.reporting.events import Event

MOST_ROWS = 4000
"""Rows of a table that a report shows whole. At 1,000 pixels of width a curve cannot show more."""
_SMOOTHED_SHARE = 0.02

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Columns of equal length; what is not finite is as in events.jsonl, the string "nan" or so.

    `total` is how many rows there were before thinning.
    """

    columns: Mapping[str, list[Any]]
    total: int

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    @property
    def thinned(self) -> bool:
        return len(self) < self.total


def recorded(value: Any) -> Any:
    """A field as events.jsonl has it, where what is not finite is a string."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def finite(values: Sequence[Any]) -> Floats:
    """A column as floats, with NaN for all that is not finite."""
    found = np.array([number(value) for value in values], dtype=np.float64)
    found[~np.isfinite(found)] = np.nan
    return found


def elapsed_seconds(events: Sequence[Event]) -> list[float]:
    """For each event, seconds since the first one, without the pauses between two processes.

    Steps are written in groups, when a line is due. Those of a group are spread evenly over the
    time since the event before it.
    """
    elapsed, clock, before = [], 0.0, math.nan
    for event in events:
        now = number(event.get("time"))
        if math.isfinite(now):
            if math.isfinite(before) and event["event"] != "resume":
                clock += max(0.0, now - before)
            before = now
        elapsed.append(clock)
    first = None
    for index, event in enumerate([*events, {"event": ""}]):
        if event["event"] == "step":
            first = index if first is None else first
        elif first is not None:
            begin, end = elapsed[first - 1] if first else 0.0, elapsed[index - 1]
            count = index - first
            for place in range(count):
                elapsed[first + place] = begin + (end - begin) * (place + 1) / count
            first = None
    return elapsed


def smoothed(values: Floats, left_out: npt.NDArray[np.bool_]) -> Floats:
    """Centred mean over about 2% of the steps, NaN where there is nothing to average.

    The window has 2·h + 1 steps, h = max(2, 1% of all). Towards the beginning, where a loss falls
    fastest, it shrinks on both sides; at the end, where it does not, it is cut off. Steps that are
    `left_out` or not finite do not count.
    """
    count = len(values)
    half = max(2, round(count * _SMOOTHED_SHARE / 2))
    counted = np.isfinite(values) & ~left_out
    sums = np.concatenate([[0.0], np.cumsum(np.where(counted, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(counted)])
    place = np.arange(count)
    reach = np.minimum(half, place)
    low, high = place - reach, np.minimum(count, place + reach + 1)
    number_counted = counts[high] - counts[low]
    mean = (sums[high] - sums[low]) / np.maximum(number_counted, 1)
    return np.where(number_counted > 0, mean, np.nan)


def rows_to_keep(columns: Sequence[Floats], always: Sequence[int], most: int) -> list[int]:
    """Rows that stand for all: everything up to `most`, else each bucket's extremes.

    Rows are divided into equal buckets, and of each the least and the greatest of every column
    stay, with the first row, the last, and those of `always`. So no peak or trough disappears,
    and each row that stays is a real one.
    """
    count = len(columns[0]) if columns else 0
    if count <= most:
        return list(range(count))
    kept = {0, count - 1, *always}
    buckets = max(1, most // (2 * len(columns)))
    edges = np.linspace(0, count, buckets + 1).astype(int)
    for low, high in pairwise(edges.tolist()):
        for column in columns:
            part = column[low:high]
            if np.isfinite(part).any():
                kept.update((low + int(np.nanargmin(part)), low + int(np.nanargmax(part))))
    return sorted(kept)


def thin(
    columns: dict[str, list[Any]], extremes_of: Sequence[str], always: Sequence[int] = ()
) -> Table:
    """A table of at most about MOST_ROWS rows that keeps the extremes of some columns."""
    total = len(next(iter(columns.values()), []))
    if total <= MOST_ROWS:
        return Table(columns, total)
    rows = rows_to_keep([finite(columns[name]) for name in extremes_of], always, MOST_ROWS)
    kept = {name: [column[row] for row in rows] for name, column in columns.items()}
    return Table(kept, total)
