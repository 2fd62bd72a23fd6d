"""Scores, published tables and comparisons as lines of plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from statistics import NormalDist
from textwrap import wrap

from llamita.evaluation.comparison import Comparison, Pair
from llamita.evaluation.intervals import Estimate
from llamita.evaluation.published import PublishedTable, differs
from llamita.evaluation.results import Evaluation, TaskScore
from llamita.planning.answer_text import table
from llamita.planning.quantities import tokens as short

_Z = NormalDist().inv_cdf(0.975)
_COLUMNS = 110
"""Of sentences; tables take what they need."""
_LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖ"
_SETTINGS = ("limit", "engine", "dtype")
"""Of the settings, those that stand in a result's second line."""


# -- values ----------------------------------------------------------------------------------------


def written(value: float, share: bool) -> str:
    """A score: in per cent with two digits where it is a share, else with four."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.2f}" if share else f"{value:.4f}"


def interval_text(low: float, high: float, share: bool, sign: bool = False) -> str:
    """`[28.1, 46.5]`; of a difference `[−1.2, +4.0]`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    digits = ".1f" if share else ".4f"
    ends = (
        f"{100 * each if share else each:{'+' if sign else ''}{digits}}" for each in (low, high)
    )
    return f"[{', '.join(ends)}]".replace("-", "−")


def signed(value: float, share: bool) -> str:
    """`+4.00`, `−0.0312`."""
    return f"{100 * value:+.2f}".replace("-", "−") if share else f"{value:+.4f}".replace("-", "−")


def p_text(p: float) -> str:
    """`0.03`, `<0.001`."""
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def items_text(score: TaskScore) -> str:
    """`1,838`, or `100 of 10,042` where not all were asked."""
    num = len(score.values)
    if score.available is None or score.available == num:
        return f"{num:,}"
    return f"{num:,} of {score.available:,}"


def mean_of(scores: Sequence[TaskScore]) -> Estimate:
    """The mean of tasks' scores, each task counting the same, as papers' tables have it.

    Its standard error is that of a mean of independent means, √Σs² / k.
    """
    found = [each.estimate for each in scores]
    value = sum(each.value for each in found) / len(found)
    stderr = math.hypot(*(each.stderr for each in found)) / len(found)
    half = _Z * stderr
    return Estimate(value, stderr, value - half, value + half, sum(each.n for each in found))


def names_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """What each is called, told apart by tokens or date where the model is the same."""
    names = [each.model for each in evaluations]
    found = []
    for name, each in zip(names, evaluations, strict=True):
        if names.count(name) > 1:
            same = [other for other in evaluations if other.model == name]
            tokens = {other.tokens for other in same}
            told = len(tokens) == len(same) and each.tokens is not None
            name += (
                f" ({short(each.tokens)} tokens)" if told and each.tokens else (f" ({when(each)})")
            )
        found.append(name)
    return found


def when(evaluation: Evaluation) -> str:
    """`2026-03-01 14:05`; a date that is none is shown as it stands."""
    try:
        return f"{datetime.fromisoformat(evaluation.date):%Y-%m-%d %H:%M}"
    except ValueError:
        return evaluation.date


# -- one evaluation --------------------------------------------------------------------------------


def describe_evaluation(
    evaluation: Evaluation,
    *,
    published: Sequence[PublishedTable] = (),
    earlier: Sequence[Evaluation] = (),
) -> list[str]:
    """Scores with standard errors and intervals, what is missing, and what stands beside them.

    Args:
        published: tables of papers'; those with no column that was measured are left out.
        earlier: other results, of this model or others.
    """
    lines = [*_head(evaluation), "", *_scores(evaluation), *_sought(evaluation)]
    if evaluation.missing:
        lines += ["", "not scored:"]
        lines += _notes(f"{each.task}: {each.why}" for each in evaluation.missing)
    for each in published:
        lines += _published(each, [evaluation, *earlier])
    shown = {each.task for table in published for each in table.tasks}
    return [*lines, *_earlier([evaluation, *earlier], shown)]


