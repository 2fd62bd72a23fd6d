"""The figures of `llamita plan`: as PNG and SVG files, and for its page. Needs matplotlib (extra
`plots`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError
from llamita.planning.answer import Answer
from llamita.planning.curves import map_around
from llamita.planning.quantities import gigabytes
from llamita.planning.recipe_answer import RecipeAnswer
from llamita.reporting.plan_canvas import INCHES, PlanFigure, save_figures
from llamita.reporting.plan_drawings import curve_figures
from llamita.reporting.plan_map_drawings import map_figures, map_overview
from llamita.reporting.plot_style import COLOURS, GRID, INK, WARN, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAGES_CELLS = 48
"""Rows and columns of a page's maps, whose contours are as smooth as with the files' 100."""


def write_plan_figures(
    answer: Answer | RecipeAnswer, folder: Path, memory: Sequence[PlanFigure] = ()
) -> list[Path]:
    """Each figure of an answer as `KEY.png` and `KEY.svg`, and the three maps as `ratio-maps`.

    Args:
        memory: more figures; of a recipe there are no others.

    Raises:
        UserError: matplotlib is not installed, the answer is a rule of thumb's, which has no
            curves, or the folder cannot be written.
    """
    require_matplotlib("figures are", "--figures")
    if isinstance(answer, RecipeAnswer):
        if not memory:
            raise UserError(
                "--figures draws a recipe's memory on devices; name some with --hardware 8xa100-80"
            )
        return save_figures(memory, folder)
    if answer.question is None:
        raise UserError(
            f"{answer.law.name} says nothing of loss, so that there are no curves to draw; choose "
            "another --law, or leave --figures out"
        )
    found = map_around(answer)
    maps = map_figures(found, answer.question.law)
    overview = map_overview(maps, answer.question.demand)
    return save_figures([*curve_figures(answer), *maps, overview, *memory], folder)


def page_figures(answer: Answer) -> list[PlanFigure]:
    """What a page shows; nothing for a rule of thumb, which has no curves."""
    if answer.question is None:
        return []
    found = map_around(answer, _PAGES_CELLS)
    return [*curve_figures(answer), *map_figures(found, answer.question.law)]


def memory_bars(
    items: Sequence[tuple[str, Mapping[str, float]]], limit: float | None
) -> PlanFigure:
    """Memory as stacked bars: a bar for each name, a part for each of its items, in bytes.

    limit: what the device holds, drawn as a line across them.
    """
    kinds = list(dict.fromkeys(kind for _, parts in items for kind in parts))
    kinds = [kind for kind in kinds if any(parts.get(kind) for _, parts in items)]
    sentences = []
    for name, parts in items:
        each = ", ".join(
            f"{kind.replace('_', ' ')} {gigabytes(size)}" for kind, size in parts.items() if size
        )
        sentences.append(f"{name}: {gigabytes(sum(parts.values()))} ({each})")
    held = "" if limit is None else f" The device holds {gigabytes(limit)}."
    return PlanFigure(
        "memory",
        "Memory",
        "What each takes, by what holds it."
        + ("" if limit is None else " The line is what the device holds."),
        "; ".join(sentences) + "." + held,
        (partial(_draw_memory, items=items, kinds=kinds, limit=limit),),
        inches=(INCHES[0], 1.5 + 0.5 * len(items) + 0.17 * ((len(kinds) + 2) // 3)),
    )


def _draw_memory(
    panel: Axes,
    *,
    items: Sequence[tuple[str, Mapping[str, float]]],
    kinds: Sequence[str],
    limit: float | None,
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    places = [len(items) - 1 - number for number in range(len(items))]
    lefts = [0.0] * len(items)
    for number, kind in enumerate(kinds):
        sizes = [parts.get(kind, 0.0) for _, parts in items]
        # Beyond the colours the same come again, hatched.
        hatch: dict[str, Any] = (
            {"hatch": "////", "edgecolor": "white"} if number >= len(COLOURS) else {}
        )
        colour = COLOURS[number % len(COLOURS)]
        name = kind.replace("_", " ")
        panel.barh(places, sizes, 0.58, lefts, color=colour, label=name, linewidth=0, **hatch)
        lefts = [left + size for left, size in zip(lefts, sizes, strict=True)]
    most = max([*lefts, limit or 0.0])
    for place, total in zip(places, lefts, strict=True):
        over = limit is not None and total > limit
        label = gigabytes(total)
        panel.text(
            total + most * 0.012, place, label, va="center", fontsize=8, color=WARN if over else INK
        )
    if limit is not None:
        panel.axvline(limit, color=WARN, linewidth=1.4)
        panel.annotate(
            f"device: {gigabytes(limit)}",
            (limit, len(items) - 0.52),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=WARN,
        )
    panel.set_xlim(0, most * 1.2)
    panel.set_ylim(-0.55, len(items) - 0.2)
    panel.set_yticks(places, [name for name, _ in items], color=INK)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e9:g} GB"))
    panel.grid(False, axis="y")
    panel.grid(True, axis="x", color=GRID)
    panel.tick_params(axis="y", length=0)
    panel.legend(
        loc="upper center",
        bbox_to_anchor=(0.45, -0.16 - 0.06 / len(items)),
        ncols=3,
        borderpad=0,
        columnspacing=1.2,
    )
