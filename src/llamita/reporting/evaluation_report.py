"""The page of `llamita eval`: one HTML file with everything in it, and no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamita.errors import UserError
from llamita.evaluation.comparison_text import mean_of, when, written
from llamita.evaluation.published import PublishedTable
from llamita.evaluation.results import Evaluation
from llamita.planning.quantities import tokens as short
from llamita.reporting import evaluation_sections as sections
from llamita.reporting.evaluation_beside import beside_published, compared
from llamita.reporting.evaluation_sections import Shown
from llamita.reporting.evaluation_training import along_training
from llamita.reporting.page_frame import again, tiles, whole_page, write_page
from llamita.reporting.report_html import text


def write_evaluation_page(
    evaluations: Sequence[Evaluation],
    path: Path,
    *,
    published: Sequence[PublishedTable] = (),
    command: Sequence[str] = (),
) -> Path:
    """What one or several models scored as one page; returns where it lies.

    Args:
        evaluations: the first is the one that the others are compared with.
        published: tables of papers' to put beside them.
        command: what gives the same again, word for word; none: the page does not say.

    Raises:
        UserError: nothing was scored, or the file cannot be written.
    """
    if not any(each.scores for each in evaluations):
        raise UserError("no task was scored: there is nothing to draw a page of")
    page = render_evaluations(evaluations, published=published, command=command)
    return write_page(page, path, "eval.html")


def render_evaluations(
    evaluations: Sequence[Evaluation],
    *,
    published: Sequence[PublishedTable] = (),
    command: Sequence[str] = (),
) -> str:
    """The page as text. The same results give the same bytes."""
    shown = Shown.of(evaluations, published)
    parts = [
        sections.scores(shown),
        along_training(shown),
        beside_published(shown),
        compared(shown),
        sections.contamination(shown),
        sections.missing(shown),
        sections.all_scores(shown),
        sections.asked(shown),
        again(command),
    ]
    title = _title(evaluations)
    return whole_page(title, "eval", _header(title, shown), parts, "evaluation.css", "Drawn")


def _title(evaluations: Sequence[Evaluation]) -> str:
    return evaluations[0].model if len(evaluations) == 1 else f"{len(evaluations)} results"


# -- head ------------------------------------------------------------------------------------------


def _header(title: str, shown: Shown) -> str:
    return (
        f'<header><p class="kicker"><b>llamita</b> eval</p><h1>{text(title)}</h1>'
        f"{_hero(shown)}{_names(shown)}{_tiles(shown)}</header>"
    )


def _hero(shown: Shown) -> str:
    """The mean of a published table's tasks, where one model has them all, and its place."""
    for table in shown.published if len(shown.evaluations) == 1 else ():
        scores = [each for each in table.chosen(shown.evaluations[0].shown) if each is not None]
        means = [(row.model, row.mean) for row in table.rows if row.mean is not None]
        if not table.comparable or len(scores) < len(table.tasks) or not means:
            continue
        found = mean_of(scores)
        half = 100 * (found.high - found.low) / 2
        return (
            f'<p class="hero">A mean of <b>{written(found.value, True)} ± {half:.1f}</b> over '
            f"{len(scores)} tasks{_among(found.value, means)}.</p>"
        )
    return ""


def _among(value: float, means: Sequence[tuple[str, float]]) -> str:
    """Between which published means a mean lies."""
    ordered = sorted(means, key=lambda each: each[1])
    below = [each for each in ordered if each[1] <= value][-1:]
    above = [each for each in ordered if each[1] > value][:1]
    said = [f"{text(name)} (<b>{written(mean, True)}</b>)" for name, mean in (*below, *above)]
    if len(said) == 2:
        return f", between {said[0]} and {said[1]}"
    return (
        f", above {said[0]} and all others published"
        if below
        else f", below {said[0]}, the least published"
    )


def _names(shown: Shown) -> str:
    if len(shown.evaluations) == 1:
        each = shown.evaluations[0]
        trained = f", trained on {short(each.tokens)} tokens" if each.tokens else ""
        return f'<p class="lead">{text(f"Evaluated {when(each)}{trained}")}</p>'
    return f'<ul class="names">{shown.legend()}</ul>'


def _tiles(shown: Shown) -> str:
    scores = [score for each in shown.evaluations for score in each.shown]
    tasks = {each.task for each in scores}
    asked = {
        (number, each.task): len(each.values)
        for number, evaluation in enumerate(shown.evaluations)
        for each in evaluation.shown
    }
    found = [
        ("Tasks", f"{len(tasks):,}", f"{len(scores)} scores"),
        ("Items", f"{sum(asked.values()):,}", "asked in all"),
    ]
    guessed = [each for each in scores if each.chance is not None]
    if guessed:
        lucky = sum(each.not_above_chance for each in guessed)
        found.append(("Not above chance", f"{lucky:,}", f"of {len(guessed)} scores"))
    sought = [each for each in scores if each.contaminated is not None]
    if sought:
        seen = sum(len(each.contaminated or ()) for each in sought)
        items = sum(len(each.values) for each in sought)
        found.append(("Contaminated", f"{seen:,}", f"of {items:,} items looked for"))
    missing = {each.task for evaluation in shown.evaluations for each in evaluation.missing}
    if missing:
        found.append(("Not scored", f"{len(missing):,}", "see below"))
    return tiles(found, "eval-tiles")