def _head(evaluation: Evaluation) -> Iterator[str]:
    tokens = f", {short(evaluation.tokens)} tokens" if evaluation.tokens else ""
    yield f"{evaluation.model}{tokens}, evaluated {when(evaluation)}"
    parts = [f"{name} {version}" for name, version in evaluation.versions.items()]
    asked = {name: evaluation.settings.get(name) for name in _SETTINGS}
    parts += [f"{name} {value}" for name, value in asked.items() if value not in (None, False, "")]
    parts += ["chat template"] if evaluation.settings.get("chat_template") else []
    parts += [f"{count:,} {what}" for what, count in evaluation.counts.items() if count]
    if evaluation.fingerprint:
        parts.insert(0, f"weights {evaluation.fingerprint[:12]}")
    if parts:
        yield f"  {', '.join(parts)}"


def _scores(evaluation: Evaluation) -> list[str]:
    rows = [["task", "metric", "shots", "score", "±", "95% interval", "chance", "items"]]
    remarks = [""]
    for each in evaluation.shown:
        rows.append(_row(each.task, each))
        remarks.append(_remark(each))
        clean = each.clean
        if each.contaminated and clean is not None:
            num = len(each.values) - len(clean.values)
            rows.append(_row(f"  without {num:,} contaminated", clean))
            remarks.append(_remark(clean))
    if len(rows) == 1:
        return ["  no task was scored"]
    lines = table(rows)
    return [
        f"{line}  {remark}" if remark else line for line, remark in zip(lines, remarks, strict=True)
    ]


def _sought(evaluation: Evaluation) -> list[str]:
    """What a search of the training text found, if there was one."""
    known = [each for each in evaluation.scores if each.contaminated is not None]
    if not known:
        return []
    found = sum(len(each.contaminated or ()) for each in known)
    items = sum(len(each.values) for each in known)
    tasks = len({each.task for each in known})
    return _notes(
        [f"looked for in the training text: {tasks} tasks; found: {found:,} of {items:,} items"]
    )


