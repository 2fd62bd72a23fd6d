"""Several runs side by side: what came of them, and in what their recipes differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llamita.planning.quantities import number
from llamita.reporting import report_html as html
from llamita.reporting.report_figures import NUM_COLOURS, label_runs
from llamita.reporting.report_html import text
from llamita.reporting.report_records import RunRecord
from llamita.reporting.report_series import finite

_KEYS_SHOWN = 16


def swatch(index: int) -> str:
    """A run's colour, as in the plots."""
    return f'<span class="swatch s{index % NUM_COLOURS}"></span>'


def comparison(runs: Sequence[RunRecord]) -> str:
    """A row a run. The lowest final bits per byte stands out."""
    labels = label_runs(runs)
    finals = [run.bits_per_byte for run in runs]
    known = [value for value in finals if math.isfinite(value)]
    pairs = any(len(run.preference) for run in runs)
    rows = []
    for index, (run, label, final) in enumerate(zip(runs, labels, finals, strict=True)):
        best = _best(run)
        shown = html.decimal(final)
        winner = bool(known) and final == min(known)
        rows.append(
            [
                swatch(index) + text(label),
                f"<strong>{shown}</strong>" if winner else shown,
                best,
                *([pairs_right(run)] if pairs else []),
                text(html.amount(run.tokens_trained)),
                text(html.whole(run.last_step)),
                text(html.whole(run.tokens_per_second)),
                text(html.seconds(run.seconds)),
                text(html.amount(run.num_parameters)),
                text(run.state),
            ]
        )
    headings = ["Run", "Bits per byte, final", "Best"]
    headings += ["Pairs told right"] if pairs else []
    headings += ["Tokens", "Steps", "Tokens a second", "Time", "Parameters", "State"]
    return html.table(headings, rows, style="numbers compare") + _differences(runs, labels)


def pairs_right(run: RunRecord) -> str:
    """Of held-out pairs, at the last validation."""
    values = run.preference.columns["accuracy"]
    return html.per_cent(number(values[-1])) if values else "–"


def _best(run: RunRecord) -> str:
    """The least of all validations, the average of weights included."""
    columns = run.validation.columns
    found = [
        (value, step)
        for name in ("bits_per_byte", "average")
        for value, step in zip(finite(columns.get(name, [])), columns["step"], strict=False)
        if math.isfinite(value)
    ]
    if not found:
        return "–"
    value, step = min(found)
    return f"{value:.4f} <small>at step {step:,}</small>"


def _differences(runs: Sequence[RunRecord], labels: Sequence[str]) -> str:
    """Keys that differ between the runs whose recipe is known."""
    known = [(label, flatten(r.recipe)) for r, label in zip(runs, labels, strict=True) if r.recipe]
    unknown = [label for run, label in zip(runs, labels, strict=True) if not run.recipe]
    note = f" No recipe is recorded of {text(', '.join(unknown))}." if unknown else ""
    flat = [recipe for _, recipe in known]
    different = [
        key
        for key in dict.fromkeys(key for recipe in flat for key in recipe)
        if key not in ("name", "description") and len({repr(r.get(key)) for r in flat}) > 1
    ]
    if not different:
        same = "Their recipes are the same but for their names." if len(flat) > 1 else ""
        return f'<p class="note">{same}{note}</p>'
    rows = [
        [
            f"<code>{text(key)}</code>",
            *(text(recipe[key]) if key in recipe else "–" for recipe in flat),
        ]
        for key in different
    ]
    headings = ["Key", *(label for label, _ in known)]
    body = html.table(headings, rows[:_KEYS_SHOWN], style="numbers compare")
    if len(rows) > _KEYS_SHOWN:
        rest = html.table(headings, rows[_KEYS_SHOWN:], style="numbers compare")
        body += html.folded(f"{len(rows) - _KEYS_SHOWN} more keys", rest)
    if note:
        body += f'<p class="note">{note}</p>'
    return f"<h3>What differs in their recipes</h3>{body}"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """`{"stages": [{"tokens": 5}]}` as `{"stages.0.tokens": 5}`: keys as `--set` takes them."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in items:
        found |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return found
