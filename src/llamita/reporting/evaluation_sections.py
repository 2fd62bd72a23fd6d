"""The sections of an evaluation's page. Each is HTML, and empty where there is nothing to say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llamita.evaluation.comparison_text import (
    interval_text,
    items_text,
    names_of,
    written,
)
from llamita.evaluation.published import PublishedTable
from llamita.evaluation.results import Evaluation, TaskScore
from llamita.reporting import report_html as html
from llamita.reporting.evaluation_drawings import Bars, bars
from llamita.reporting.report_compare import swatch
from llamita.reporting.report_figures import NUM_COLOURS
from llamita.reporting.report_html import text

_CHECKPOINT = re.compile(r"(?P<run>.+)/(?:step-\d+|final)/?")
_METRICS = {
    "acc": "right where the right choice has the greatest log-likelihood",
    "acc_norm": "right where it has the greatest log-likelihood for each character of the choice",
    "acc_bytes": "right where it has the greatest log-likelihood for each byte of the choice",
    "exact_match": "right where the answer is the expected one, after the filter named",
    "pass@1": "the share of problems that a sample solves, judged by running it",
    "bits_per_byte": "bits of log-likelihood for each byte of text; less is better",
}


@dataclass(frozen=True)
class Shown:
    """What a page is of.

    published: tables with a column that was measured. featured: the evaluations, by number, that
    have a colour and lanes of their own: all, or of many a run's last.
    """

    evaluations: tuple[Evaluation, ...]
    published: tuple[PublishedTable, ...]
    names: tuple[str, ...]
    featured: tuple[int, ...]

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], published: Sequence[PublishedTable]) -> Shown:
        measured = {each.task for evaluation in evaluations for each in evaluation.shown}
        featured = list(range(len(evaluations)))
        if len(evaluations) > NUM_COLOURS:
            last: dict[str, int] = {}
            for number in sorted(featured, key=lambda each: evaluations[each].tokens or 0):
                last[run_of(evaluations[number])] = number
            featured = sorted(last.values())
        return cls(
            tuple(evaluations),
            tuple(t for t in published if measured & {column.task for column in t.tasks}),
            tuple(names_of(evaluations)),
            tuple(featured),
        )

    def legend(self) -> str:
        """The featured ones and their colours, as items of a list."""
        return "".join(
            f"<li>{swatch(colour)}{text(self.names[number])}</li>"
            for colour, number in enumerate(self.featured)
        )

    def measured(self) -> list[tuple[str, str]]:
        """Tasks and metrics of all, in order of appearance."""
        found = [(s.task, s.metric) for each in self.evaluations for s in each.shown]
        return list(dict.fromkeys(found))


def run_of(evaluation: Evaluation) -> str:
    """What an evaluation is a checkpoint of: the run's directory, or the MODEL itself."""
    found = _CHECKPOINT.fullmatch(evaluation.model)
    return found["run"] if found else evaluation.model


# -- scores ----------------------------------------------------------------------------------------


def scores(shown: Shown) -> str:
    """Bars of everything that is a share."""
    tasks = []
    for task, metric in shown.measured():
        found = [shown.evaluations[number].score(task, metric) for number in shown.featured]
        known = [each for each in found if each is not None]
        if known and all(each.is_share for each in known):
            tasks.append(Bars(task, tuple(found), tuple(_peers(shown.published, task, metric))))
    rest = _other_units(shown)
    if not tasks:
        return html.section("scores", "Scores", rest) if rest else ""
    keys = [('<i class="key-interval"></i>', "95% interval")]
    if any(each.chance is not None for task in tasks for each in task.scores if each):
        keys.append(('<i class="key-chance"></i>', "chance (*: not above it)"))
    if any(task.peers for task in tasks):
        keys.append(('<i class="key-peer"></i>', "published models"))
    legend = "".join(f"<li>{mark}{text(words)}</li>" for mark, words in keys)
    note = ""
    if len(shown.featured) < len(shown.evaluations):
        note = aside(
            f"Of {len(shown.evaluations)} results the last of each run is drawn; all are in the "
            "tables below."
        )
    body = bars(tasks, [shown.names[number] for number in shown.featured])
    return html.section("scores", "Scores", f'<ul class="names">{legend}</ul>{body}{note}{rest}')