def _notes(sentences: Iterable[str]) -> list[str]:
    """Each from a line of its own, what goes on is set in."""
    return [
        line
        for each in sentences
        for line in wrap(
            each,
            _COLUMNS,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


class _Marks:
    """A letter for each remark, the same for the same."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, remark: str) -> str:
        if not remark:
            return ""
        return self._known.setdefault(remark, _LETTERS[len(self._known) % len(_LETTERS)])

    def lines(self) -> list[str]:
        return _notes(f"{mark} {remark}" for remark, mark in self._known.items())


def _row(name: str, score: TaskScore) -> list[str]:
    estimate, share = score.estimate, score.is_share
    return [
        name,
        score.metric,
        str(score.num_fewshot),
        written(estimate.value, share),
        written(estimate.stderr, share),
        interval_text(estimate.low, estimate.high, share),
        "" if score.chance is None else written(score.chance, share),
        items_text(score) if not name.startswith(" ") else f"{len(score.values):,}",
    ]


def _remark(score: TaskScore) -> str:
    parts = ["not above chance"] if score.not_above_chance else []
    if score.contaminated is not None and len(score.contaminated) == len(score.values):
        parts.append("every item is contaminated")
    return ", ".join(parts)


# -- beside others ---------------------------------------------------------------------------------


def _published(source: PublishedTable, evaluations: Sequence[Evaluation]) -> list[str]:
    """A paper's table with our rows above it, remarks below."""
    ours = [source.chosen(each.shown) for each in evaluations]
    measured = [any(row[column] for row in ours) for column in range(len(source.tasks))]
    if not any(measured):
        return []
    with_mean = any(row.mean is not None for row in source.rows)
    rows = [["", *(each.label for each in source.tasks), *(["mean"] if with_mean else [])]]
    marks = _Marks()
    for name, scores in zip(names_of(evaluations), ours, strict=True):
        cells = []
        for score, column in zip(scores, source.tasks, strict=True):
            why = "" if score is None else differs(score, column, source)
            # Of a table that cannot be compared its note says so once.
            cells.append(_beside(score) + marks.of(why if source.comparable else ""))
        known = [each for each in scores if each is not None]
        if with_mean:
            cells.append(_mean(known) if len(known) == len(scores) else "–")
        rows.append([name, *cells])
    for row in source.rows:
        mean = [] if not with_mean else ["–" if row.mean is None else written(row.mean, True)]
        rows.append([row.model, *(written(each, True) for each in row.scores), *mean])
    comparable = "" if source.comparable else ", not directly comparable"
    lines = ["", f"beside {source.source} ({source.harness}{comparable}), ± half a 95% interval:"]
    lines += [*table(rows), *marks.lines()]
    lines += _notes(f"{row.model}: {row.note}" for row in source.rows if row.note)
    return [*lines, *_notes([source.note] if source.note else [])]


def _beside(score: TaskScore | None) -> str:
    return "–" if score is None else "±".join(value_and_half(score))


def value_and_half(score: TaskScore) -> tuple[str, str]:
    """A score, and half of its 95% interval."""
    found = score.estimate
    half = (found.high - found.low) / 2
    return written(found.value, score.is_share), _short(half, score.is_share)


def _mean(scores: Sequence[TaskScore]) -> str:
    found = mean_of(scores)
    return f"{written(found.value, True)}±{_short(_Z * found.stderr, True)}"


def _short(half: float, share: bool) -> str:
    if not math.isfinite(half):
        return "–"
    return f"{100 * half:.1f}" if share else f"{half:.4f}"


def _earlier(evaluations: Sequence[Evaluation], shown: set[str]) -> list[str]:
    """Tasks of no published table, a row each, beside the same of other results."""
    if len(evaluations) < 2:
        return []
    rows = [["task", "metric", *names_of(evaluations)]]
    for each in evaluations[0].shown:
        others = [other.score(each.task, each.metric) for other in evaluations[1:]]
        if each.task not in shown and any(others):
            rows.append([each.task, each.metric, *map(_beside, [each, *others])])
    if len(rows) == 1:
        return []
    return ["", "beside other results, ± half a 95% interval:", *table(rows)]


# -- comparison ------------------------------------------------------------------------------------


def describe_comparison(comparisons: Sequence[Comparison]) -> list[str]:
    """What `compare` found: a table for each model beside the first, and how many could be luck."""
    base = comparisons[0].first
    names = names_of([base, *(each.second for each in comparisons)])
    lines: list[str] = []
    for name, each in zip(names[1:], comparisons, strict=True):
        lines += [*([""] if lines else []), f"{name} beside {names[0]}:"]
        lines += _pairs(each) if each.pairs else ["  no task in common"]
        if each.alone:
            lines.append(f"  of one of them alone: {', '.join(each.alone)}")
    return [*lines, "", *how_many(comparisons)]


def _pairs(comparison: Comparison) -> list[str]:
    rows = [["task", "metric", "first", "second", "difference", "95% interval", "p", "items"]]
    verdicts, marks = [""], _Marks()
    for each in comparison.pairs:
        share = each.first.is_share and each.second.is_share
        gap = each.difference
        rows.append(
            [
                each.first.task,
                each.first.metric,
                written(each.first.estimate.value, share),
                written(each.second.estimate.value, share),
                signed(gap.value, share),
                interval_text(gap.low, gap.high, share, sign=True),
                p_text(gap.p),
                f"{gap.n:,}",
            ]
        )
        verdicts.append(verdict_text(each) + marks.of("; ".join(each.notes)))
    lines = [
        f"{line}  {verdict}".rstrip() for line, verdict in zip(table(rows), verdicts, strict=True)
    ]
    return [*lines, *marks.lines()]


def verdict_text(pair: Pair) -> str:
    """`better`, `worse`, or `no difference shown`."""
    return pair.verdict or "no difference shown"


def how_many(comparisons: Sequence[Comparison]) -> list[str]:
    """What chance alone would show among so many comparisons, and what holds in spite of it."""
    pairs = [pair for each in comparisons for pair in each.pairs]
    if len(pairs) == 1:
        return ["one comparison: where there is no difference, one in twenty would show one"]
    held = sum(pair.holds for pair in pairs)
    shown = sum(bool(pair.verdict) for pair in pairs)
    return [
        f"{len(pairs)} comparisons, {shown} with a difference shown; chance alone would show "
        f"{len(pairs) / 20:.2g} on average.",
        f"{held} {'holds' if held == 1 else 'hold'} when all together may err once in twenty "
        "(Holm's correction).",
    ]
