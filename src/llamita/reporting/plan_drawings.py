"""A plan's curves and bars, drawn: options beside each other, cost and loss against size, loss
against tokens, and N against D at one loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from llamita.planning.answer import Answer, Option, Question
from llamita.planning.curves import (
    LossCurve,
    cost_against_size,
    loss_against_size,
    loss_against_tokens,
    tokens_of_loss,
)
from llamita.planning.maps import spaced
from llamita.planning.quantities import tokens as short
from llamita.planning.solving import spending_of
from llamita.reporting.plan_canvas import (
    DASHES,
    INCHES,
    PlanFigure,
    log_axis,
    round_text,
    round_total_text,
    total_text,
)
from llamita.reporting.plot_style import COLOURS, GRID, INK, PAPER, SOFT, WARN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 161
_MARKERS = ("*", "o", "s", "D", "^", "v", "P")


def curve_figures(answer: Answer) -> list[PlanFigure]:
    """All but the maps, of an answer under a law."""
    figures = [*_bars(answer), _cost(answer)]
    if found := loss_against_size(answer):
        figures.append(_loss_by_size(answer, found))
    return [*figures, _loss_by_tokens(answer), _one_loss(answer)]


# -- options ---------------------------------------------------------------------------------------


def _bars(answer: Answer) -> list[PlanFigure]:
    """None where a budget for training alone makes all bars equal."""
    totals = [each.total for each in answer.options]
    if max(totals) < 1.001 * min(totals) and not answer.recommended.serving_flops:
        return []
    counted = "Dollars" if answer.in_money else "FLOPs"
    parts = [
        f"{each.label}: {total_text(each.total, answer.in_money)} ({_split(each, answer.in_money)})"
        for each in answer.options
    ]
    what = "Training and serving" if answer.recommended.serving_flops else "Training"
    num = len(answer.options)
    return [
        PlanFigure(
            "options",
            f"{counted} of each option",
            f"{what} of the models in the table of options.",
            "; ".join(parts) + ".",
            (partial(_draw_bars, answer=answer),),
            inches=(INCHES[0], 1.1 + 0.37 * num),
        )
    ]


def _split(each: Option, in_money: bool) -> str:
    training, serving = _parts(each, in_money)
    share = training / (training + serving)
    return f"{share:.0%} training, {1 - share:.0%} serving" if serving else "training alone"


def _parts(each: Option, in_money: bool) -> tuple[float, float]:
    if in_money:
        assert each.training_usd is not None
        return each.training_usd, each.serving_usd or 0.0
    return each.training_flops, each.serving_flops


def _draw_bars(panel: Axes, *, answer: Answer) -> None:
    options = answer.options[::-1]
    parts = [_parts(each, answer.in_money) for each in options]
    places = range(len(options))
    most = max(sum(part) for part in parts)
    serving = any(part[1] for part in parts)
    panel.barh(places, [part[0] for part in parts], 0.62, color=COLOURS[0], label="training")
    if serving:
        left = [part[0] for part in parts]
        panel.barh(
            places, [part[1] for part in parts], 0.62, left, color=COLOURS[1], label="serving"
        )
        panel.legend(loc="upper left", bbox_to_anchor=(-0.02, 0.0), ncols=2, borderpad=0.2)
    for place, part in zip(places, parts, strict=True):
        panel.text(
            sum(part) + most * 0.015,
            place,
            total_text(sum(part), answer.in_money),
            va="center",
            fontsize=8,
        )
    panel.set_yticks(places, [each.label for each in options], color=INK)
    panel.set_xlim(0, most * 1.24)
    panel.set_xticks([])
    panel.grid(False)
    panel.tick_params(length=0)
    panel.spines["bottom"].set_visible(False)


# -- cost and loss against size --------------------------------------------------------------------


def _cost(answer: Answer) -> PlanFigure:
    found = cost_against_size(answer)
    best = min(found, key=lambda each: each.total)
    unit = "Cost" if answer.in_money else "FLOPs"
    serving = any(each.serving_flops for each in found)
    what = "Training falls, and serving rises, with size." if serving else "Nothing is served."
    return PlanFigure(
        "cost-against-size",
        f"{unit} against size, at equal loss",
        f"Models of a loss of {answer.recommended.loss:.4f}, trained until they reach it. {what}"
        + _beyond(found),
        f"From {short(found[0].parameters)} parameters "
        f"({total_text(found[0].total, answer.in_money)}) the total falls to "
        f"{total_text(best.total, answer.in_money)} at {short(best.parameters)} and rises to "
        f"{total_text(found[-1].total, answer.in_money)} at {short(found[-1].parameters)}.",
        (partial(_draw_cost, answer=answer, found=found),),
    )


def _beyond(found: Sequence[Option]) -> str:
    return " Grey: beyond the limits." if any(each.beyond_limits for each in found) else ""


def _draw_cost(panel: Axes, *, answer: Answer, found: Sequence[Option]) -> None:
    sizes = [each.parameters for each in found]
    parts = [_parts(each, answer.in_money) for each in found]
    totals = [sum(part) for part in parts]
    _grey(panel, found)
    panel.plot(sizes, totals, color=COLOURS[0], linewidth=2.2, label="total")
    low = 0.8 * min(totals)
    if any(part[1] for part in parts):
        training, serving = [part[0] for part in parts], [part[1] for part in parts]
        panel.plot(sizes, training, color=COLOURS[2], linestyle=DASHES[1], label="training")
        panel.plot(sizes, serving, color=COLOURS[1], linestyle=DASHES[2], label="serving")
        low = max(min(*training, *serving) * 0.8, min(totals) / 30)
        panel.legend(loc="upper center")
    best = answer.recommended.loss or math.nan
    equal = [each for each in answer.options if math.isclose(each.loss or 0, best, rel_tol=1e-6)]
    _mark(panel, answer, [(each.parameters, each.total) for each in equal])
    in_money = answer.in_money
    log_axis(panel, "x", round_text, sizes[0], sizes[-1])
    log_axis(panel, "y", lambda value: round_total_text(value, in_money), low, 1.1 * max(totals))
    panel.set_xlabel("parameters")
    panel.set_ylabel("dollars" if in_money else "FLOPs")


def _grey(panel: Axes, found: Sequence[Option]) -> None:
    """Over the sizes that the limits forbid."""
    allowed = [each.parameters for each in found if not each.beyond_limits]
    low, high = (min(allowed), max(allowed)) if allowed else (found[-1].parameters,) * 2
    for left, right in ((found[0].parameters, low), (high, found[-1].parameters)):
        if right > left:
            panel.axvspan(left, right, color=GRID, alpha=0.55, zorder=0, linewidth=0)


def _mark(
    panel: Axes,
    answer: Answer,
    places: Sequence[tuple[float, float]],
    offset: tuple[float, float] = (0, 10),
) -> None:
    """The recommended option as a star with its size, the others as small dots."""
    for number, (x, y) in enumerate(places):
        if number:
            panel.plot([x], [y], "o", color=SOFT, markersize=4, zorder=4)
    (x, y), best = places[0], answer.recommended
    panel.plot([x], [y], "*", color=WARN, markersize=13, markeredgecolor=PAPER, zorder=5)
    panel.annotate(
        short(best.parameters),
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] else "center",
        fontweight="bold",
        color=WARN,
    )


def _loss_by_size(answer: Answer, found: Sequence[Option]) -> PlanFigure:
    best = min(found, key=lambda each: each.loss or math.inf)
    return PlanFigure(
        "loss-against-size",
        "Loss against size, for the budget",
        "What each size reaches with all that the budget pays for. Dots: the other options."
        + _beyond(found),
        f"Least at {short(best.parameters)} parameters, {best.loss:.4f}; {found[0].loss:.4f} at "
        f"{short(found[0].parameters)} and {found[-1].loss:.4f} at {short(found[-1].parameters)}.",
        (partial(_draw_loss_by_size, answer=answer, found=found),),
    )


def _draw_loss_by_size(panel: Axes, *, answer: Answer, found: Sequence[Option]) -> None:
    _grey(panel, found)
    losses = [each.loss or math.nan for each in found]
    panel.plot([each.parameters for each in found], losses, color=COLOURS[0], linewidth=2.2)
    _mark(panel, answer, [(each.parameters, each.loss or math.nan) for each in answer.options])
    log_axis(panel, "x", round_text, found[0].parameters, found[-1].parameters)
    low = min(losses)
    room = min(max(losses), low * 1.35) - low
    panel.set_ylim(low - 0.08 * room, low + 1.05 * room)
    panel.set_xlabel("parameters")
    panel.set_ylabel(f"loss, {_unit(answer)}")


def _unit(answer: Answer) -> str:
    assert answer.question is not None
    return answer.question.law.loss


# -- loss against tokens ---------------------------------------------------------------------------


def _loss_by_tokens(answer: Answer) -> PlanFigure:
    question = answer.question
    assert question is not None
    unique = question.unique
    shown = _distinct(answer)
    ends = [each.tokens for each in shown] + ([] if unique is None else [unique, 16 * unique])
    grid = spaced(min(ends) / 8, max(ends) * 8, _POINTS)
    curves = [loss_against_tokens(question.law, each.parameters, grid, unique) for each in shown]
    repeated = ""
    if unique is not None:
        repeated = (
            f" Dashed: every token fresh; solid: drawn from {short(unique)} unique tokens (dotted "
            "line), repeated beyond them."
        )
    sentences = [
        f"{_named(each)}: {each.loss:.4f} after {short(each.tokens)} tokens" for each in shown
    ]
    return PlanFigure(
        "loss-against-tokens",
        "Loss against tokens",
        f"Each size as it is trained; marks where it would stop.{repeated}",
        "; ".join(sentences) + "." + _gap(curves[0], unique),
        (partial(_draw_loss_by_tokens, answer=answer, shown=shown, curves=curves),),
    )


def _distinct(answer: Answer) -> list[Option]:
    """The recommended option, the chosen and the compute-optimal one, else the next two; without
    those whose curves would lie on another's."""
    wanted = [
        each
        for each in answer.options[1:]
        if each.label.startswith("the chosen") or each.label == "compute-optimal"
    ]
    shown = [answer.recommended]
    for each in wanted or answer.options[1:3]:
        if all(abs(math.log(each.parameters / one.parameters)) > 0.05 for one in shown):
            shown.append(each)
    return shown


