"""What a report says of a run that tunes: what learned, answers before and after, preferences."""

from __future__ import annotations

import math
from typing import Any

from llamita.planning.quantities import number
from llamita.reporting import report_html as html
from llamita.reporting.report_compare import pairs_right
from llamita.reporting.report_figures import measured_on
from llamita.reporting.report_html import text
from llamita.reporting.report_records import RunRecord
from llamita.reporting.report_sections import samples_by_prompt
from llamita.reporting.report_series import finite
from llamita.reporting.tuning_events import interval_of, is_chat, mapping, tuning_line

BEFORE_NOTE = (
    "What the model wrote to the recipe's prompts before the first step and at its last sample, "
    "with the same random draws."
)
PREFERENCES_NOTE = (
    "Of pairs that were not learned from, at the last validation; intervals are of 95%. A reward "
    "is β times how much likelier than by the reference model an answer has become. Right is a "
    "pair whose chosen answer has the higher reward; by a model alone, one whose chosen answer it "
    "finds likelier, by the sum over its tokens or by their mean."
)
NO_EFFECT = "no effect: the interval includes 0"


def adapter(run: RunRecord) -> str:
    """What learned, of how many parameters, and on which base; nothing for a whole model."""
    line = tuning_line(run.announced)
    return f'<p class="lead">Tuned: {text(line)}.</p>' if line else ""


def headline(run: RunRecord) -> tuple[str, str, str]:
    """Name, value and note of the first tile: what the run is judged by."""
    if run.ends_with_preferences:
        return ("Pairs told right", pairs_right(run), _margin_note(run))
    first = finite(run.validation.columns["bits_per_byte"][:1])
    began = f"from {first[0]:.4f}" if len(first) and first[0] == first[0] else ""
    return (f"Bits per byte{measured_on(run)}", html.decimal(run.bits_per_byte), began)


def _margin_note(run: RunRecord) -> str:
    scores = mapping(run.last("preference"), "datasets")
    if len(scores) != 1:
        return "of those held out"
    (score,) = scores.values()
    return f"margin {html.decimal(interval_of(score, 'margin')[0])}"


# -- answers --------------------------------------------------------------------------------------


def has_before(run: RunRecord) -> bool:
    """Whether a prompt was answered before the first step, and again later."""
    return any(
        run.first_step in texts and len(texts) > 1 for texts in samples_by_prompt(run).values()
    )


def before_and_after(run: RunRecord) -> str:
    """Each prompt with its first and its last text, side by side."""
    body = ""
    for prompt, texts in samples_by_prompt(run).items():
        first, last = run.first_step, max(texts)
        if first not in texts or last == first:
            continue
        sides = "".join(
            f'<div><span class="at">{when}, step {step:,}</span>'
            f"<p>{_written(run, prompt, texts[step])}</p></div>"
            for when, step in (("before", first), ("after", last))
        )
        body += (
            f'<article class="prompt"><h3><q>{text(prompt)}</q></h3>'
            f'<div class="two">{sides}</div></article>'
        )
    return body or '<p class="note">No prompt was answered before the first step.</p>'


def _written(run: RunRecord, prompt: str, answer: str) -> str:
    given = "" if is_chat(run.recipe) else f'<span class="given">{text(prompt)}</span>'
    return given + (text(answer) or '<span class="given">(nothing)</span>')


# -- preferences ----------------------------------------------------------------------------------


def preferences(run: RunRecord) -> str:
    """The last validation of held-out pairs, dataset by dataset, and whether it says anything."""
    event = run.last("preference")
    body = "".join(
        _of_dataset(str(name), score, event)
        for name, score in mapping(event, "datasets").items()
        if isinstance(score, dict)
    )
    return body or '<p class="note">No pairs were held out.</p>'


def _of_dataset(name: str, score: dict[str, Any], event: dict[str, Any]) -> str:
    rows = [
        [text("Loss, nats a pair"), html.decimal(number(score.get("loss"))), "", ""],
        _interval(score, "margin", "Reward margin", shares=False),
        _interval(score, "accuracy", "Right, by reward"),
        _interval(score, "policy_accuracy", "Right, by the model alone"),
        _interval(score, "reference_accuracy", "Right, by the reference alone"),
        _interval(score, "policy_accuracy_per_token", "Right, by the model alone, a token"),
        _interval(score, "reference_accuracy_per_token", "Right, by the reference alone, a token"),
    ]
    known = [row for row in rows if row[1] != "–"]
    step, count = number(event.get("step")), number(score.get("pairs"))
    caption = f"{name}: {html.whole(count)} pairs held out, at step {html.whole(step)}"
    table = html.table(["", "", "from", "to"], known, style="numbers", caption=caption)
    # A margin of 0 itself is the reference's, before anything was learned.
    judged = interval_of(score, "margin")[0] != 0
    if judged and score.get("has_effect") is False:
        return f'<p class="kind">{text(f"{name}: {NO_EFFECT}")}</p>{table}'
    return table


def _interval(score: dict[str, Any], key: str, label: str, *, shares: bool = True) -> list[str]:
    values = interval_of(score, key)
    shown = [html.per_cent(value) if shares else html.decimal(value) for value in values]
    if not math.isfinite(values[0]):
        shown = ["–"] * 3
    return [text(label), *shown]
