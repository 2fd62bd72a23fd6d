"""Figures drawn once as SVG, for readers without scripts and for paper; report.js redraws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from llamita.planning.quantities import tokens as short
from llamita.reporting.report_figures import Curve, Figure, table_of
from llamita.reporting.report_records import RunRecord
from llamita.reporting.report_series import Floats, finite, rows_to_keep

LEFT, RIGHT, TOP, BOTTOM = 58, 26, 22, 30
_POINTS = 500
_HEADROOM = 0.06


def draw(figure: Figure, runs: Sequence[RunRecord], width: int, height: int) -> str:
    """What stands inside the figure's <svg>, over steps, with a linear y axis."""
    x_range = _x_range(figure, runs)
    y_range = _y_range(figure, runs)
    frame = _Frame(width, height, x_range, y_range)
    parts = [
        f"<title>{escape(figure.title)}</title>",
        f"<desc>{escape(describe(figure, runs))}</desc>",
        *_stages(frame, runs),
        *_axes(frame, figure.unit),
        *_marks(frame, runs),
    ]
    for level in figure.levels:
        if y_range[0] <= level.value <= y_range[1]:
            y = frame.y(level.value)
            parts.append(
                f'<path class="level" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>'
                f'<text class="tick" x="{width - RIGHT - 4}" y="{y - 4:.1f}" text-anchor="end">'
                f"{escape(level.label)}</text>"
            )
    for curve in figure.curves:
        parts += _curve(frame, runs, curve)
    return "".join(parts)


def describe(figure: Figure, runs: Sequence[RunRecord]) -> str:
    """The figure in a sentence a curve: where it begins and ends, and its extremes."""
    sentences = [figure.explanation]
    for curve in figure.curves:
        table = table_of(runs[curve.run], curve.table)
        values = finite(table.columns[curve.column])
        known = np.flatnonzero(np.isfinite(values))
        steps = table.columns["step"]
        low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
        write = [written(float(values[i]), figure.unit) for i in (known[0], known[-1], low, high)]
        sentences.append(
            f"{curve.label}: {write[0]} at step {steps[known[0]]:,}, {write[1]} at step "
            f"{steps[known[-1]]:,}; least {write[2]} (step {steps[low]:,}), greatest {write[3]} "
            f"(step {steps[high]:,})."
        )
    return " ".join(sentences)


def written(value: float, unit: str) -> str:
    """A value as people read it; `unit` as in Figure."""
    if not math.isfinite(value):
        return "–"
    if unit == "bytes":
        return f"{value / 1e9:.4g} GB"
    if unit == "share":
        return f"{100 * value:.3g}%"
    if unit == "rate":
        return f"{short(value)}/s" if value >= 1e4 else f"{value:,.0f}/s"
    return f"{value:.4g}"


class _Frame:
    """From values to coordinates."""

    def __init__(
        self,
        width: int,
        height: int,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
    ) -> None:
        self.width, self.height, self.x_range, self.y_range = width, height, x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        share = (value - low) / (high - low)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)


def _x_range(figure: Figure, runs: Sequence[RunRecord]) -> tuple[float, float]:
    ends = [
        float(step)
        for index in {curve.run for curve in figure.curves}
        for step in (*table_of(runs[index], "steps").columns["step"][-1:], runs[index].first_step)
    ]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _y_range(figure: Figure, runs: Sequence[RunRecord]) -> tuple[float, float]:
    """All values but those of skipped steps, with some room."""
    found = [level.value for level in figure.levels]
    for curve in figure.curves:
        table = table_of(runs[curve.run], curve.table)
        values = finite(table.columns[curve.column])
        kinds = table.columns.get("skipped", [None] * len(values))
        taken = np.array([kind is None for kind in kinds], dtype=bool) & np.isfinite(values)
        found += values[taken].tolist()
        for column in curve.band or ():
            ends = finite(table.columns[column])
            found += ends[np.isfinite(ends)].tolist()
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if figure.zero:
        low = min(0.0, low)
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    room = (high - low) * _HEADROOM
    return (low if figure.zero and low == 0 else low - room, high + room)