def _named(each: Option) -> str:
    size = short(each.parameters)
    return each.label if each.label.endswith(f" {size}") else f"{each.label}, {size}"


def _gap(curve: LossCurve, unique: float | None) -> str:
    if unique is None or curve.repeated is None:
        return ""
    fresh, repeated = curve.fresh[-1], curve.repeated[-1]
    return (
        f" After {curve.tokens[-1] / unique:.3g} epochs {short(curve.parameters)} would stand at "
        f"{repeated:.4f}, and at {fresh:.4f} were all of it fresh."
    )


def _draw_loss_by_tokens(
    panel: Axes, *, answer: Answer, shown: Sequence[Option], curves: Sequence[LossCurve]
) -> None:
    assert answer.question is not None
    unique = answer.question.unique
    for number, (each, curve) in enumerate(zip(shown, curves, strict=True)):
        colour = COLOURS[number]
        name = _named(each)
        dash, width = ("-", 1.9) if not curve.repeated else (DASHES[1], 1.1)
        if curve.repeated:
            panel.plot(curve.tokens, curve.repeated, color=colour, linewidth=1.9, label=name)
        panel.plot(
            curve.tokens,
            curve.fresh,
            color=colour,
            label=None if curve.repeated else name,
            linestyle=dash,
            linewidth=width,
        )
        star = number == 0
        panel.plot(
            [each.tokens],
            [math.nan if each.loss is None else each.loss],
            _MARKERS[number],
            color=WARN if star else colour,
            markersize=13 if star else 6,
            markeredgecolor=PAPER,
            zorder=5,
        )
    log_axis(panel, "x", round_text, curves[0].tokens[0], curves[0].tokens[-1])
    panel.set_xlabel("tokens")
    panel.set_ylabel(f"loss, {_unit(answer)}")
    panel.legend(loc="upper right")
    if unique is not None:
        panel.axvline(unique, color=SOFT, linestyle=DASHES[2], linewidth=1)
        epochs = [count for count in (1, 4, 16, 64) if count * unique < curves[0].tokens[-1]]
        top = panel.secondary_xaxis("top")
        top.set_xticks([count * unique for count in epochs], [f"{count}" for count in epochs])
        top.minorticks_off()
        top.set_xlabel("epochs", fontsize=8)


