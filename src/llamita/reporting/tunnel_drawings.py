"""A wind tunnel's figures: loss against what was searched, and how its optimum goes with width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llamita.planning.maps import spaced
from llamita.reporting.plan_canvas import (
    PlanFigure,
    bars,
    legend_below,
    log_axis,
    look,
    numbered_axis,
)
from llamita.reporting.tunnel_words import (
    BITS,
    axis_words,
    optimum_text,
    power_text,
    slug,
    value_text,
)
from llamita.windtunnel.findings import Findings, Interval, Optimum, SizeOptimum, Transfer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 81
_TOP_STRIP = 0.13
"""Of a panel's height, kept for runs that diverged and for losses beyond the scale."""
_ROOM_ABOVE = 0.75
"""Of the range of losses that parabolas span: what else is drawn to scale. A run shortly before
divergence would flatten every curve."""


# -- loss against what is searched -----------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """What the panels of one axis share. cap: the highest loss that is drawn to scale."""

    sizes: tuple[str, ...]
    x: Interval
    y: Interval
    cap: float


def transfer_figures(findings: Findings) -> list[PlanFigure]:
    """For each axis that was searched: loss against it (figure 3 of arXiv 2404.06395), and its
    optimum against width where widths differ."""
    figures = []
    for number, axis in enumerate(dict.fromkeys(each.axis for each in findings.transfers)):
        found = [each for each in findings.transfers if each.axis == axis and each.optima]
        if not any(_losses(one.optimum) for each in found for one in each.optima):
            continue
        key = f"transfer-{number}-{slug(axis)}"
        figures.append(_transfer(key, axis, found))
        widths = {one.hidden_size for each in found for one in each.optima}
        if len(widths) > 1:
            figures.append(_by_width(f"optimum-{number}-{slug(axis)}", axis, found))
    return figures


def _transfer(key: str, axis: str, found: Sequence[Transfer]) -> PlanFigure:
    frame = _frame(found)
    said = tuple(_said(each) for each in found)
    optima = [one.optimum for each in found for one in each.optima]
    caption = "Dots: a run each. Curves: parabolas through the best of them; marks: where those "
    caption += "are lowest, with 95% intervals."
    if any(each.edge for each in optima):
        caption += " Hollow: the best tried is the first or the last, which is no optimum."
    if any(not each.is_found and each.edge is None for each in optima):
        caption += " Hollow, not determined: no parabola has its minimum among the values."
    if any(_lost(each) for each in optima):
        caption += " Crosses: diverged."
    if any(y > frame.cap for each in optima for _, y in _losses(each)):
        caption += " Triangles: losses beyond the scale."
    return PlanFigure(
        key,
        f"Loss against {axis_words(axis)}",
        caption,
        " ".join(said),
        tuple(partial(_draw_transfer, transfer=each, frame=frame) for each in found),
        tuple(each.parametrization for each in found) if len(found) > 1 else (),
        panel_descriptions=said,
    )


def _said(transfer: Transfer) -> str:
    each = "; ".join(
        f"{one.size}, width {one.hidden_size:,}: {optimum_text(one.optimum)}, "
        f"loss {one.optimum.loss:.4f}"
        for one in transfer.optima
    )
    return f"{transfer.parametrization}: {each}."


def _losses(optimum: Optimum) -> list[tuple[float, float]]:
    return [
        (each.x, each.loss)
        for each in optimum.trials
        if each.loss is not None and math.isfinite(each.loss) and each.x > 0
    ]


def _lost(optimum: Optimum) -> list[float]:
    """Where runs diverged, each value once."""
    lost = {each.x for each in optimum.trials if each.loss is None} | set(optimum.diverged)
    return sorted(x for x in lost if x > 0)


def _frame(found: Sequence[Transfer]) -> _Frame:
    optima = [one.optimum for each in found for one in each.optima]
    losses = [y for each in optima for _, y in _losses(each)]
    tried = [x for each in optima for x in (*(x for x, _ in _losses(each)), *_lost(each))]
    judged = [
        y
        for each in optima
        for x, y in _losses(each)
        if each.is_found and each.window[0] <= x <= each.window[1]
    ]
    judged = judged or losses
    low, high = min(losses), max(judged)
    cap = min(max(losses), high + _ROOM_ABOVE * max(high - low, 0.01 * low))
    room = max(cap - low, 0.005 * low)
    top = low + room / (1 - _TOP_STRIP)
    sizes = tuple(dict.fromkeys(one.size for each in found for one in each.optima))
    return _Frame(sizes, (min(tried) / 1.3, max(tried) * 1.3), (low - 0.07 * room, top), cap)


def _draw_transfer(panel: Axes, *, transfer: Transfer, frame: _Frame) -> None:
    for each in transfer.optima:
        _draw_size(panel, each, frame)
    log_axis(panel, "x", value_text, *frame.x)
    panel.set_ylim(*frame.y)
    panel.set_xlabel(axis_words(transfer.axis))
    panel.set_ylabel(BITS)
    legend_below(panel, 2)