def _other_units(shown: Shown) -> str:
    """What is no share, such as bits per byte: a row a task, a column a result."""
    rows = []
    for task, metric in shown.measured():
        found = [each.score(task, metric) for each in shown.evaluations]
        if all(each is None or each.is_share for each in found):
            continue
        cells = []
        for each in found:
            where = "" if each is None else _interval(each)
            cells.append("–" if each is None else f"{_value(each)} <small>{where}</small>")
        rows.append([text(task), text(metric), *cells])
    heading = ["Score"] if len(shown.evaluations) == 1 else shown.names
    return html.table(["Task", "Metric", *heading], rows, style="numbers") if rows else ""


def _value(score: TaskScore) -> str:
    return written(score.estimate.value, score.is_share)


def _interval(score: TaskScore) -> str:
    return interval_text(score.estimate.low, score.estimate.high, score.is_share)


def _peers(tables: Iterable[PublishedTable], task: str, metric: str) -> Iterator[tuple[str, float]]:
    for table in tables:
        for column, each in enumerate(table.tasks):
            if table.comparable and (each.task, each.metric) == (task, metric):
                yield from ((row.model, row.scores[column]) for row in table.rows)


def all_scores(shown: Shown) -> str:
    """Every score of every result; a group's tasks folded below it."""
    parts = []
    for name, evaluation in zip(shown.names, shown.evaluations, strict=True):
        body = _score_table(evaluation.shown)
        for group in evaluation.groups:
            members = [
                each
                for each in evaluation.scores
                if (each.group, each.metric) == (group.task, group.metric)
            ]
            title = f"{len(members)} tasks of {group.task} ({group.metric})"
            body += html.folded(title, _score_table(members))
        single = len(shown.evaluations) == 1
        parts.append(body if single else html.folded(name, body, opened=True))
    note = aside("±: one standard error. Shares are in per cent.")
    return html.section("all-scores", "All scores", note + "".join(parts))


def _score_table(found: Sequence[TaskScore]) -> str:
    headings = ["Task", "Metric", "Shots", "Score", "±", "95% interval", "Chance", "Items", ""]
    rows = []
    for each in found:
        estimate, share = each.estimate, each.is_share
        luck = '<span class="luck">not above chance</span>' if each.not_above_chance else ""
        rows.append(
            [
                text(each.task),
                text(each.metric),
                str(each.num_fewshot),
                written(estimate.value, share),
                written(estimate.stderr, share),
                interval_text(estimate.low, estimate.high, share),
                "–" if each.chance is None else written(each.chance, share),
                items_text(each),
                luck,
            ]
        )
    return html.table(headings, rows, style="numbers")


# -- what a reader has to know ---------------------------------------------------------------------


def contamination(shown: Shown) -> str:
    """Scores with and without the items that were found in the training text."""
    parts = []
    for name, evaluation in zip(shown.names, shown.evaluations, strict=True):
        sought = [each for each in evaluation.shown if each.contaminated is not None]
        if not sought:
            continue
        rows = [_with_and_without(each) for each in sought if each.contaminated]
        heading = f"<h3>{text(name)}</h3>" if len(shown.evaluations) > 1 else ""
        headings = ["Task", "Metric", "Items", "Found", "All items", "Without those found"]
        none = len(sought) - len(rows)
        said = f"Of {none} of {len(sought)} tasks no item was found." if none else ""
        table = html.table(headings, rows, style="numbers") if rows else ""
        parts.append(heading + table + (aside(said) if said else ""))
    if not parts:
        return ""
    note = aside("Items whose words were looked for, and found, in the model's training text.")
    return html.section("contamination", "Contamination", note + "".join(parts))