# -- N against D at one loss -----------------------------------------------------------------------


def _one_loss(answer: Answer) -> PlanFigure:
    question, best = answer.question, answer.recommended
    assert question is not None
    fitted = ""
    if question.law.fitted_parameters and question.law.fitted_tokens:
        fitted = f" Grey: where the runs behind {question.law.name} lie."
    options = "; ".join(
        f"{_named(each)}: {short(each.tokens)} tokens, {each.loss:.4f}" for each in answer.options
    )
    return PlanFigure(
        "equal-loss",
        "Parameters against tokens, at equal loss",
        f"Thick: all that reach a loss of {best.loss:.4f}; thin: other losses. Dotted: all that "
        f"cost as much as the recommended. Dashed: the compute-optimal path.{fitted}",
        f"{options}.",
        (partial(_draw_one_loss, answer=answer),),
    )


def _draw_one_loss(panel: Axes, *, answer: Answer) -> None:
    question = answer.question
    assert question is not None
    law = question.law
    sizes = [each.parameters for each in answer.options]
    counts = [each.tokens for each in answer.options]
    left, right = min(sizes) / 3, max(sizes) * 3
    bottom, top = min(counts) / 3, max(counts) * 3
    log_axis(panel, "x", round_text, left, right)
    log_axis(panel, "y", round_text, bottom, top)
    grid = spaced(left, right, _POINTS)
    if law.fitted_parameters and law.fitted_tokens:
        (low_n, high_n), (low_d, high_d) = law.fitted_parameters, law.fitted_tokens
        panel.fill_between(
            [low_n, high_n], low_d, high_d, color=GRID, alpha=0.55, zorder=0, linewidth=0
        )
    _contours(panel, question, answer.recommended.loss or math.nan, grid)
    equal = _equal_cost(question, answer.recommended, grid)
    panel.plot(grid, equal, color=COLOURS[1], linestyle=DASHES[2], linewidth=1.3)
    path = [law.optimal_tokens(size) for size in grid]
    panel.plot(grid, path, color=COLOURS[2], linestyle=DASHES[1], linewidth=1.2)
    _mark(panel, answer, list(zip(sizes, counts, strict=True)), offset=(7, 5))
    panel.set_xlabel("parameters")
    panel.set_ylabel("tokens")