def _draw_size(panel: Axes, each: SizeOptimum, frame: _Frame) -> None:
    number, optimum = frame.sizes.index(each.size), each.optimum
    colour, marker, dash = look(number)
    seen = _losses(optimum)
    shown = [(x, y) for x, y in seen if y <= frame.cap]
    dots = [x for x, _ in shown], [y for _, y in shown]
    panel.plot(*dots, marker, color=colour, markersize=3.4, alpha=0.8, markeredgewidth=0)
    lost = _lost(optimum)
    xs, ys = means([(x, y) for x, y in seen if x not in lost])
    panel.plot(xs, ys, color=colour, linewidth=0.7, alpha=0.6)
    beyond = [x for x, y in seen if y > frame.cap]
    top = frame.cap + 0.2 * (frame.y[1] - frame.cap)
    panel.plot(
        beyond, [top] * len(beyond), "^", color=colour, markersize=4.5, markerfacecolor="none"
    )
    # A row for each size, so that none hides another.
    row = 0.985 - 0.028 * (number % 4)
    for x in lost:
        panel.plot(
            [x], [row], "x", color=colour, markersize=4.5, transform=panel.get_xaxis_transform()
        )
    if optimum.fitted is not None:
        grid = spaced(*optimum.window, _POINTS)
        curve = [parabola(optimum, x) for x in grid]
        panel.plot(grid, curve, color=colour, linestyle=dash, linewidth=1.8)
    mark_optimum(panel, optimum, optimum.loss, number, f"{each.size}: {optimum_text(optimum)}")


def mark_optimum(panel: Axes, optimum: Optimum, y: float, number: int, label: str = "") -> None:
    """A large mark with its horizontal interval; hollow, and saying why, where there is none."""
    colour, marker, _ = look(number)
    if optimum.interval is not None and optimum.is_found:
        bars(panel, optimum.value, y, optimum.interval, colour, across=True)
    hollow = not optimum.is_found
    panel.plot(
        [optimum.value],
        [y],
        marker,
        color=colour,
        markersize=8,
        markerfacecolor="none" if hollow else colour,
        markeredgewidth=1.5 if hollow else 0.8,
        zorder=5,
        label=label or None,
    )
    if hollow:
        panel.annotate(
            "not determined" if optimum.edge is None else "at the edge",
            (optimum.value, y),
            xytext=(8 if optimum.edge == "low" else -8, -3),
            textcoords="offset points",
            ha="left" if optimum.edge == "low" else "right",
            va="top",
            fontsize=7.5,
            color=colour,
        )


def parabola(optimum: Optimum, x: float) -> float:
    assert optimum.fitted is not None
    c0, c1, c2 = optimum.fitted
    return c0 + c1 * math.log(x) + c2 * math.log(x) ** 2


def means(seen: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Of the seeds at each value."""
    at: dict[float, list[float]] = {}
    for x, y in seen:
        at.setdefault(x, []).append(y)
    xs = sorted(at)
    return xs, [sum(at[x]) / len(at[x]) for x in xs]


# -- the optimum against width ---------------------------------------------------------------------


def _by_width(key: str, axis: str, found: Sequence[Transfer]) -> PlanFigure:
    said = [
        f"{each.parametrization}: "
        + (
            f"width{power_text(each.exponent, each.exponent_interval)}"
            if each.exponent is not None
            else "too few optima for an exponent"
        )
        for each in found
    ]
    caption = f"The best {axis_words(axis)} of each width, with 95% intervals; lines: a power of "
    caption += "the width. A level line moves to any size as it is."
    if not all(one.optimum.is_found for each in found for one in each.optima):
        caption += " Hollow: only the best tried, left out of the line."
    return PlanFigure(
        key,
        f"Best {axis_words(axis)} against width",
        caption,
        "; ".join(said) + ".",
        (partial(_draw_by_width, axis=axis, found=found),),
    )


def _draw_by_width(panel: Axes, *, axis: str, found: Sequence[Transfer]) -> None:
    widths = sorted({one.hidden_size for each in found for one in each.optima})
    ends: list[float] = []
    for number, transfer in enumerate(found):
        colour, marker, dash = look(number)
        aside = 1 + 0.012 * (number - (len(found) - 1) / 2)
        for one in transfer.optima:
            optimum, x = one.optimum, one.hidden_size * aside
            ends.append(optimum.value)
            if optimum.interval is not None and optimum.is_found:
                bars(panel, x, optimum.value, optimum.interval, colour)
                ends += optimum.interval
            fill = colour if optimum.is_found else "none"
            panel.plot(
                [x], [optimum.value], marker, color=colour, markersize=6.5, markerfacecolor=fill
            )
        name = transfer.parametrization
        if transfer.exponent is not None:
            name += f": width{power_text(transfer.exponent, None)}"
        xs, ys = _power_line(transfer, widths)
        panel.plot(xs, ys, marker, color=colour, linestyle=dash, markersize=0, label=name)
    log_axis(panel, "y", value_text, min(ends) / 1.3, max(ends) * 1.3)
    numbered_axis(panel, "x", widths)
    panel.set_xlabel("width")
    panel.set_ylabel(axis_words(axis))
    legend_below(panel, 2)


def _power_line(transfer: Transfer, widths: Sequence[int]) -> tuple[list[int], list[float]]:
    """Through the middle of the optima inside their grids; nothing without an exponent."""
    inside = [one for one in transfer.optima if one.optimum.is_found]
    if transfer.exponent is None or not inside:
        return [], []
    x0 = sum(math.log(one.hidden_size) for one in inside) / len(inside)
    y0 = sum(math.log(one.optimum.value) for one in inside) / len(inside)
    line = [math.exp(y0 + transfer.exponent * (math.log(width) - x0)) for width in widths]
    return list(widths), line
