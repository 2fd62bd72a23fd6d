"""Plots of characters: braille lines, block sparklines, bars. Pure functions, no terminal.

A braille character is a cell of 2 × 4 dots, so that a chart of w × h characters has 2w × 4h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # column, then row from the top
_SPANS = [
    [[sum(dots[upper : lower + 1]) for lower in range(4)] for upper in range(4)] for dots in _DOTS
]  # column, first row, last row
_BLOCKS = "▁▂▃▄▅▆▇█"

Point = tuple[float, float]


class History:
    """The points of a long series in bounded memory, each kept one the mean of equally many.

    Args:
        capacity: points kept at most; when it is reached, neighbours are merged.
    """

    def __init__(self, capacity: int = 800) -> None:
        self._capacity = capacity
        self._stride, self._sum, self._held = 1, 0.0, 0
        self._last_x = 0.0
        self.points: list[Point] = []

    def add(self, x: float, y: float) -> None:
        """Values that are not finite are left out."""
        if not math.isfinite(y):
            return
        self._sum, self._held, self._last_x = self._sum + y, self._held + 1, x
        if self._held < self._stride:
            return
        self.points.append((x, self._sum / self._held))
        self._sum, self._held = 0.0, 0
        if len(self.points) >= self._capacity:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            self.points = [(right[0], (left[1] + right[1]) / 2) for left, right in pairs]
            self._stride *= 2


@dataclass(frozen=True)
class Chart:
    """Rows of runs of characters of one layer, from the top, and the values at the edges."""

    rows: list[list[tuple[str, int]]]
    low: float
    high: float


def line_chart(points: Sequence[Point], width: int, height: int, *, area: bool = False) -> Chart:
    """Raw values as bands of dots and a smoothed line over them.

    The vertical range holds all of the smoothed line but its first sixth, in which a loss falls
    so far that all later detail would vanish; what is above is drawn at the edge.

    Args:
        width, height: in characters.
        area: fill what is below the values, and begin the vertical axis at zero.
    """
    columns = _columns(points, 2 * width)
    filled = [number for number, column in enumerate(columns) if column]
    if not filled:
        return Chart([[(" " * width, 0)] for _ in range(height)], 0.0, 0.0)
    smooth = _smoothed(columns)
    low, high = _range(columns, smooth, area)
    rows = 4 * height
    scale = (rows - 1) / (high - low)

    def dot(value: float) -> int:
        return min(rows - 1, max(0, round((high - value) * scale)))

    layers = [[[0] * width for _ in range(height)] for _ in range(2)]

    def draw(layer: int, x: int, top: int, bottom: int) -> None:
        if top > bottom:
            return
        cells, column, masks = layers[layer], x // 2, _SPANS[x % 2]
        first, last = top // 4, bottom // 4
        for row in range(first, last + 1):
            upper = top % 4 if row == first else 0
            cells[row][column] |= masks[upper][bottom % 4 if row == last else 3]

    before: int | None = None
    for x, column in enumerate(columns):
        value = smooth[x]
        if area and value is not None:
            draw(0, x, dot(value), rows - 1)
        elif column:
            draw(0, x, dot(max(column)), dot(min(column)))
        if value is None:
            continue
        here = dot(value)
        above, below = (here, here) if before is None else (min(before, here), max(before, here))
        draw(1, x, above if above == here else above + 1, below if below == here else below - 1)
        before = here
    return Chart([_runs(*lines) for lines in zip(*layers, strict=True)], low, high)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as blocks of eight heights, from their least to their greatest."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    step = (high - low) / (len(_BLOCKS) - 1)
    return "".join(_BLOCKS[round((value - low) / step) if step else 0] for value in shown)


def bar(share: float, width: int) -> tuple[str, str]:
    """A bar's done and open part, half a character exact; together `width` characters."""
    halves = round(min(1.0, max(0.0, share)) * width * 2)
    done = "━" * (halves // 2) + ("╸" if halves % 2 else "")
    return done, "─" * (width - len(done))


def _columns(points: Sequence[Point], count: int) -> list[list[float]]:
    """The values that fall into each column of dots, first to last point."""
    columns: list[list[float]] = [[] for _ in range(count)]
    if not points:
        return columns
    first, last = points[0][0], points[-1][0]
    scale = (count - 1) / (last - first) if last > first else 0.0
    for x, y in points:
        columns[min(count - 1, max(0, round((x - first) * scale)))].append(y)
    return columns


def _smoothed(columns: list[list[float]]) -> list[float | None]:
    """A mean over neighbours, forwards and then backwards so that it lags behind neither way."""
    weight = 1 - math.exp(-1 / max(1.0, len(columns) / 80))
    means = [sum(column) / len(column) if column else None for column in columns]
    for _ in range(2):
        means = _exponential(means, weight)[::-1]
    # Gaps are bridged between the first value and the last.
    return _bridged(means)


def _exponential(values: list[float | None], weight: float) -> list[float | None]:
    """An exponential mean without the pull of its beginning; nothing where there is no value."""
    mean = total = 0.0
    smooth: list[float | None] = []
    for value in values:
        if value is not None:
            mean += weight * (value - mean)
            total += weight * (1 - total)
        smooth.append(None if value is None else mean / total)
    return smooth


def _bridged(values: list[float | None]) -> list[float | None]:
    bridged = list(values)
    before: int | None = None
    for number, value in enumerate(values):
        if value is None:
            continue
        if before is not None:
            start = values[before]
            assert start is not None
            for gap in range(before + 1, number):
                share = (gap - before) / (number - before)
                bridged[gap] = start + share * (value - start)
        before = number
    return bridged


def _range(
    columns: list[list[float]], smooth: list[float | None], floor: bool
) -> tuple[float, float]:
    known = [value for value in smooth if value is not None]
    settled = known[len(known) // 6 :]
    raw = [value for column in columns[len(columns) // 6 :] for value in column] or settled
    low, high = min(*settled, *raw), max(settled)
    room = sorted(raw)[int(0.98 * (len(raw) - 1))]  # the odd spike does not set the scale
    high = max(high, room)
    if floor:
        low = 0.0
    spread = high - low or abs(high) * 0.1 or 1.0
    return (low if floor else low - 0.04 * spread), high + 0.04 * spread


def _runs(raw: list[int], smooth: list[int]) -> list[tuple[str, int]]:
    """A row's cells, neighbours of one layer joined: few pieces are quick to print."""
    runs: list[tuple[str, int]] = []
    for below, above in zip(raw, smooth, strict=True):
        dots, layer = (above, 2) if above else (below, 1) if below else (0, 0)
        character = chr(0x2800 + dots) if dots else " "
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0] + character, layer)
        else:
            runs.append((character, layer))
    return runs
