"""A wind tunnel's figures: how updates go with width, and how a run is best ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from llamita.reporting.plan_canvas import (
    INCHES,
    PlanFigure,
    bars,
    legend_below,
    log_axis,
    look,
    numbered_axis,
)
from llamita.reporting.tunnel_drawings import means
from llamita.reporting.tunnel_words import BITS, power_text, share_text, slug, value_text
from llamita.windtunnel.findings import (
    Coordinate,
    CoordinateCheck,
    DecayCell,
    DecayStudy,
    Findings,
    Interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# -- coordinates -----------------------------------------------------------------------------------


def coordinate_figures(findings: Findings) -> list[PlanFigure]:
    """Updates after the last step against width, a panel for each parametrisation."""
    found = [each for each in findings.coordinates if _last_updates(each)]
    if not found:
        return []
    shown = [one for each in found for one in _last_updates(each)]
    names = tuple(dict.fromkeys(one.what for one in shown))
    seen = [value for one in shown for values in one.rms.values() for value in values if value > 0]
    span = (min(seen) / 1.5, max(seen) * 1.5) if seen else (0.1, 10.0)
    said = tuple(
        f"{each.parametrization}: "
        + "; ".join(
            f"{one.what} as width{power_text(one.exponent, one.interval)}"
            for one in _last_updates(each)
        )
        + "."
        for each in found
    )
    step = max(one.step for one in shown)
    return [
        PlanFigure(
            "coordinates",
            f"What {step} step{'s' if step > 1 else ''} changed, against width",
            "Root mean square of each thing's change since before the first step; dots: a seed "
            "each; marks: their mean. What rises with width will be too much at some size.",
            " ".join(said),
            tuple(partial(_draw_coordinates, check=each, names=names, span=span) for each in found),
            tuple(each.parametrization for each in found) if len(found) > 1 else (),
            panel_descriptions=said,
            inches=(INCHES[0], INCHES[1] + 0.17 * len(names)),
        )
    ]


def _last_updates(check: CoordinateCheck) -> list[Coordinate]:
    updates = [each for each in check.coordinates if each.kind == "update"]
    last = max((each.step for each in updates), default=0)
    return [each for each in updates if each.step == last]


def _draw_coordinates(
    panel: Axes, *, check: CoordinateCheck, names: Sequence[str], span: Interval
) -> None:
    for each in _last_updates(check):
        colour, marker, dash = look(names.index(each.what))
        points = [(w, v) for w in sorted(each.rms) for v in each.rms[w] if v > 0]
        panel.plot(
            [w for w, _ in points],
            [v for _, v in points],
            ".",
            color=colour,
            markersize=4,
            alpha=0.6,
            markeredgewidth=0,
        )
        xs, ys = means([(w, math.log(v)) for w, v in points])
        panel.plot(
            xs,
            [math.exp(y) for y in ys],
            marker,
            color=colour,
            markersize=4.5,
            linestyle=dash,
            label=f"{each.what}: width{power_text(each.exponent, None)}",
        )
    log_axis(panel, "y", value_text, *span)
    numbered_axis(panel, "x", check.widths)
    panel.set_xlabel("width")
    panel.set_ylabel("RMS of the change")
    legend_below(panel, 1)  # its names are long, with an exponent each


# -- how a run is ended ----------------------------------------------------------------------------


def decay_figures(findings: Findings) -> list[PlanFigure]:
    """Loss against the decay's share: a figure for each study and size, a panel for each
    mixture."""
    figures: list[PlanFigure] = []
    for study in findings.decays:
        for size in dict.fromkeys(each.size for each in study.cells):
            cells = [each for each in study.cells if each.size == size]
            key = f"decay-{len(figures)}-{slug(size)}"
            figures.append(_decay(key, study, size, cells))
    return figures


def _decay(key: str, study: DecayStudy, size: str, cells: Sequence[DecayCell]) -> PlanFigure:
    mixtures = tuple(dict.fromkeys(each.mixture for each in cells))
    forms = tuple(dict.fromkeys(each.form for each in study.cells))
    shares = sorted({each.share for each in cells})
    seen = [loss for each in cells for loss in (each.mean, *each.losses.values())]
    room = max(max(seen) - min(seen), 0.002 * min(seen))
    span = (min(seen) - 0.08 * room, max(seen) + 0.08 * room)
    said = tuple(
        f"{mixture}: "
        + "; ".join(
            f"{each.form} over {share_text(each.share)}: {each.mean:.4f}"
            for each in cells
            if each.mixture == mixture
        )
        + "."
        for mixture in mixtures
    )
    caption = "The mean of the seeds, and from the lowest of them to the highest."
    if size in study.undecayed:
        caption += f" Before any decay: {study.undecayed[size]:.4f}."
    return PlanFigure(
        key,
        f"Loss against the decay's share, {size}",
        caption,
        " ".join(said),
        tuple(
            partial(
                _draw_decay,
                cells=[each for each in cells if each.mixture == mixture],
                forms=forms,
                shares=shares,
                span=span,
            )
            for mixture in mixtures
        ),
        tuple(f"decayed on {mixture}" for mixture in mixtures) if len(mixtures) > 1 else (),
        panel_descriptions=said,
    )


def _draw_decay(
    panel: Axes,
    *,
    cells: Sequence[DecayCell],
    forms: Sequence[str],
    shares: Sequence[float],
    span: Interval,
) -> None:
    # Shares stand equally far apart: between 2.5% and 20% they are powers of two.
    for number, form in enumerate(forms):
        colour, marker, dash = look(number)
        aside = 0.08 * (number - (len(forms) - 1) / 2)
        found = sorted((each for each in cells if each.form == form), key=lambda each: each.share)
        xs = [shares.index(each.share) + aside for each in found]
        for x, each in zip(xs, found, strict=True):
            if len(each.losses) > 1:
                ends = (min(each.losses.values()), max(each.losses.values()))
                bars(panel, x, each.mean, ends, colour)
        panel.plot(
            xs,
            [each.mean for each in found],
            marker,
            color=colour,
            linestyle=dash,
            markersize=5,
            label=form if found else None,
        )
    panel.set_xticks(range(len(shares)), [share_text(each) for each in shares])
    panel.set_xlim(-0.5, len(shares) - 0.5)
    panel.set_ylim(*span)
    panel.set_xlabel("share of the tokens that decays")
    panel.set_ylabel(BITS)
    legend_below(panel, 2)
