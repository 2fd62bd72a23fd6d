"""Scores against training tokens, where checkpoints of a run were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from llamita.evaluation.comparison_text import mean_of
from llamita.evaluation.intervals import Estimate
from llamita.evaluation.published import PublishedTable
from llamita.evaluation.results import Evaluation
from llamita.reporting import report_html as html
from llamita.reporting.evaluation_drawings import Curve, curves
from llamita.reporting.evaluation_sections import Shown, run_of
from llamita.reporting.report_compare import swatch
from llamita.reporting.report_html import text

_Points = list[tuple[int, Estimate]]


def along_training(shown: Shown) -> str:
    """A plot a task, and one of each published table's mean; empty unless some run has two
    checkpoints of known tokens."""
    runs: dict[str, dict[int, Evaluation]] = {}
    for each in sorted(shown.evaluations, key=lambda evaluation: evaluation.date):
        if each.tokens:
            # Of two results of one checkpoint the newer one.
            runs.setdefault(run_of(each), {})[each.tokens] = each
    if not any(len(found) > 1 for found in runs.values()):
        return ""
    plots = [
        _plot(
            f"Mean of {len(table.tasks)} tasks", "as the published table has it", drawn, None, True
        )
        for table in shown.published
        if table.comparable and (drawn := _means(runs, table))
    ]
    for task, metric in shown.measured():
        drawn = _drawn(runs, partial(_estimate, task=task, metric=metric))
        known = [s for each in shown.evaluations if (s := each.score(task, metric)) is not None]
        if drawn and known:
            chance = known[0].chance
            peers = _peers(shown.published, task, metric)
            share = all(each.is_share for each in known)
            plots.append(_plot(task, metric, [*drawn, *peers], chance, share))
    legend = "".join(f"<li>{swatch(n)}{text(name)}</li>" for n, name in enumerate(runs))
    legend += '<li><i class="key-dots"></i>chance</li>'
    if any(row.tokens and row.of for table in shown.published for row in table.rows):
        legend += '<li><i class="key-dash"></i>published checkpoints</li>'
    note = "Lines through the marks: 95% intervals. Tokens on a logarithmic axis."
    body = (
        f'<ul class="names">{legend}</ul><p class="note">{note}</p>'
        f'<div class="figures three">{"".join(plots)}</div>'
    )
    return html.section("training", "Along training", body) if plots else ""


def _estimate(evaluation: Evaluation, *, task: str, metric: str) -> Estimate | None:
    score = evaluation.score(task, metric)
    return None if score is None else score.estimate


def _drawn(
    runs: dict[str, dict[int, Evaluation]], find: Callable[[Evaluation], Estimate | None]
) -> list[Curve]:
    """A curve a run that has the score at two checkpoints or more, a point for a run with one."""
    found = []
    for number, (name, checkpoints) in enumerate(runs.items()):
        points: _Points = [
            (tokens, estimate)
            for tokens, each in sorted(checkpoints.items())
            if (estimate := find(each)) is not None
        ]
        if points:
            drawn = tuple((at, each.value, each.low, each.high) for at, each in points)
            found.append(Curve(name, drawn, number))
    return found


def _means(runs: dict[str, dict[int, Evaluation]], table: PublishedTable) -> list[Curve]:
    def mean(each: Evaluation) -> Estimate | None:
        scores = [score for score in table.chosen(each.shown) if score is not None]
        return mean_of(scores) if len(scores) == len(table.tasks) else None

    drawn = _drawn(runs, mean)
    peers = _published([(row.of, row.tokens, row.mean) for row in table.rows])
    return [*drawn, *peers] if drawn else []


def _peers(tables: Sequence[PublishedTable], task: str, metric: str) -> list[Curve]:
    return [
        curve
        for table in tables
        for column, each in enumerate(table.tasks)
        if table.comparable and (each.task, each.metric) == (task, metric)
        for curve in _published((row.of, row.tokens, row.scores[column]) for row in table.rows)
    ]


def _published(rows: Iterable[tuple[str | None, int | None, float | None]]) -> list[Curve]:
    """A curve for each model that a paper gives checkpoints of."""
    models: dict[str, list[tuple[int, float, float, float]]] = {}
    for of, tokens, value in rows:
        if of is not None and tokens is not None and value is not None:
            models.setdefault(of, []).append((tokens, value, value, value))
    return [Curve(name, tuple(sorted(points)), None) for name, points in models.items()]


def _plot(title: str, about: str, drawn: Sequence[Curve], chance: float | None, share: bool) -> str:
    return (
        f'<figure class="plot"><figcaption><h3>{text(title)}</h3>'
        f'<p class="note">{text(about)}</p></figcaption>'
        f"{curves(title, drawn, chance, share)}</figure>"
    )
