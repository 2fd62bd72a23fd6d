"""The report's one page: everything in it, nothing outside it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import llamita
from llamita.reporting import report_html as html
from llamita.reporting import report_sections as sections
from llamita.reporting import report_tuning as tuning
from llamita.reporting.report_benchmarks import BENCHMARKS_NOTE, benchmarks
from llamita.reporting.report_compare import comparison, swatch
from llamita.reporting.report_figures import Figure, figures, label_runs
from llamita.reporting.report_html import text
from llamita.reporting.report_records import RunRecord
from llamita.reporting.report_series import MOST_ROWS, Table, finite
from llamita.reporting.svg_plots import draw

WIDE, NARROW = (1040, 360), (510, 260)
"""Width and height of figures drawn beforehand; the script draws them as wide as they stand."""


def render(runs: Sequence[RunRecord]) -> str:
    """The page as text. The same events and recipes give the same bytes."""
    script, style = _script(), _packaged("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Should a run's text ever get past escaping, the browser still runs this script alone,
    # and fetches nothing.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    names = ", ".join(label_runs(runs))
    shown = figures(runs)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(names)} · llamita report</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{_header(runs)}\n<main>\n{_answers(runs)}{_plots(runs, shown)}\n"
        f"{_rest(runs)}\n</main>\n{_footer(runs)}\n"
        f'<script type="application/json" id="report-data">{_data(runs, shown)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _script() -> str:
    parts = map(_packaged, ("report_values.js", "report_plot.js", "report.js"))
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _packaged(name: str) -> str:
    return (files("llamita.reporting") / name).read_text(encoding="utf-8")


# -- head ---------------------------------------------------------------------------------------


def _header(runs: Sequence[RunRecord]) -> str:
    theme = (
        '<button type="button" class="theme" id="theme" hidden>'
        '<span aria-hidden="true">◐</span> <span id="theme-name">auto</span></button>'
    )
    kicker = (
        f'<p class="kicker"><b>llamita</b> {"run report" if len(runs) == 1 else "comparison"}</p>'
    )
    if len(runs) > 1:
        names = [
            f'<span class="run-name">{swatch(index)}{text(label)}</span>'
            for index, label in enumerate(label_runs(runs))
        ]
        return (
            f'<header><div class="top">{kicker}{theme}</div><h1>{len(runs)} runs compared</h1>'
            f'<p class="lead">{" ".join(names)}</p>{comparison(runs)}</header>'
        )
    run = runs[0]
    description = run.recipe.get("description")
    about = f'<p class="about">{text(description)}</p>' if description else ""
    return (
        f'<header><div class="top">{kicker}{theme}</div><h1>{text(run.name)}</h1>{about}'
        f'<p class="lead">{_lead(run)}</p>{tuning.adapter(run)}{_tiles(run)}</header>'
    )


def _lead(run: RunRecord) -> str:
    """The run in a sentence."""
    if not len(run.steps):
        return f"{text(run.state.capitalize())}."
    steps = f"{run.last_step - run.first_step:,}"
    what = f"{steps} steps over {html.amount(run.tokens_trained)} tokens"
    if run.first_step:
        what += f", going on from step {run.first_step:,}"
    began = run.events[0].get("time")
    when = f", begun {html.moment(float(began))}" if isinstance(began, int | float) else ""
    return f'{text(what + when)}. <span class="state">{text(run.state.capitalize())}.</span>'


def _tiles(run: RunRecord) -> str:
    environment = run.announced[-1].get("environment") if run.announced else None
    environment = environment if isinstance(environment, dict) else {}
    device = str(environment.get("device", "–"))
    processes = environment.get("processes")
    many = f"{processes} × " if isinstance(processes, int) and processes > 1 else ""
    mfu = finite(run.progress.columns["mfu"])
    share = float(mfu[mfu == mfu].mean()) if (mfu == mfu).any() else math.nan
    rate = run.tokens_per_second
    found = [
        tuning.headline(run),
        ("Parameters", html.amount(run.num_parameters), html.whole(run.num_parameters)),
        ("Tokens", html.amount(run.tokens_trained), html.whole(run.tokens_trained)),
        ("Time", html.seconds(run.seconds), "pauses left out"),
        (
            "Throughput",
            f"{html.amount(rate)}/s" if math.isfinite(rate) else "–",
            f"{html.per_cent(share, 0)} MFU" if math.isfinite(share) else "",
        ),
        ("Device", many + device, str(environment.get("dtype", "")).removeprefix("torch.")),
    ]
    tiles = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>"
        for name, value, note in found
    )
    return f'<dl class="tiles">{tiles}</dl>'


# -- answers ------------------------------------------------------------------------------------


def _answers(runs: Sequence[RunRecord]) -> str:
    """Before the plots, because it is what a run that tunes is for."""
    if not any(tuning.has_before(run) for run in runs):
        return ""
    note = f'<p class="note">{text(tuning.BEFORE_NOTE)}</p>'
    body = _of_each(runs, tuning.before_and_after)
    return html.section("answers", "Before and after", note + body) + "\n"


def _of_each(runs: Sequence[RunRecord], make: Callable[[RunRecord], str]) -> str:
    """One run's part, or each run's under its name."""
    if len(runs) == 1:
        return make(runs[0])
    labels = label_runs(runs)
    return "".join(
        f'<div class="of-run"><h3 class="run-name">{swatch(index)}{text(labels[index])}</h3>'
        f"{make(run)}</div>"
        for index, run in enumerate(runs)
    )


# -- plots --------------------------------------------------------------------------------------


def _plots(runs: Sequence[RunRecord], shown: Sequence[Figure]) -> str:
    if not shown:
        note = "Nothing to plot yet: no step has been recorded."
        return html.section("plots", "Along training", f'<p class="note">{note}</p>')
    axis = "".join(
        f'<button type="button" data-axis="{key}" aria-pressed="{str(key == "step").lower()}">'
        f"{name}</button>"
        for key, name in (("step", "steps"), ("tokens", "tokens"), ("seconds", "time"))
    )
    members = ""
    if len(runs) > 1:
        members = '<span class="runs" role="group" aria-label="Runs">' + "".join(
            f'<button type="button" data-run="{index}" aria-pressed="true">{swatch(index)}'
            f"{text(label)}</button>"
            for index, label in enumerate(label_runs(runs))
        )
        members += "</span>"
    bar = (
        '<div class="toolbar" hidden><span class="segments" role="group" '
        f'aria-label="Horizontal axis">{axis}</span>{members}'
        '<button type="button" id="reset" disabled>reset zoom</button></div>'
        '<p class="note hint" hidden>Drag across a plot to zoom, double-click to reset; all plots '
        "move together. On a focused plot: ← → move the crosshair, + − zoom, 0 resets. Click a "
        "name to hide its curve.</p>"
    )
    grid = "".join(_figure(figure, runs) for figure in shown)
    tables = "".join(sections.validation_table(run) if len(runs) == 1 else "" for run in runs)
    note = "".join(_thinned(run, label) for run, label in zip(runs, label_runs(runs), strict=True))
    body = f'{bar}<div class="figures">{grid}</div>{note}{tables}'
    return html.section("plots", "Along training", body)


def _figure(figure: Figure, runs: Sequence[RunRecord]) -> str:
    width, height = WIDE if figure.wide else NARROW
    legend = "".join(
        f'<li><button type="button" data-curve="{index}" aria-pressed="true">'
        f'<svg class="key" viewBox="0 0 22 8" aria-hidden="true"><path class="line c{curve.colour} '
        f'd{curve.dash % 4}" d="M1 4H21"/></svg>{text(curve.label)}<output></output></button></li>'
        for index, curve in enumerate(figure.curves)
    )
    log = '<button type="button" class="log" aria-pressed="false">log</button>' * figure.log
    return (
        f'<figure class="{"plot wide" if figure.wide else "plot"}" data-figure="{figure.key}">'
        f'<figcaption><h3>{text(figure.title)}</h3><span class="tools" hidden>{log}'
        '<button type="button" class="csv">CSV</button></span>'
        f'<p class="note">{text(figure.explanation)}</p></figcaption>'
        f'<ul class="legend">{legend}</ul>'
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">'
        f"{draw(figure, runs, width, height)}</svg></figure>"
    )


def _thinned(run: RunRecord, label: str) -> str:
    """Say where not every row is there."""
    found = [
        f"{len(table):,} of {table.total:,} {what}"
        for table, what in (
            (run.steps, "steps"),
            (run.progress, "progress lines"),
            (run.validation, "validations"),
            (run.preference, "validations of pairs"),
            (run.evaluation, "evaluations"),
        )
        if table.thinned
    ]
    if not found:
        return ""
    return (
        f'<p class="note thinned">{text(label)} is decimated: its plots hold {", ".join(found)}, '
        f"because more than {MOST_ROWS:,} were recorded. Each point is a recorded one; the least "
        "and the greatest value of every stretch and all skipped steps are among them. Means "
        "are over all steps.</p>"
    )


# -- the rest -----------------------------------------------------------------------------------


_BENCHMARKS = ("benchmarks", "Benchmarks", benchmarks, BENCHMARKS_NOTE)
_PREFERENCES = ("preferences", "Preferences", tuning.preferences, tuning.PREFERENCES_NOTE)


def _rest(runs: Sequence[RunRecord]) -> str:
    parts = [
        *([_BENCHMARKS] if any(len(run.evaluation) for run in runs) else []),
        *([_PREFERENCES] if any(len(run.preference) for run in runs) else []),
        ("plan", "Plan and outcome", sections.plan_against_achieved, sections.PLAN_NOTE),
        ("mixture", "Mixture, asked and reached", sections.mixture, ""),
        ("incidents", "Incidents", sections.incidents, ""),
        ("samples", "Samples along training", sections.samples, ""),
        ("reproduce", "Do it again", sections.reproduce, ""),
    ]
    found = []
    for key, title, make, note in parts:
        body = _of_each(runs, make)
        if key == "samples" and len(runs) > 1:
            body = f'<div class="beside">{body}</div>'
        about = f'<p class="note">{text(note)}</p>' if note else ""
        found.append(html.section(key, title, about + body))
    return "\n".join(found)


def _footer(runs: Sequence[RunRecord]) -> str:
    events = sum(len(run.events) for run in runs)
    odd = sum(run.not_understood for run in runs)
    left = f" {odd:,} more lack fields that their kind has, and were left out." if odd else ""
    drawn = f"Drawn from {events:,} events by llamita {text(llamita.__version__)}."
    return (
        f"<footer><p>{drawn}{left} This file needs nothing else. "
        '<button type="button" id="json" hidden>All plotted data as '
        "JSON</button></p></footer>"
    )


# -- data ---------------------------------------------------------------------------------------


def _data(runs: Sequence[RunRecord], shown: Sequence[Figure]) -> str:
    """What the script plots: tables as columns, values as they are in events.jsonl."""
    found: dict[str, Any] = {
        "runs": [
            {
                "name": run.name,
                "label": label,
                "first_step": run.first_step,
                "steps": _columns(run.steps),
                "progress": _columns(run.progress),
                "validation": _columns(run.validation),
                **({"preference": _columns(run.preference)} if len(run.preference) else {}),
                **({"evaluation": _columns(run.evaluation)} if len(run.evaluation) else {}),
                "stages": [asdict(span) for span in run.stages],
                "checkpoints": run.checkpoints,
                "resumes": run.resumes,
            }
            for run, label in zip(runs, label_runs(runs), strict=True)
        ],
        "figures": [asdict(figure) for figure in shown],
    }
    return html.script_json(found)


def _columns(table: Table) -> dict[str, Any]:
    return {"total": table.total, "columns": dict(table.columns)}
