"""The ratio maps of a plan, drawn: figures 2 and 3 of Sardana et al. (arXiv 2401.00448)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llamita.planning.curves import AnswerMap
from llamita.planning.demand import Demand
from llamita.planning.laws import Law
from llamita.planning.maps import Grid, RatioMap, compute_optimal_size
from llamita.reporting.plan_canvas import PlanFigure, log_axis, round_text
from llamita.reporting.plot_style import SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOTS = (1e6, 3e6, 10e6, 30e6, 100e6, 300e6, 1e9, 3e9, 7e9, 13e9, 30e9, 70e9, 200e9, 1e12)
"""Sizes that are marked; from 7B to 70B those of the authors."""
# Not of report.css: on a map's colours, which are the same in every theme, so is what lies on them.
_DARK, _LIGHT, _MARK = "#10151b", "#fdfdfd", "#b3261e"
_MAP = "YlGnBu"
"""Of ColorBrewer, safe for colour blindness; its lightness alone tells the order."""
_FALLING = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_RISING = (1.0, 1.02, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)


_MIDDLE = 0.2
"""A luminance on which dark and light text stand out about equally, between 3.5:1 and 4:1."""
_MARGIN = 0.07
_ENOUGH_ROOM = 0.2
Place = tuple[float, float]
Colour = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Kind:
    """One ratio: which grid, between which levels, in which words."""

    key: str
    title: str
    grid: Callable[[RatioMap], Grid]
    levels: tuple[float, ...]
    what: str


def _kinds(in_money: bool) -> tuple[_Kind, ...]:
    total = "Total cost" if in_money else "Total FLOPs"
    counted = "Training and serving together"
    return (
        _Kind("map-total", total, lambda ratios: ratios.total, _FALLING, counted),
        _Kind(
            "map-parameters",
            "Parameters",
            lambda ratios: ratios.parameters,
            _FALLING,
            "Parameters of the model",
        ),
        _Kind("map-tokens", "Tokens", lambda ratios: ratios.tokens, _RISING, "Tokens trained on"),
    )


def map_figures(found: AnswerMap, law: Law) -> list[PlanFigure]:
    """Total, parameters and tokens, a figure each."""
    return [
        PlanFigure(
            kind.key,
            f"{kind.title}: cheapest / compute-optimal",
            _caption(kind, found),
            _description(kind, found),
            (partial(_draw, kind=kind, found=found, law=law),),
        )
        for kind in _kinds(found.in_money)
    ]


def map_overview(figures: Sequence[PlanFigure], demand: Demand | None) -> PlanFigure:
    """The three maps side by side."""
    return PlanFigure(
        "ratio-maps",
        "The cheapest model over the compute-optimal one",
        reading(demand),
        " ".join(figure.description for figure in figures),
        tuple(figure.panels[0] for figure in figures),
        tuple(figure.title for figure in figures),
    )


def reading(demand: Demand | None) -> str:
    """How the maps are read."""
    served = "requests" if demand is not None and demand.requests is not None else "tokens"
    there = "" if demand is None else " The cross is what was asked."
    return (
        "To the right: the loss to be reached, named by the size that reaches it "
        f"compute-optimally. Upwards: the {served} served. Each ratio is of the cheapest model "
        "over the compute-optimal one, of the same loss and the same demand. Dots: served as many "
        f"tokens as trained on.{there} The law alone speaks here: limits and repetition are left "
        "out."
    )


def _caption(kind: _Kind, found: AnswerMap) -> str:
    caption = kind.what
    if found.asked is not None:
        caption += f"; {_ratio(kind.grid(found.asked)[0][0])} where the cross is"
    return f"{caption}."


def _description(kind: _Kind, found: AnswerMap) -> str:
    grid = kind.grid(found.ratios)
    cells = [cell for row in grid for cell in row]
    ratios = found.ratios
    text = (
        f"{kind.title}: ratios from {_ratio(min(cells))} to {_ratio(max(cells))}, for sizes from "
        f"{round_text(ratios.sizes[0])} to {round_text(ratios.sizes[-1])} parameters and "
        f"{round_text(ratios.demands[0])} to {round_text(ratios.demands[-1])} tokens served; the "
        "more is served, the farther from 1."
    )
    if found.asked is not None:
        text += f" Where the question lies it is {_ratio(kind.grid(found.asked)[0][0])}."
    return text


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def _draw(panel: Axes, *, kind: _Kind, found: AnswerMap, law: Law) -> None:
    import matplotlib

    ratios, grid = found.ratios, kind.grid(found.ratios)
    factor = found.requests_a_token or 1.0
    demands = [demand * factor for demand in ratios.demands]
    levels = _levels(kind.levels, grid)
    # 1 is pale, and what lies far from it dark, in every map.
    shades = [number / max(1, len(levels) - 2) for number in range(len(levels) - 1)]
    shades = shades if kind.levels[0] == 1 else shades[::-1]
    palette = matplotlib.colormaps[_MAP]
    colours = [palette(0.04 + 0.9 * shade) for shade in shades]
    panel.grid(False)
    panel.contourf(ratios.sizes, demands, grid, levels=levels, colors=colours, antialiased=False)
    inner = levels[1:-1]
    lines = panel.contour(ratios.sizes, demands, grid, levels=inner, colors=_DARK, linewidths=0.6)
    log_axis(panel, "x", round_text, ratios.sizes[0], ratios.sizes[-1])
    log_axis(panel, "y", round_text, demands[0], demands[-1])
    panel.set_xlabel("compute-optimal parameters")
    panel.set_ylabel("requests served" if found.requests_a_token else "tokens served")
    _losses_above(panel, law, ratios.losses)
    taken = _dots(panel, law, found, factor)
    _label(panel, lines, inner, colours, taken)


def _levels(wanted: tuple[float, ...], grid: Grid) -> list[float]:
    """Those within the map, and one beyond each of its ends."""
    cells = [cell for row in grid for cell in row]
    low, high = min(cells), max(cells)
    inside = [level for level in wanted if low < level < high]
    return [min(low, *inside) * 0.999, *inside, max(high, *inside) * 1.001]


def _losses_above(panel: Axes, law: Law, losses: tuple[float, ...]) -> None:
    """The loss on an axis of its own, since sizes stand for losses here."""
    num = 5
    values = sorted(
        {round(losses[round(k * (len(losses) - 1) / (num + 1))], 2) for k in range(1, num + 1)}
    )
    top = panel.secondary_xaxis("top")
    top.set_xticks(
        [compute_optimal_size(law, value) for value in values], [f"{value:g}" for value in values]
    )
    top.minorticks_off()
    top.set_xlabel(f"loss, {law.loss}", fontsize=8)
    top.spines["top"].set_visible(True)
    top.tick_params(color=SOFT)


def _dots(panel: Axes, law: Law, found: AnswerMap, factor: float) -> list[Place]:
    """The sizes and the question; returns where they lie, in shares of the panel."""
    ratios = found.ratios
    box = {"boxstyle": "round,pad=0.18", "facecolor": _LIGHT, "edgecolor": "none", "alpha": 0.8}
    taken = []
    for size in _DOTS:
        served = law.optimal_tokens(size)
        inside = ratios.sizes[0] * 1.2 < size < ratios.sizes[-1] / 2
        if inside and ratios.demands[0] * 1.3 < served < ratios.demands[-1] / 1.3:
            panel.plot([size], [served * factor], "o", color=_DARK, markersize=4)
            panel.annotate(
                round_text(size),
                (size, served * factor),
                xytext=(6, -3),
                textcoords="offset points",
                fontsize=7.5,
                color=_DARK,
                bbox=box,
            )
            x, y = _share(panel, size, served * factor)
            taken += [(x, y), (x + 0.06, y)]
    if found.demand is not None:
        panel.plot(
            [found.size],
            [found.demand * factor],
            marker="X",
            linestyle="none",
            color=_MARK,
            markeredgecolor=_LIGHT,
            markersize=11,
            zorder=5,
        )
        taken.append(_share(panel, found.size, found.demand * factor))
    return taken


def _label(
    panel: Axes, lines: Any, levels: list[float], bands: list[Colour], taken: list[Place]
) -> None:
    """Each contour's ratio on it, where there is most room."""
    for number, (level, path) in enumerate(zip(levels, lines.get_paths(), strict=True)):
        places = {(x, y): _share(panel, x, y) for x, y in path.vertices.tolist()}
        room = {
            spot: min((math.dist(share, other) for other in taken), default=1.0)
            for spot, share in places.items()
            if all(_MARGIN < each < 1 - _MARGIN for each in share)
        }
        if not room:
            continue  # it only cuts a corner: no room for words
        spot = max(room, key=lambda each: min(room[each], _ENOUGH_ROOM))
        taken.append(places[spot])
        written = {level: f"{level:g}" + ("×" if level > 1 else "")}
        darkest = min(map(_luminance, bands[number : number + 2]))
        colour = _DARK if darkest > _MIDDLE else _LIGHT
        panel.clabel(lines, [level], fmt=written, fontsize=8, manual=[spot], colors=[colour])


def _luminance(colour: Colour) -> float:
    """Relative luminance of an sRGB colour (WCAG 2)."""
    linear = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in colour[:3]
    )
    return sum(
        weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )


def _share(panel: Axes, x: float, y: float) -> Place:
    """Where a point lies, as shares of a panel's logarithmic axes."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    across = math.log(x / left) / math.log(right / left)
    return across, math.log(y / bottom) / math.log(top / bottom)
