"""An evaluation's page: what stands beside published scores, and beside other results."""

from __future__ import annotations

from llamita.errors import UserError
from llamita.evaluation.comparison import Comparison, compare
from llamita.evaluation.comparison_text import (
    how_many,
    interval_text,
    mean_of,
    p_text,
    signed,
    value_and_half,
    verdict_text,
    written,
)
from llamita.evaluation.published import PublishedTable, differs
from llamita.evaluation.results import TaskScore
from llamita.reporting import report_html as html
from llamita.reporting.evaluation_drawings import differences
from llamita.reporting.evaluation_sections import Shown, aside
from llamita.reporting.report_html import text


def beside_published(shown: Shown) -> str:
    parts = [_beside(shown, table) for table in shown.published]
    return html.section("published", "Beside published scores", "".join(parts)) if parts else ""


def _beside(shown: Shown, table: PublishedTable) -> str:
    with_mean = any(row.mean is not None for row in table.rows)
    rows, remarks = [], dict[str, str]()
    for name, evaluation in zip(shown.names, shown.evaluations, strict=True):
        found = table.chosen(evaluation.shown)
        cells = []
        for score, column in zip(found, table.tasks, strict=True):
            why = differs(score, column, table) if score is not None and table.comparable else ""
            mark = remarks.setdefault(why, chr(ord("a") + len(remarks) % 26)) if why else ""
            cells.append(_cell(score) + (f"<sup>{mark}</sup>" if mark else ""))
        if with_mean:
            whole = [each for each in found if each is not None]
            mean = mean_of(whole) if len(whole) == len(found) else None
            half = 0.0 if mean is None else 50 * (mean.high - mean.low)
            cells.append(
                "–" if mean is None else f"{written(mean.value, True)} <small>±{half:.1f}</small>"
            )
        rows.append([f"<b>{text(name)}</b>", *cells])
    for row in table.rows:
        mean_cell = "–" if row.mean is None else written(row.mean, True)
        cells = [written(each, True) for each in row.scores]
        rows.append([text(row.model), *cells, *([mean_cell] if with_mean else [])])
    headings = ["", *(each.label for each in table.tasks), *(["Mean"] if with_mean else [])]
    beware = "" if table.comparable else ' <span class="luck">not directly comparable</span>'
    sentences = [f"{mark}: {why}." for why, mark in remarks.items()]
    sentences += [f"{row.model}: {row.note}." for row in table.rows if row.note]
    about = f"{table.source}, measured with {table.harness}. ±: half a 95% interval. {table.note}"
    return (
        f"<h3>{text(table.title)}{beware}</h3>{html.table(headings, rows, style='numbers')}"
        f"{aside(' '.join([about, *sentences]))}"
    )


def _cell(score: TaskScore | None) -> str:
    if score is None:
        return "–"
    value, half = value_and_half(score)
    return f"{value} <small>±{half}</small>"


def compared(shown: Shown) -> str:
    """Each featured result beside the first."""
    others = [number for number in shown.featured if number != 0]
    if not others:
        return ""
    try:
        found = compare([shown.evaluations[number] for number in (0, *others)])
    except UserError as reason:
        return html.section("compared", "Compared", aside(f"{reason}."))
    parts = [
        _comparison(each, f"{shown.names[number]} beside {shown.names[0]}")
        for number, each in zip(others, found, strict=True)
    ]
    note = aside(
        "Differences in points, with 95% intervals; where one includes 0, no difference is shown. "
        "Items are paired: both models answered the same ones, unless a remark says otherwise."
    )
    last = "".join(aside(each) for each in how_many(found))
    return html.section("compared", "Better, or luck?", note + "".join(parts) + last)


def _comparison(found: Comparison, title: str) -> str:
    headings = ["Task", "Metric", "First", "Second", "Difference", "95% interval", "p", "Items"]
    headings += ["Verdict", "Remarks"]
    rows = []
    for each in found.pairs:
        share, gap = each.first.is_share and each.second.is_share, each.difference
        rows.append(
            [
                text(each.first.task),
                text(each.first.metric),
                written(each.first.estimate.value, share),
                written(each.second.estimate.value, share),
                signed(gap.value, share),
                interval_text(gap.low, gap.high, share, sign=True),
                text(p_text(gap.p)),
                f"{gap.n:,}",
                verdict_text(each) + (" (holds)" if each.holds else ""),
                text("; ".join(each.notes)),
            ]
        )
    body = html.folded("As a table", html.table(headings, rows, style="numbers")) if rows else ""
    alone = f"Of one of them alone: {', '.join(found.alone)}." if found.alone else ""
    said = _remarks(found) + ([alone] if alone else [])
    drawn = differences(found)
    return f"<h3>{text(title)}</h3>{drawn}{''.join(map(aside, said))}{body}"


def _remarks(found: Comparison) -> list[str]:
    """What is not drawn, and which tasks were not asked alike."""
    said = []
    for each in found.pairs:
        if not (each.first.is_share and each.second.is_share):
            gap = each.difference
            said.append(
                f"{each.first.task}, {each.first.metric}: {signed(gap.value, False)} "
                f"{interval_text(gap.low, gap.high, False, sign=True)}, {verdict_text(each)}."
            )
    tasks: dict[str, list[str]] = {}
    for each in found.pairs:
        for note in each.notes:
            tasks.setdefault(note, []).append(each.first.task)
    return said + [f"{', '.join(names)}: {note}." for note, names in tasks.items()]
