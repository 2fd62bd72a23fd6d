"""The report's sections beside its plots: what one run did, in tables and text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llamita.planning.check import check_run
from llamita.planning.quantities import number
from llamita.reporting import report_html as html
from llamita.reporting.alerts import find_alerts
from llamita.reporting.events import Event
from llamita.reporting.report_figures import estimate_total, measured_on
from llamita.reporting.report_html import text
from llamita.reporting.report_incidents import Incident
from llamita.reporting.report_records import DATASET, RunRecord
from llamita.reporting.report_series import finite
from llamita.reporting.tuning_events import is_chat

_SAMPLES_SHOWN = 6
_INCIDENTS_SHOWN = 40
_VALIDATIONS_SHOWN = 24


PLAN_NOTE = (
    "Planned is what was measured and written into the run before its first step; achieved is what "
    "came of it since then, with steps that were lost and taken again, and without pauses between "
    "processes. llamita plan --check prints the same table."
)

# -- plan and what came of it ---------------------------------------------------------------------


def plan_against_achieved(run: RunRecord) -> str:
    """What was announced or estimated beforehand, and what was recorded."""
    if not run.announced:
        return '<p class="note">The events hold no start, and so no plan.</p>'
    check = check_run(run.directory)
    table = html.table(
        ["", "Planned", "Achieved", "Difference"],
        [[text(cell) for cell in row.cells()] for row in check.rows],
        style="numbers",
    )
    state = "" if check.finished else f'<p class="note">{text(check.state.capitalize())}.</p>'
    notes = "".join(f"<li>{text(note)}</li>" for note in check.notes)
    said = f'<ul class="note">{notes}</ul>' if notes else ""
    return state + table + said + _memory_parts(run) + _profile(run)


def _peak(run: RunRecord) -> float:
    measured = number(run.last("memory").get("peak_bytes"))
    if math.isfinite(measured):
        return measured
    used = finite(run.progress.columns["memory_bytes"])
    return float(np.nanmax(used)) if np.isfinite(used).any() else math.nan


def _memory_parts(run: RunRecord) -> str:
    event = run.last("memory")
    estimate = event.get("estimate")
    if not isinstance(estimate, dict):
        return ""
    rows = [[text(name.replace("_", " ")), html.size(number(b))] for name, b in estimate.items()]
    rows += [
        ["all estimated", html.size(estimate_total(run))],
        ["baseline before training", html.size(number(event.get("baseline_bytes")))],
        ["peak measured", html.size(_peak(run))],
    ]
    return html.folded("Memory, part by part", html.table(["", "Bytes"], rows, style="numbers"))


def _profile(run: RunRecord) -> str:
    event = run.last("profile")
    title = f"Where the time went, profiled at step {html.whole(number(event.get('step')))}"
    tables = [
        _shares(event.get(key), what) for key, what in (("table", "Kind"), ("phases", "Phase"))
    ]
    body = "".join(tables)
    return html.folded(title, body, opened=True) if body else ""


def _shares(found: Any, what: str) -> str:
    """A profile's rows of name, seconds and share."""
    if not isinstance(found, list) or not found:
        return ""
    rows = [
        [
            text(row.get("name", "")),
            html.seconds(number(row.get("seconds"))),
            _bar(number(row.get("share"))) + html.per_cent(number(row.get("share"))),
        ]
        for row in found
        if isinstance(row, dict)
    ]
    return html.table([what, "Time", "Share"], rows, style="numbers")


# -- mixture --------------------------------------------------------------------------------------


def mixture(run: RunRecord) -> str:
    """For each stage that ended: shares asked for and read, as bars, and epochs."""
    found = {str(event.get("stage")): event for event in run.of("mixture")}
    body = ""
    for stage, event in found.items():
        asked, realised = _mapping(event, "asked"), _mapping(event, "realised")
        epochs = _mapping(event, "epochs")
        rows = [
            [
                text(name),
                _bar(number(share)) + html.per_cent(number(share), 2),
                _bar(number(realised.get(name)), "read")
                + html.per_cent(number(realised.get(name)), 2),
                html.decimal(number(epochs.get(name)), 2),
            ]
            for name, share in asked.items()
        ]
        body += html.table(
            ["Dataset", "Asked", "Reached", "Epochs read"],
            rows,
            style="numbers",
            caption=f"Stage {stage}, at step {html.whole(number(event.get('step')))}",
        )
    return body or '<p class="note">No stage has ended yet; a stage’s end records its mixture.</p>'


def _mapping(event: Event, key: str) -> Mapping[str, Any]:
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def _bar(share: float, style: str = "") -> str:
    width = 100 * min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    return f'<span class="bar {style}"><i style="width:{width:.2f}%"></i></span>'


# -- incidents ------------------------------------------------------------------------------------


