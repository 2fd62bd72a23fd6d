"""What a report says of benchmarks that were asked while a run trained: last scores, and cost."""

from __future__ import annotations

from llamita.planning.quantities import number
from llamita.reporting import report_html as html
from llamita.reporting.evaluation_events import name_of, scores_of, written
from llamita.reporting.report_html import text
from llamita.reporting.report_records import RunRecord

BENCHMARKS_NOTE = (
    "Asked of the weights in training, of each task its first items; intervals are of 95%. An "
    "asterisk: guessing could have scored this."
)


def benchmarks(run: RunRecord) -> str:
    """The last evaluation as a table, beside the first, and what all of them took."""
    events = run.of("evaluation")
    if not events:
        return '<p class="note">None were asked for.</p>'
    first = {name_of(score): score for score in scores_of(events[0])}
    rows = []
    for score in scores_of(events[-1]):
        name = name_of(score)
        began = written(first[name]) if name in first and len(events) > 1 else "–"
        luck = "*" if score.get("not_above_chance") else ""
        chance = number(score.get("chance"))
        rows.append(
            [
                text(name),
                text(began),
                text(written(score) + luck),
                text(f"{written(score, 'low')} to {written(score, 'high')}"),
                html.per_cent(chance),
                html.whole(number(score.get("items"))),
            ]
        )
    last = events[-1]
    caption = f"At step {html.whole(number(last.get('step')))}"
    at_first = f"step {html.whole(number(events[0].get('step')))}"
    headings = ["", at_first, "score", "interval", "chance", "items"]
    return html.table(headings, rows, style="numbers", caption=caption) + _cost(run)


def _cost(run: RunRecord) -> str:
    events = {event["step"]: event for event in run.of("evaluation")}.values()
    seconds = sum(number(event.get("seconds")) for event in events)
    left_out = len(run.of("evaluation_left_out"))
    share = seconds / run.seconds if run.seconds > 0 else 0.0
    more = ""
    if left_out:
        more = (
            f" {left_out:,} more {'was' if left_out == 1 else 'were'} due and left out, for "
            "evaluation.max_share bounds what they may take."
        )
    said = (
        f"{len(events):,} evaluations in {html.seconds(seconds)}, {html.per_cent(share)} of the "
        f"run's time.{more}"
    )
    return f'<p class="note">{text(said)}</p>'
