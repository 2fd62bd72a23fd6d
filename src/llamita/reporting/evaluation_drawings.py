"""Scores as bars with intervals, differences with theirs, and curves over training tokens.

Bars and differences are elements placed in per cent of their lane, so that they fit a phone as they
fit a desk; curves are SVG.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamita.evaluation.comparison import Comparison, Pair
from llamita.evaluation.comparison_text import interval_text, signed, verdict_text, written
from llamita.evaluation.results import TaskScore
from llamita.planning.quantities import tokens as short
from llamita.reporting.report_figures import NUM_COLOURS
from llamita.reporting.report_html import text
from llamita.reporting.svg_plots import ticks

WIDTH, HEIGHT = 330, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 10, 26


# -- bars ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bars:
    """A task's lanes. scores: one a model, None where it has none. peers: published scores that may
    be compared, by model."""

    label: str
    scores: tuple[TaskScore | None, ...]
    peers: tuple[tuple[str, float], ...] = ()


def bars(tasks: Sequence[Bars], names: Sequence[str]) -> str:
    """Shares from 0 to 100%, a lane a model."""
    ends = "".join(f"<span>{each}%</span>" for each in (0, 25, 50, 75, 100))
    scale = f'<div class="scale" aria-hidden="true"><div>{ends}</div><div></div></div>'
    drawn = "".join(_task(each, names) for each in tasks)
    return (
        f'<div class="board">{drawn}<div class="task" aria-hidden="true"><b></b>{scale}</div></div>'
    )


def _task(task: Bars, names: Sequence[str]) -> str:
    known = next(score for score in task.scores if score is not None)
    lanes = "".join(
        _lane(task, score, name, number)
        for number, (score, name) in enumerate(zip(task.scores, names, strict=True))
        if score is not None
    )
    if task.peers:
        lanes += _peers(task)
    shots = f"{known.num_fewshot} shots" if known.num_fewshot != 1 else "1 shot"
    about = f"<small>{text(known.metric)}, {shots}</small>"
    return (
        f'<div class="task"><b>{text(task.label)}{about}</b><div class="tracks">{lanes}</div></div>'
    )


def _lane(task: Bars, score: TaskScore, name: str, number: int) -> str:
    found = score.estimate
    low, high = max(0.0, found.low), min(1.0, found.high)
    marks = ""
    if score.chance is not None:
        said = f"chance: {100 * score.chance:.1f}"
        marks = f'<i class="chance" style="left:{_place(score.chance)}" title="{said}"></i>'
    luck = "not above chance" if score.not_above_chance else ""
    spoken = (
        f"{name}, {task.label}: {written(found.value, True)}, 95% interval "
        f"{interval_text(found.low, found.high, True)}{', ' + luck if luck else ''}"
    )
    half = f"±{100 * (high - low) / 2:.1f}"
    shown = f'<span class="luck" title="{luck}">{half}*</span>' if luck else half
    return (
        f'<div class="track"><div class="lane" role="img" aria-label="{text(spoken)}">'
        f'<i class="fill s{number % NUM_COLOURS}" style="width:{_place(found.value)}"></i>{marks}'
        f'<i class="span" style="left:{_place(low)};width:{_place(high - low)}"></i></div>'
        f'<div class="number">{written(found.value, True)}<small>{shown}</small></div></div>'
    )


def _peers(task: Bars) -> str:
    """A lane of ticks, one a published model."""
    marks = "".join(
        f'<i class="peer" style="left:{_place(value)}" '
        f'title="{text(model)}: {written(value, True)}"></i>'
        for model, value in task.peers
    )
    ends = [written(find(value for _, value in task.peers), True) for find in (min, max)]
    return (
        '<div class="track"><div class="lane peers" role="img" '
        f'aria-label="published models: {ends[0]} to {ends[1]}">{marks}</div>'
        f'<div class="number"><small>{ends[0]} – {ends[1]}</small></div></div>'
    )


def _place(share: float) -> str:
    return f"{100 * share:.2f}%"


# -- differences -----------------------------------------------------------------------------------


def differences(comparison: Comparison) -> str:
    """Second minus first of every share that both have, no difference in the middle."""
    pairs = [each for each in comparison.pairs if each.first.is_share and each.second.is_share]
    if not pairs:
        return ""
    ends = [abs(end) for each in pairs for end in (each.difference.low, each.difference.high)]
    most = _round_up(100 * max(each for each in ends if math.isfinite(each))) / 100
    half = f"{100 * most / 2:g}".replace("-", "−")
    words = (f"−{100 * most:g}", f"−{half}", "0", f"+{half}", f"+{100 * most:g}")
    scale = "".join(f"<span>{each}</span>" for each in words)
    return (
        '<div class="board verdicts">'
        + "".join(_difference(each, most) for each in pairs)
        + '<div class="task" aria-hidden="true"><b></b><div class="scale">'
        + f"<div>{scale}</div><div></div></div></div></div>"
    )


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(max(value, 1e-6)))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= value * 0.999)


def _difference(pair: Pair, most: float) -> str:
    gap = pair.difference
    low, high = (min(max(end, -most), most) for end in (gap.low, gap.high))
    where = interval_text(gap.low, gap.high, True, sign=True)
    name, metric = pair.first.task, pair.first.metric
    said = f"{name}, {metric}: {signed(gap.value, True)} {where}: {verdict_text(pair)}"
    verdict = f"{text(pair.verdict)}" if pair.verdict else '<span class="at">none shown</span>'

    def place(value: float) -> str:
        return _place((value + most) / (2 * most))

    return (
        f'<div class="task"><b>{text(name)}<small>{text(metric)}</small></b><div class="track">'
        f'<div class="lane gap{" shown" if pair.verdict else ""}" role="img" '
        f'aria-label="{text(said)}">'
        f'<i class="span" style="left:{place(low)};width:{_place((high - low) / (2 * most))}"></i>'
        f'<i class="point" style="left:{place(gap.value)}"></i></div>'
        f'<div class="number">{signed(gap.value, True)} <small>{text(where)}</small> {verdict}'
        "</div></div></div>"
    )


# -- curves over tokens ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A run's scores by training tokens, ascending; colour as of its swatch, None for a paper's."""

    name: str
    points: tuple[tuple[int, float, float, float], ...]
    """(tokens, score, low, high); a paper's have no interval, and low = high = score."""
    colour: int | None


