"""The page of `llamita plan`: one HTML file with everything in it, and no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamita.errors import UserError
from llamita.planning.answer import Answer, Option
from llamita.planning.answer_text import loss_text, money
from llamita.planning.laws import Law
from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short
from llamita.reporting import plan_sections as sections
from llamita.reporting import report_html as html
from llamita.reporting.page_frame import again, figures_of, tiles, whole_page
from llamita.reporting.plan_canvas import PlanFigure, flops_text
from llamita.reporting.plan_map_drawings import reading
from llamita.reporting.plan_plots import page_figures
from llamita.reporting.plot_style import require_matplotlib
from llamita.reporting.report_html import text


def write_plan_page(
    answer: Answer,
    path: Path,
    *,
    command: Sequence[str] = (),
    figures: Sequence[PlanFigure] = (),
) -> Path:
    """The answer as one page, with its figures; returns where it lies.

    Args:
        command: what gives the same answer, word for word; none: the page does not say.
        figures: more of them, such as `plan_plots.memory_bars`.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    require_matplotlib("the page's figures are", "--html")
    if path.is_dir():
        raise UserError(f"--html {path} is a directory: name a file, such as {path / 'plan.html'}")
    page = render_plan(answer, command=command, figures=figures)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}") from error
    return path


def render_plan(
    answer: Answer, *, command: Sequence[str] = (), figures: Sequence[PlanFigure] = ()
) -> str:
    """The page as text. The same answer gives the same bytes."""
    drawn = [*page_figures(answer), *figures]
    maps = [each for each in drawn if each.key.startswith("map-")]
    others = [each for each in drawn if each not in maps]
    parts = [
        sections.warnings(answer),
        sections.options(answer),
        sections.facts(answer),
        _figures("figures", "The trade-off", others),
        _figures("maps", "Beside the compute-optimal model", maps, _reading(answer)),
        sections.changes(answer),
        sections.candidates(answer),
        sections.repeats(answer),
        sections.assumptions(answer),
        sections.law(answer.law),
        again(command),
    ]
    return whole_page(answer.words, "plan", _header(answer), parts, "plan.css", "Worked out")


# -- head ------------------------------------------------------------------------------------------


def _header(answer: Answer) -> str:
    return (
        f'<header><p class="kicker"><b>llamita</b> plan</p><h1>{text(answer.words)}</h1>'
        f'<p class="hero">{_recommendation(answer)}</p>{_tiles(answer)}</header>'
    )


def _recommendation(answer: Answer) -> str:
    best = answer.recommended
    sentence = (
        f"<b>{text(short(best.parameters))} parameters</b> trained on "
        f"<b>{text(short(best.tokens))} tokens</b>"
    )
    if best.loss is not None:
        sentence += f" reach a loss of {loss_text(best.loss)}"
    served = ", training and serving together" if best.serving_flops else ""
    sentence += f", for <b>{text(_total(best))}</b>{served}."
    rival = next((each for each in answer.options if each.label == "compute-optimal"), None)
    held = answer.question is not None and answer.question.loss is not None
    if rival is not None and held and rival.total > best.total * 1.0005:
        saved = 1 - best.total / rival.total
        sentence += (
            f" The compute-optimal {text(short(rival.parameters))} reaches the same; "
            f"this saves <b>{saved:.1%}</b> of what it takes in all."
        )
    return sentence


def _total(each: Option) -> str:
    if each.total_usd is not None:
        return money(each.total_usd)
    return f"{flops_text(each.total_flops)} FLOPs"


def _tiles(answer: Answer) -> str:
    best = answer.recommended
    serving = bool(best.serving_flops)
    unit = answer.law.loss if isinstance(answer.law, Law) else ""
    found = [
        ("Parameters", short(best.parameters), f"{best.parameters:,.0f}"),
        (
            "Tokens",
            short(best.tokens),
            f"{sections.three_figures(best.tokens_per_parameter)} a parameter",
        ),
    ]
    if best.loss is not None:
        found.append(("Loss", loss_text(best.loss), unit))
    if best.total_usd is not None:
        parts = f"train {money(best.training_usd or 0)}, serve {money(best.serving_usd or 0)}"
        found.append(("Cost", money(best.total_usd), parts if serving else "training"))
    flops = "training"
    if serving:
        flops = f"train {flops_text(best.training_flops)}, serve {flops_text(best.serving_flops)}"
    found.append(("FLOPs", flops_text(best.total_flops), flops))
    if best.training_seconds is not None:
        found.append(("Training time", duration(best.training_seconds), _hardware(answer)))
    if best.epochs is not None:
        found.append(("Epochs", f"{best.epochs:.2f}", "of the unique text"))
    return tiles(found, "plan-tiles")


def _hardware(answer: Answer) -> str:
    engine = None if answer.question is None else answer.question.economics.training
    return "" if engine is None else f"{engine.hardware.label}, {engine.mfu:.0%} MFU"


# -- figures ---------------------------------------------------------------------------------------


def _figures(key: str, title: str, shown: Sequence[PlanFigure], note: str = "") -> str:
    if not shown:
        return ""
    aside = f"<h3>How to read them</h3><p>{text(note)}</p>" if note else ""
    return html.section(key, title, figures_of(shown, aside))


def _reading(answer: Answer) -> str:
    return "" if answer.question is None else reading(answer.question.demand)