def incidents(run: RunRecord) -> str:
    """Skipped steps, interruptions, resumes and alerts, in order of steps."""
    alerts = [
        Incident(alert.step, f"alert: {alert.kind}", alert.message, action=alert.action)
        for alert in find_alerts(run.events)
    ]
    found = sorted([*run.incidents, *alerts], key=lambda incident: incident.step)
    if not found:
        return '<p class="note">None: no step was skipped, and nothing stopped the run.</p>'
    rows = [
        [
            html.whole(incident.step),
            f'<span class="kind">{text(incident.kind.replace("_", " "))}</span>',
            _told(incident),
            text(html.moment(incident.time)) if math.isfinite(incident.time) else "",
        ]
        for incident in found
    ]
    headings = ["Step", "", "What happened", "When"]
    body = html.table(headings, rows[:_INCIDENTS_SHOWN], style="incidents")
    if len(rows) > _INCIDENTS_SHOWN:
        rest = html.table(headings, rows[_INCIDENTS_SHOWN:], style="incidents")
        body += html.folded(f"{len(rows) - _INCIDENTS_SHOWN:,} more", rest)
    return body


def _told(incident: Incident) -> str:
    if not incident.action:
        return text(incident.what)
    # Alerts put commands between backticks.
    parts = incident.action.split("`")
    action = "".join(
        f"<code>{text(part)}</code>" if place % 2 else text(part)
        for place, part in enumerate(parts)
    )
    return f'{text(incident.what)}. <span class="action">{action}</span>'


# -- samples --------------------------------------------------------------------------------------


def samples_by_prompt(run: RunRecord) -> dict[str, dict[int, str]]:
    """Prompt → step → what the model wrote to it."""
    found: dict[str, dict[int, str]] = {}
    for event in run.of("sample"):
        if isinstance(event.get("step"), int):
            texts = found.setdefault(str(event.get("prompt", "")), {})
            texts[event["step"]] = str(event.get("text", ""))
    return found


def samples(run: RunRecord) -> str:
    """What the model wrote as it learned, prompt by prompt."""
    by_prompt = samples_by_prompt(run)
    if not by_prompt:
        return (
            '<p class="note">None were asked for. Prompts under <code>samples.prompts</code> in '
            "the recipe are continued as the run goes.</p>"
        )
    body = ""
    for prompt, texts in by_prompt.items():
        steps = sorted(texts)
        chosen = steps
        if len(steps) > _SAMPLES_SHOWN:
            places = np.linspace(0, len(steps) - 1, _SAMPLES_SHOWN).round().astype(int)
            chosen = [steps[place] for place in places]
        body += f'<article class="prompt"><h3><q>{text(prompt)}</q></h3>'
        body += _samples_list(run, prompt, texts, chosen)
        rest = [step for step in steps if step not in set(chosen)]
        if rest:
            body += html.folded(f"{len(rest):,} more", _samples_list(run, prompt, texts, rest))
        body += "</article>"
    return body


def _samples_list(
    run: RunRecord, prompt: str, texts: Mapping[int, str], steps: Sequence[int]
) -> str:
    # An answer stands by itself; a text goes on where its prompt ends.
    given = "" if is_chat(run.recipe) else f'<span class="given">{text(prompt)}</span>'
    items = "".join(
        f'<li><span class="at">step {step:,}</span><p>{given}{text(texts[step])}</p></li>'
        for step in steps
    )
    return f'<ol class="samples">{items}</ol>'


# -- validation -----------------------------------------------------------------------------------


def validation_table(run: RunRecord) -> str:
    """Bits per byte as numbers, for those who do not see plots."""
    columns = run.validation.columns
    names = [name for name in columns if name.startswith(DATASET) or name == "average"]
    total = len(run.validation)
    if not total:
        return ""
    places = sorted(
        {*np.linspace(0, total - 1, min(total, _VALIDATIONS_SHOWN)).round().astype(int)}
    )
    rows = [
        [
            html.whole(columns["step"][place]),
            html.amount(columns["tokens"][place]),
            html.decimal(number(columns["bits_per_byte"][place])),
            *(html.decimal(number(columns[name][place])) for name in names),
        ]
        for place in places
    ]
    headings = ["Step", "Tokens", "Together", *(name.removeprefix(DATASET) for name in names)]
    title = f"Bits per byte{measured_on(run)} as a table"
    if len(places) < total:
        title += f" ({len(places)} of {total:,} validations)"
    return html.folded(title, html.table(headings, rows, style="numbers"))


# -- how to do it again ---------------------------------------------------------------------------


def reproduce(run: RunRecord) -> str:
    """Commands, environment, versions, plan and recipe."""
    announced = run.announced
    body = ""
    commands = [str(event["command"]) for event in announced if event.get("command")]
    if commands:
        body += html.code("\n".join(dict.fromkeys(commands)))
    if run.recipe_text is not None:
        body += (
            '<p class="note">Or save the recipe below as <code>recipe.yaml</code>, for it has '
            "every default and override written out: <code>llamita train recipe.yaml</code>. The "
            "bits of a run depend on its recipe, its data and the environment below.</p>"
        )
    last = announced[-1] if announced else {}
    body += '<div class="columns"><div><h3>Environment</h3>'
    body += html.pairs(_mapping(last, "environment").items())
    body += "</div><div><h3>Versions</h3>"
    body += html.pairs(_mapping(last, "versions").items()) + "</div></div>"
    plan = last.get("plan")
    if isinstance(plan, list):
        body += html.folded("The plan as it was printed", html.code("\n".join(map(str, plan))))
    if run.recipe_text is None:
        body += '<p class="note">There is no recipe.yaml in the run’s directory.</p>'
    else:
        body += html.folded("The recipe, every default written out", html.code(run.recipe_text))
    return body