def curves(title: str, shown: Sequence[Curve], chance: float | None, share: bool) -> str:
    """One task's curves over a logarithmic axis of tokens, as <svg>."""
    points = [point for each in shown for point in each.points]
    tokens = [point[0] for point in points]
    values = [end for point in points for end in point[2:] if math.isfinite(end)]
    values += [] if chance is None else [chance]
    values += [point[1] for point in points]
    frame = _Frame((min(tokens), max(tokens)), (min(values), max(values)), share)
    parts = [f"<title>{text(title)}</title><desc>{text(_described(shown, share))}</desc>"]
    parts += frame.axes()
    if chance is not None:
        parts.append(f'<path class="chance" d="M{_LEFT} {frame.y(chance):.1f}H{WIDTH - _RIGHT}"/>')
    for each in sorted(shown, key=lambda curve: curve.colour is not None):
        parts += _curve(each, frame, share)
    return f'<svg class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _described(shown: Sequence[Curve], share: bool) -> str:
    return " ".join(
        f"{each.name}: "
        + ", ".join(f"{written(value, share)} at {short(at)}" for at, value, _, _ in each.points)
        + "."
        for each in shown
    )


def _curve(curve: Curve, frame: _Frame, share: bool) -> Iterator[str]:
    style = "peer" if curve.colour is None else f"line c{curve.colour % NUM_COLOURS}"
    path = "L".join(f"{frame.x(at):.1f} {frame.y(value):.1f}" for at, value, _, _ in curve.points)
    yield f'<path class="{style}" d="M{path}"/>'
    for at, value, low, high in curve.points:
        x = frame.x(at)
        said = f"{curve.name}, {short(at)} tokens: {written(value, share)}"
        if curve.colour is None:
            dot = "peer-dot"
        else:
            dot = f"dot c{curve.colour % NUM_COLOURS}"
            low, high = frame.clipped(low), frame.clipped(high)
            yield (
                f'<path class="whisker c{curve.colour % NUM_COLOURS}" '
                f'd="M{x:.1f} {frame.y(low):.1f}V{frame.y(high):.1f}"/>'
            )
        yield (
            f'<circle class="{dot}" cx="{x:.1f}" cy="{frame.y(value):.1f}" r="3">'
            f"<title>{text(said)}</title></circle>"
        )


class _Frame:
    """From tokens and scores to coordinates."""

    def __init__(self, x: tuple[int, int], y: tuple[float, float], share: bool) -> None:
        low, high = (math.log10(max(1, each)) for each in x)
        room = 0.04 * (high - low) or 0.2
        self.x_range = (low - room, high + room)
        room = 0.08 * (y[1] - y[0]) or 0.05
        self.y_range = (y[0] - room, y[1] + room)
        self.share = share

    def x(self, tokens: float) -> float:
        low, high = self.x_range
        at = (math.log10(max(1, tokens)) - low) / (high - low)
        return _LEFT + at * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def clipped(self, value: float) -> float:
        return min(max(value, self.y_range[0]), self.y_range[1])

    def axes(self) -> Iterator[str]:
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        scale = 100 if self.share else 1
        for value in ticks(self.y_range[0] * scale, self.y_range[1] * scale, 4):
            y = self.y(value / scale)
            yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        for value in self._decades():
            x = self.x(value)
            yield f'<path class="axis" d="M{x:.1f} {bottom}v4"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{short(value)}</text>'
        yield f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>'

    def _decades(self) -> list[float]:
        """Round numbers of tokens, at most six."""
        low, high = self.x_range
        powers = range(math.floor(low), math.ceil(high) + 1)
        for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [10.0**power * step for power in powers for step in steps]
            found = [each for each in found if low <= math.log10(each) <= high]
            if len(found) <= 6:
                return found
        return found[:: math.ceil(len(found) / 6)]