def ticks(low: float, high: float, wanted: int) -> Iterator[float]:
    """Round numbers between two others: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / max(1, wanted)
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    for index in range(first, math.floor(high / step + 1e-9) + 1):
        yield index * step


def _axes(frame: _Frame, unit: str) -> Iterator[str]:
    bottom, right = frame.height - BOTTOM, frame.width - RIGHT
    for value in ticks(*frame.y_range, (frame.height - TOP - BOTTOM) // 42):
        y = frame.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield (
            f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{written(value, unit)}</text>"
        )
    for value in ticks(*frame.x_range, (frame.width - LEFT - RIGHT) // 90):
        x = frame.x(value)
        yield f'<path class="axis" d="M{x:.1f} {bottom}v5"/>'
        yield (
            f'<text class="tick" x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">'
            f"{value:,.0f}</text>"
        )
    yield f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>'


def _stages(frame: _Frame, runs: Sequence[RunRecord]) -> Iterator[str]:
    """Bands with names, where all runs have the same stages."""
    first = runs[0].stages
    agreed = all(
        [(span.name, span.start[0], span.end[0]) for span in run.stages]
        == [(span.name, span.start[0], span.end[0]) for span in first]
        for run in runs
    )
    for number_of, span in enumerate(first if agreed else ()):
        low, high = frame.x(span.start[0]), frame.x(span.end[0])
        yield (
            f'<rect class="band b{number_of % 2}" x="{low:.1f}" y="{TOP}" '
            f'width="{high - low:.1f}" height="{frame.height - TOP - BOTTOM}"/>'
        )
        if high - low > 7 * len(span.name):
            yield (
                f'<text class="stage" x="{(low + high) / 2:.1f}" y="{TOP - 7}" '
                f'text-anchor="middle">{escape(span.name)}</text>'
            )


def _marks(frame: _Frame, runs: Sequence[RunRecord]) -> Iterator[str]:
    """Resumes as dotted lines, checkpoints as triangles."""
    bottom = frame.height - BOTTOM
    for run in runs:
        for step, _, _ in run.resumes:
            yield f'<path class="resume" d="M{frame.x(step):.1f} {TOP}V{bottom}"/>'
        for step, _, _ in run.checkpoints:
            yield f'<path class="checkpoint" d="M{frame.x(step):.1f} {bottom - 6}l3.5 6h-7z"/>'


def _curve(frame: _Frame, runs: Sequence[RunRecord], curve: Curve) -> Iterator[str]:
    table = table_of(runs[curve.run], curve.table)
    steps = finite(table.columns["step"])
    style = f"c{curve.colour} d{curve.dash % 4}"
    kinds = table.columns.get("skipped", [])
    values = finite(table.columns[curve.column])
    taken = values.copy()
    if curve.band is not None:
        lower, upper = (finite(table.columns[name]) for name in curve.band)
        yield _band(frame, steps, lower, upper, style)
    if curve.smoothed is None:
        yield _path(frame, steps, values, f"line {style}")
        if len(steps) <= 60:
            for x, y in zip(steps, values, strict=True):
                if math.isfinite(y):
                    yield (
                        f'<circle class="dot {style}" cx="{frame.x(x):.1f}" '
                        f'cy="{frame.y(y):.1f}" r="2.5"/>'
                    )
        return
    # What was skipped is a gap and a cross.
    taken[[row for row, kind in enumerate(kinds) if kind is not None]] = np.nan
    yield _path(frame, steps, taken, f"line raw {style}")
    yield _path(frame, steps, finite(table.columns[curve.smoothed]), f"line {style}")
    for row, kind in enumerate(kinds):
        if kind is not None:
            high = frame.y_range[1]
            y = min(values[row], high) if math.isfinite(values[row]) else high
            x, y = frame.x(steps[row]), max(frame.y(max(y, frame.y_range[0])), TOP + 5)
            yield f'<path class="skip" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'


def _band(frame: _Frame, steps: Floats, low: Floats, high: Floats, style: str) -> str:
    """The area between two ends, where both are known."""
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    ways = [(row, high) for row in known] + [(row, low) for row in known[::-1]]
    corners = "L".join(f"{frame.x(steps[i]):.1f} {frame.y(float(end[i])):.1f}" for i, end in ways)
    return f'<path class="interval {style}" d="{f"M{corners}Z" if corners else ""}"/>'


def _path(frame: _Frame, steps: Floats, values: Floats, style: str) -> str:
    """A line with gaps where there is no number, thinned to what a page can show."""
    gaps = np.flatnonzero(~np.isfinite(values)).tolist()
    commands, pen = [], "M"
    for row in rows_to_keep([values], gaps[:_POINTS], _POINTS):
        if math.isfinite(values[row]):
            commands.append(f"{pen}{frame.x(steps[row]):.1f} {frame.y(float(values[row])):.1f}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{style}" d="{"".join(commands)}"/>'
