"""A wind tunnel's batch law drawn: which batch takes the fewest tokens, at which loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from llamita.planning.maps import spaced
from llamita.planning.quantities import tokens as short
from llamita.reporting.plan_canvas import (
    DASHES,
    PlanFigure,
    bars,
    flops_text,
    legend_below,
    log_axis,
    look,
    round_text,
)
from llamita.reporting.plot_style import COLOURS, SOFT
from llamita.reporting.tunnel_drawings import mark_optimum, parabola
from llamita.reporting.tunnel_words import BITS, signed
from llamita.windtunnel.findings import BatchLaw, EqualLoss, Findings, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 81
MINICPM_POWER = 6.24
"""Of bs = 1.21e9 / L^6.24 (arXiv 2404.06395, section 3.3)."""


def batch_figures(findings: Findings) -> list[PlanFigure]:
    """Tokens against batch at equal losses, and the best batch against loss (figure 4 of arXiv
    2404.06395)."""
    law = findings.batch_law
    if law is None or not law.minima:
        return []
    return [_surface(law), _batch_against_loss(law)]


def _surface(law: BatchLaw) -> PlanFigure:
    sizes = tuple(dict.fromkeys(each.size for each in law.minima))
    batches = [batch for each in law.minima for batch in each.batches]
    counts = [count for each in law.minima for count in each.tokens]
    x = (min(batches) / 1.3, max(batches) * 1.3)
    y = (min(counts) / 1.4, max(counts) * 1.4)
    said = tuple(
        f"{size}: "
        + "; ".join(
            f"a loss of {each.loss:.4g} takes fewest tokens, "
            f"{short(math.exp(each.best.loss))}, at batches of {_best_batch(each)}"
            for each in _of_size(law, size)
        )
        + "."
        for size in sizes
    )
    caption = "Curves: all that reach one loss, which is written beside. Marks: where that takes "
    caption += "the fewest tokens, joined. Dots in the background: runs as they were validated."
    if any(each.best.edge for each in law.minima):
        caption += " Hollow: the edge of the batches tried, which is no minimum."
    return PlanFigure(
        "batch-surface",
        "Tokens to a loss against batch size",
        caption,
        " ".join(said),
        tuple(partial(_draw_surface, law=law, size=size, x=x, y=y) for size in sizes),
        sizes if len(sizes) > 1 else (),
        panel_descriptions=said,
    )


def _of_size(law: BatchLaw, size: str) -> list[EqualLoss]:
    """The highest loss first, which is reached first."""
    return sorted((each for each in law.minima if each.size == size), key=lambda each: -each.loss)


def _best_batch(each: EqualLoss) -> str:
    found = f"{short(each.best.value)} tokens"
    return f"{found}, the edge of those tried" if each.best.edge else found


def _draw_surface(panel: Axes, *, law: BatchLaw, size: str, x: Interval, y: Interval) -> None:
    for batch, curve in sorted(law.curves.get(size, {}).items()):
        seen = [tokens for tokens, _ in curve if tokens > 0]
        panel.plot([batch] * len(seen), seen, ".", color=SOFT, markersize=2, alpha=0.5)
    colour = COLOURS[0]
    minima = []
    for each in _of_size(law, size):
        best = each.best
        panel.plot(each.batches, each.tokens, "o", color=colour, markersize=3.4, markeredgewidth=0)
        if best.fitted is not None:
            grid = spaced(*best.window, _POINTS)
            counts = [math.exp(parabola(best, batch)) for batch in grid]
            panel.plot(grid, counts, color=colour, linewidth=1.3)
        if best.is_found:
            minima.append((best.value, math.exp(best.loss)))
        last = max(zip(each.batches, each.tokens, strict=True))
        panel.annotate(
            f"{each.loss:.4g}",
            last,
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=colour,
            annotation_clip=False,
        )
        mark_optimum(panel, best, math.exp(best.loss), 1)
    joined = list(zip(*minima, strict=True)) or [(), ()]
    panel.plot(*joined, color=COLOURS[1], linestyle=DASHES[1], linewidth=1.2)
    log_axis(panel, "x", round_text, *x)
    log_axis(panel, "y", round_text, *y)
    panel.set_xlabel("batch, tokens")
    panel.set_ylabel("tokens to the loss")


def _batch_against_loss(law: BatchLaw) -> PlanFigure:
    minima = "; ".join(
        f"{each.size} at {each.loss:.4g}: {_best_batch(each)}" for each in law.minima
    )
    band = " Band: 95% of the fits to resampled runs." if law.samples else ""
    return PlanFigure(
        "batch-law",
        "Batch of fewest tokens against loss",
        f"Line: the fit, bs = {flops_text(law.a)} / L^{law.b:.3g}.{band} Dashed: the slope of "
        "MiniCPM's 1.21·10⁹ / L^6.24, laid through the same middle. Its L is of C4, in nats per "
        "token of its own tokenizer, so that slopes can be compared and heights cannot.",
        f"bs = {law.a:.4g} / L^{law.b:.4g}. {minima}.",
        (partial(_draw_batch_law, law=law),),
    )


def _draw_batch_law(panel: Axes, *, law: BatchLaw) -> None:
    losses = [each.loss for each in law.minima]
    room = max((max(losses) / min(losses)) ** 0.15, 1.01)
    span = (min(losses) / room, max(losses) * room)
    grid = spaced(*span, _POINTS)
    fit = [law.batch(loss) for loss in grid]
    ends = [each.best.value for each in law.minima]
    for each in law.minima:
        ends += each.best.interval or ()
    if law.samples:
        low, high = _band(law, grid)
        panel.fill_between(grid, low, high, color=COLOURS[0], alpha=0.14, linewidth=0)
    panel.plot(grid, fit, color=COLOURS[0], linewidth=1.8, label=f"fit: L^{signed(-law.b)}")
    middle = math.exp(sum(map(math.log, losses)) / len(losses))
    theirs = [law.batch(middle) * (loss / middle) ** -MINICPM_POWER for loss in grid]
    name = f"MiniCPM's slope: L^{signed(-MINICPM_POWER)}"
    panel.plot(grid, theirs, color=SOFT, linestyle=DASHES[1], linewidth=1.2, label=name)
    sizes = list(dict.fromkeys(each.size for each in law.minima))
    for number, size in enumerate(sizes):
        colour, marker, _ = look(number + 1)
        panel.plot([], [], marker, color=colour, label=size)
        aside = room ** (0.12 * (number - (len(sizes) - 1) / 2))
        for each in _of_size(law, size):
            best = each.best
            edge = best.edge is not None
            if best.interval is not None and not edge:
                bars(panel, each.loss * aside, best.value, best.interval, colour)
            fill = "none" if edge else colour
            panel.plot(
                [each.loss * aside], [best.value], marker, color=colour, markersize=6,
                markerfacecolor=fill, zorder=5,
            )  # fmt: skip
    log_axis(panel, "x", lambda value: f"{value:.3g}", *span)
    low_y, high_y = min(*ends, *fit), max(*ends, *fit)
    log_axis(panel, "y", round_text, low_y / 1.3, high_y * 1.3)
    panel.set_xlabel(BITS)
    panel.set_ylabel("batch, tokens")
    legend_below(panel, 2)


def _band(law: BatchLaw, losses: Sequence[float]) -> tuple[list[float], list[float]]:
    import numpy as np

    drawn = [[a / loss**b for loss in losses] for a, b in law.samples]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    return low.tolist(), high.tolist()
