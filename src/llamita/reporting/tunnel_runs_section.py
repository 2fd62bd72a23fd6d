"""The sections of a wind tunnel's page on its runs: every one of them, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short
from llamita.reporting import report_html as html
from llamita.reporting.plan_canvas import flops_text
from llamita.reporting.report_html import text
from llamita.reporting.tunnel_words import axis_words
from llamita.windtunnel.findings import Findings, RunResult

_FEW = 12
"""Rows of a table that is open from the start."""
_STATUSES = ("done", "diverged", "pruned", "failed", "killed")


def by_experiment(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    found: dict[str, list[RunResult]] = {}
    for run in runs:
        found.setdefault(run.experiment, []).append(run)
    return found


def flops(value: float) -> str:
    return flops_text(value) if value > 0 else "–"


def runs(found: Findings) -> str:
    """Those that came to nothing with why, and every run of each experiment, the best first."""
    if not found.runs:
        return ""
    lost = [run for run in found.runs if run.status != "done"]
    body = ""
    if lost:
        rows = [
            [
                f"<code>{text(run.key)}</code>",
                text(run.experiment),
                text(run.status),
                text(why(run)),
            ]
            for run in lost
        ]
        table = html.table(["Run", "Experiment", "", "Why"], rows)
        title = f"Not done: {len(lost):,} of {len(found.runs):,}"
        body += html.folded(title, table, opened=len(lost) <= _FEW)
    for experiment, made in by_experiment(found.runs).items():
        body += html.folded(
            f"{experiment}: {len(made):,} {'run' if len(made) == 1 else 'runs'}", _table(made)
        )
    return html.section("runs", "Every run", body)


def why(run: RunResult) -> str:
    after = f"after {short(run.tokens)} tokens" if run.tokens else ""
    return ", ".join(each for each in (run.reason, after) if each) or "–"


def _table(made: Sequence[RunResult]) -> str:
    axes = list(dict.fromkeys(axis for run in made for axis in run.values))
    names = [axis_words(axis) for axis in axes]
    # Two keys may end alike; then they are told apart in full.
    names = [axes[n] if names.count(name) > 1 else name for n, name in enumerate(names)]
    columns = ["Run", "Size", "Width", "Layers", "Parameters", "In all", "", "Seed", *names]
    columns += ["Tokens", "Batch", "Loss", "Time", "FLOPs"]
    ordered = sorted(made, key=lambda run: (run.loss is None, run.loss or 0.0))
    rows = []
    for run in ordered:
        cells = [
            run.size,
            f"{run.hidden_size:,}",
            f"{run.layers}",
            f"{run.parameters:,}",
            f"{run.total_parameters:,}",
            run.parametrization,
            f"{run.seed}",
            *(_value(run.values, axis) for axis in axes),
            short(run.tokens),
            short(run.batch_tokens),
            run.status if run.loss is None else f"{run.loss:.4f}",
            duration(run.seconds),
            flops(run.flops),
        ]
        rows.append([f"<code>{text(run.key)}</code>", *(text(cell) for cell in cells)])
    return html.table(columns, rows, style="numbers")


def _value(values: Mapping[str, Any], axis: str) -> str:
    value = values.get(axis, "–")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cost(found: Findings) -> str:
    """Runs, tokens, FLOPs and time of each experiment, and of all."""
    if not found.runs:
        return ""
    shown = [each for each in _STATUSES if any(run.status == each for run in found.runs)]
    columns = ["", "Runs", *(each.capitalize() for each in shown), "Tokens", "FLOPs", "Time"]
    groups = by_experiment(found.runs)
    rows = [[text(cell) for cell in _cost(name, made, shown)] for name, made in groups.items()]
    if len(groups) > 1:
        rows.append([text(cell) for cell in _cost("all", found.runs, shown)])
    body = html.table(columns, rows, style="numbers")
    body += '<p class="note">Time: of each run by itself; several may have run at once.</p>'
    return html.section("cost", "What it cost", body)


def _cost(name: str, made: Sequence[RunResult], shown: Sequence[str]) -> list[str]:
    counts: Counter[str] = Counter(run.status for run in made)
    return [
        name,
        f"{len(made):,}",
        *(f"{counts[each]:,}" for each in shown),
        short(sum(run.tokens for run in made)),
        flops(sum(run.flops for run in made)),
        duration(sum(run.seconds for run in made)),
    ]


def facts(found: Findings) -> str:
    if not found.facts:
        return ""
    return html.section("facts", "To know", html.pairs(found.facts.items()))