def _with_and_without(score: TaskScore) -> list[str]:
    cells = []
    for each in (score, score.clean):
        if each is None:
            cells.append("– (none left)")
        else:
            cells.append(f"{_value(each)} <small>{_interval(each)}</small>")
    num = len(score.contaminated or ())
    return [text(score.task), text(score.metric), items_text(score), f"{num:,}", *cells]


def missing(shown: Shown) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for name, evaluation in zip(shown.names, shown.evaluations, strict=True):
        for each in evaluation.missing:
            found.setdefault((each.task, each.why), []).append(name)
    if not found:
        return ""
    items = "".join(
        f"<li><b>{text(task)}</b>: {text(why)}"
        + (f" <small>({text(', '.join(names))})</small>" if len(shown.evaluations) > 1 else "")
        + "</li>"
        for (task, why), names in found.items()
    )
    return html.section("missing", "Not scored", f'<ul class="plain">{items}</ul>')


def asked(shown: Shown) -> str:
    """Settings and versions of each result, and of each task what the model read."""
    parts = []
    for name, evaluation in zip(shown.names, shown.evaluations, strict=True):
        known = [
            ("Weights", evaluation.fingerprint),
            ("Date", evaluation.date),
            *((what, _plain(value)) for what, value in evaluation.settings.items()),
            *((f"{what}, version", version) for what, version in evaluation.versions.items()),
            *((what, f"{count:,}") for what, count in evaluation.counts.items()),
        ]
        single = len(shown.evaluations) == 1
        body = html.pairs(known)
        parts.append(body if single else html.folded(name, body))
    first: dict[str, list[TaskScore]] = {}
    for evaluation in shown.evaluations:
        leaders = {(each.group or each.task): each.task for each in reversed(evaluation.scores)}
        for each in evaluation.scores:
            if leaders[each.group or each.task] == each.task:
                found = first.setdefault(each.task, [])
                if each.metric not in {other.metric for other in found}:
                    found.append(each)
    parts += [_how(task, found) for task, found in first.items()]
    return html.section("asked", "How it was asked", "".join(parts))


def _plain(value: Any) -> str:
    if value is None or value is False:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _how(task: str, found: Sequence[TaskScore]) -> str:
    """One task's terms, its first item's prompt, and lm-eval's config of it."""
    one = found[0]
    metrics = {each.metric: _METRICS.get(each.metric.partition(",")[0], "") for each in found}
    body = html.pairs(
        [
            ("Asked and judged by", one.harness),
            ("Task version", one.version),
            ("Shots", one.num_fewshot),
            ("First of its group", one.group),
            *(
                (metric, words or "as the task's config has it")
                for metric, words in metrics.items()
            ),
        ]
    )
    if one.samples and (prompt := _prompt(one.samples[0].get("arguments"))):
        body += f"<h4>The first item, as the model read it</h4>{html.code(prompt)}"
    if one.config:
        config = json.dumps(one.config, indent=1, ensure_ascii=False, default=str)
        body += f"<h4>The task's config</h4>{html.code(config)}"
    return html.folded(task, body)


def _prompt(arguments: Any) -> str:
    """The first request's context and, for choices, each continuation, from a record's arguments:
    lm-eval's in memory (requests in order) or in a file (gen_args_0.arg_0)."""
    requests = list(arguments.values()) if isinstance(arguments, dict) else list(arguments or ())
    found = [list(each.values()) if isinstance(each, dict) else list(each) for each in requests]
    if not found or not found[0]:
        return ""
    continuations = [each[1] for each in found if len(each) > 1 and isinstance(each[1], str)]
    return "\n".join([str(found[0][0]), *(f"→{each}" for each in continuations)])


def aside(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'