def _contours(panel: Axes, question: Question, middle: float, sizes: Sequence[float]) -> None:
    """Lines of equal loss, each with its loss where it leaves the panel."""
    law, (bottom, top) = question.law, panel.get_ylim()
    for step in (-2, -1, 0, 1, 2):
        loss = law.E + (middle - law.E) * 1.12**step
        points = tokens_of_loss(law, loss, sizes, question.unique)
        points = [point for point in points if point[1] < 2 * top]
        shown = [point for point in points if point[1] > bottom * 1.02]
        width = 0.8 if step else 2.2
        x, y = [n for n, _ in points], [d for _, d in points]
        panel.plot(x, y, color=COLOURS[0], linewidth=width)
        if shown:
            right = shown[-1] == points[-1]
            panel.annotate(
                f"{loss:.3g}",
                shown[-1],
                xytext=(3, 0) if right else (4, 2),
                textcoords="offset points",
                va="center" if right else "bottom",
                fontsize=7.5,
                color=COLOURS[0],
                annotation_clip=False,
            )


def _equal_cost(question: Question, best: Option, sizes: Sequence[float]) -> list[float]:
    """Tokens of each size that cost as much in all as the recommended model; NaN where none do."""
    spending = spending_of(question)
    cost = best.parameters * (spending.training * best.tokens + spending.serving)
    counts = [(cost / size - spending.serving) / spending.training for size in sizes]
    return [count if count > 0 else math.nan for count in counts]
