"""A wind tunnel's scaling law drawn: its runs, what it leaves, and what it says of tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from llamita.planning.laws import Law, find_law
from llamita.planning.maps import spaced
from llamita.planning.observations import Observation
from llamita.planning.quantities import tokens as short
from llamita.reporting.plan_canvas import (
    DASHES,
    PlanFigure,
    bars,
    flops_text,
    legend_below,
    log_axis,
    look,
    round_flops_text,
    round_text,
)
from llamita.reporting.plot_style import COLOURS, GRID, INK, SOFT, WARN
from llamita.reporting.tunnel_words import BITS, signed, value_text
from llamita.windtunnel.findings import Findings, Interval, LawStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 81
_MINICPM_LAW = "minicpm-average"


def law_figures(findings: Findings) -> list[PlanFigure]:
    study = findings.law
    if study is None or not study.fitted.observations.rows:
        return []
    ratios = [_ratios(study)] if study.ratios else []
    return [_loss_by_tokens(study), *ratios, _residuals(study)]


def _by_size(study: LawStudy) -> dict[str, list[Observation]]:
    """Observations by the name of their size, or by its parameters where no run has them."""
    names = {each.parameters: each.size for each in study.runs}
    found: dict[float, list[Observation]] = {}
    for row in study.fitted.observations.rows:
        found.setdefault(row.parameters, []).append(row)
    return {
        names.get(round(parameters), f"{short(parameters)} parameters"): sorted(
            found[parameters], key=lambda row: row.tokens
        )
        for parameters in sorted(found)
    }


def _loss_by_tokens(study: LawStudy) -> PlanFigure:
    said = "; ".join(
        f"{size}: " + ", ".join(f"{row.loss:.4f} after {short(row.tokens)}" for row in rows)
        for size, rows in _by_size(study).items()
    )
    return PlanFigure(
        "law-tokens",
        "Loss against tokens",
        "Marks: what each decayed run reached. Lines: the law.",
        f"{said}.",
        (partial(_draw_loss_by_tokens, study=study),),
    )


def _draw_loss_by_tokens(panel: Axes, *, study: LawStudy) -> None:
    rows = study.fitted.observations.rows
    law = study.fitted.law
    x = (min(row.tokens for row in rows) / 1.4, max(row.tokens for row in rows) * 1.4)
    grid = spaced(*x, _POINTS)
    for number, (size, found) in enumerate(_by_size(study).items()):
        colour, marker, dash = look(number)
        panel.plot(
            grid,
            [law.at(found[0].parameters, tokens) for tokens in grid],
            color=colour,
            linestyle=dash,
            linewidth=1.4,
        )
        tokens, losses = [row.tokens for row in found], [row.loss for row in found]
        panel.plot(tokens, losses, marker, color=colour, markersize=5, label=size)
    log_axis(panel, "x", round_text, *x)
    panel.set_xlabel("tokens")
    panel.set_ylabel(BITS)
    legend_below(panel, 3)


def _residuals(study: LawStudy) -> PlanFigure:
    fitted = study.fitted
    caption = "First: a law that fits lies on the line. Then: observed above the law; the band is "
    caption += f"the residuals' root mean square, {fitted.rms:.2%} of the loss."
    said = f"Residuals of {len(fitted.residuals)} runs, root mean square {fitted.rms:.2%}."
    held = fitted.held_out
    if held is not None:
        caption += " Star: the largest run, predicted by a law that was fitted without it"
        caption += " and its size." if held.num_observations > 1 else "."
        said += f" {_held_out(study)}"
    return PlanFigure(
        "law-residuals",
        "Predicted and observed",
        caption,
        said,
        (partial(_draw_predicted, study=study), partial(_draw_residuals, study=study)),
        ("observed against predicted", "what is left"),
        panel_descriptions=(said, said),
    )


def _held_out(study: LawStudy) -> str:
    held = study.fitted.held_out
    assert held is not None
    return (
        f"Without {held.largest}, its loss is predicted as {held.predicted:.4f} and observed as "
        f"{held.observed:.4f}, {signed(100 * held.error, plus=True)}%."
    )


def _draw_predicted(panel: Axes, *, study: LawStudy) -> None:
    law, held = study.fitted.law, study.fitted.held_out
    ends: list[float] = []
    for number, (size, rows) in enumerate(_by_size(study).items()):
        colour, marker, _ = look(number)
        expected = [law.at(row.parameters, row.tokens) for row in rows]
        losses = [row.loss for row in rows]
        ends += expected + losses
        panel.plot(expected, losses, marker, color=colour, markersize=5, label=size)
    if held is not None:
        ends += [held.predicted, held.observed]
        _star(panel, held.predicted, held.observed)
    room = 0.05 * (max(ends) - min(ends)) or 0.01 * max(ends)
    span = (min(ends) - room, max(ends) + room)
    panel.plot(span, span, color=SOFT, linewidth=1, zorder=1)
    panel.set_xlim(*span)
    panel.set_ylim(*span)
    panel.set_xlabel("predicted, bits per byte")
    panel.set_ylabel("observed")
    legend_below(panel, 3)


def _star(panel: Axes, x: float, y: float) -> None:
    panel.plot(
        [x], [y], "*", color=WARN, markersize=13, markerfacecolor="none", markeredgewidth=1.4,
        zorder=6, label="largest, left out", linestyle="none",
    )  # fmt: skip


def _draw_residuals(panel: Axes, *, study: LawStudy) -> None:
    fitted = study.fitted
    band = 100 * fitted.rms
    panel.axhspan(-band, band, color=GRID, alpha=0.55, zorder=0, linewidth=0)
    panel.axhline(0, color=SOFT, linewidth=1, zorder=1)
    ends: list[float] = []
    rows = fitted.observations.rows
    left = dict(zip(rows, fitted.residuals, strict=True))
    for number, (size, found) in enumerate(_by_size(study).items()):
        colour, marker, _ = look(number)
        values = [100 * math.expm1(left[row]) for row in found]
        ends += values
        xs = [6 * row.parameters * row.tokens for row in found]
        panel.plot(xs, values, marker, color=colour, markersize=5, label=size)
    compute = [6 * row.parameters * row.tokens for row in rows]
    if fitted.held_out is not None:
        value = 100 * (fitted.held_out.observed / fitted.held_out.predicted - 1)
        ends.append(value)
        _star(panel, max(compute), value)
    log_axis(panel, "x", round_flops_text, min(compute) / 1.6, max(compute) * 1.6)
    most = 1.15 * max(band, *map(abs, ends))
    panel.set_ylim(-most, most)
    panel.set_xlabel("training FLOPs, 6·N·D")
    panel.set_ylabel("observed above the law, %")
    legend_below(panel, 3)


# -- tokens a parameter ----------------------------------------------------------------------------


def _ratios(study: LawStudy) -> PlanFigure:
    said = "; ".join(
        f"{value_text(each.ratio)} at {flops_text(each.flops)} FLOPs"
        + (", extrapolated" if each.extrapolated else "")
        for each in study.ratios
    )
    caption = "Tokens for each parameter where the loss is least for the compute."
    if any(each.ratio_interval for each in study.ratios):
        caption += " Bars: 95% intervals."
    if any(each.extrapolated for each in study.ratios):
        caption += " Hollow and grey: beyond the runs of the fit."
    return PlanFigure(
        "law-ratio",
        "Compute-optimal tokens a parameter",
        f"{caption} Dashed: what MiniCPM's average law gives (arXiv 2404.06395), of other text and "
        "another tokenizer.",
        f"{said}.",
        (partial(_draw_ratios, study=study, theirs=_theirs()),),
    )


def _theirs() -> Law:
    found = find_law(_MINICPM_LAW)
    assert isinstance(found, Law)
    return found


def _draw_ratios(panel: Axes, *, study: LawStudy, theirs: Law) -> None:
    found = sorted(study.ratios, key=lambda each: each.flops)
    x = (found[0].flops / 2, found[-1].flops * 2)
    inside = [each.flops for each in found if not each.extrapolated]
    if len(inside) < len(found):
        # Half-way between the last point inside and the first beyond it.
        for left, right in _beyond([(each.flops, each.extrapolated) for each in found], x):
            panel.axvspan(left, right, color=GRID, alpha=0.55, zorder=0, linewidth=0)
    ends = [each.ratio for each in found]
    panel.plot([each.flops for each in found], ends, color=COLOURS[0], linewidth=1.4, label="ours")
    # On the side that the line leaves free.
    below = found[-1].ratio >= found[0].ratio
    for each in found:
        if each.ratio_interval is not None:
            bars(panel, each.flops, each.ratio, each.ratio_interval, COLOURS[0])
        fill = "none" if each.extrapolated else COLOURS[0]
        panel.plot(
            [each.flops], [each.ratio], "o", color=COLOURS[0], markersize=6, markerfacecolor=fill,
            zorder=5,
        )  # fmt: skip
        panel.annotate(
            value_text(each.ratio), (each.flops, each.ratio), xytext=(6, -11 if below else 5),
            textcoords="offset points", fontsize=8, color=INK,
        )  # fmt: skip
    grid = spaced(*x, _POINTS)
    optimal = [theirs.compute_optimal(flops) for flops in grid]
    ratios = [tokens / parameters for parameters, tokens in optimal]
    panel.plot(grid, ratios, color=SOFT, linestyle=DASHES[1], linewidth=1.2, label="MiniCPM's")
    log_axis(panel, "x", round_flops_text, *x)
    # An interval may reach to nought and to infinity; the panel shows a factor of 30 of it.
    reached = [end for each in found for end in each.ratio_interval or ()]
    low = max(min([*ends, *ratios, *reached]), min(*ends, *ratios) / 30)
    high = min(max([*ends, *ratios, *reached]), max(*ends, *ratios) * 30)
    log_axis(panel, "y", value_text, low / 1.5, high * 1.5)
    panel.set_xlabel("training FLOPs, 6·N·D")
    panel.set_ylabel("tokens a parameter")
    legend_below(panel, 2)


def _beyond(points: Sequence[tuple[float, bool]], x: Interval) -> list[Interval]:
    """The stretches of an axis whose points lie beyond the fit."""
    cuts = [x[0]]
    cuts += [math.sqrt(a * b) for (a, _), (b, _) in itertools.pairwise(points)]
    cuts.append(x[1])
    spans = zip(itertools.pairwise(cuts), points, strict=True)
    return [span for span, (_, beyond) in spans if beyond]
