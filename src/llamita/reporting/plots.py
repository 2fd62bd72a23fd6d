"""The main plots as PNGs, for READMEs and model cards. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamita.errors import UserError
from llamita.planning.quantities import number
from llamita.planning.quantities import tokens as short
from llamita.reporting.plot_style import COLOURS, STYLE, require_matplotlib
from llamita.reporting.report_figures import Curve, Figure, figures, label_runs, table_of
from llamita.reporting.report_records import RunRecord
from llamita.reporting.report_series import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

OVERVIEW = ("loss", "bits_per_byte", "learning_rate", "tokens_per_second")
SINGLES = ("loss", "bits_per_byte", "learning_rate", "grad_norm", "tokens_per_second")
OF_PREFERENCES = ("loss", "preference_accuracy", "preference_margin", "rewards")
"""The overview, and the files, of runs that learned preferences."""
_DPI = 160
_OVERVIEW_INCHES, _SINGLE_INCHES = (10.0, 6.6), (10.0, 4.4)
_DASHES = ("-", "--", ":", "-.")


def build_figure(runs: Sequence[RunRecord], keys: Sequence[str] = OVERVIEW) -> Canvas:
    """A matplotlib figure, 1,600 pixels wide: 2 × 2 panels for four keys, one panel for one.

    A key of which nothing was recorded leaves its panel empty. Nothing of matplotlib's global state
    is used or changed.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib("PNGs are", "--png")
    import matplotlib
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.1)
    known = {figure.key: figure for figure in figures(runs)}
    columns = 1 if len(keys) == 1 else 2
    with matplotlib.rc_context(STYLE):
        inches = _SINGLE_INCHES if len(keys) == 1 else _OVERVIEW_INCHES
        canvas = Canvas(figsize=inches, dpi=_DPI, layout=layout)
        panels = np.ravel(canvas.subplots(math.ceil(len(keys) / columns), columns, squeeze=False))
        for panel, key in zip(panels, keys, strict=False):
            if key in known:
                _draw(panel, known[key], runs)
            else:
                panel.set_axis_off()
        canvas.suptitle(_title(runs), x=0.012, ha="left", fontsize=14, fontweight="bold")
    return canvas


def write_plots(runs: Sequence[RunRecord], folder: Path) -> list[Path]:
    """`overview.png` and a PNG each for the main plots that have data; returns their paths.

    Raises:
        UserError: matplotlib is not installed, or the folder cannot be written.
    """
    require_matplotlib("PNGs are", "--png")
    import matplotlib

    known = {figure.key for figure in figures(runs)}
    overview = OF_PREFERENCES if known & {*OF_PREFERENCES[1:]} else OVERVIEW
    singles = dict.fromkeys((*SINGLES, *OF_PREFERENCES))
    wanted = {"overview": overview} | {key: (key,) for key in singles if key in known}
    paths = []
    for name, keys in wanted.items():
        path = folder / f"{name}.png"
        canvas = build_figure(runs, keys)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with matplotlib.rc_context(STYLE):
                canvas.savefig(path, metadata={"Software": None})
        except OSError as error:
            raise UserError(f"could not write {path}: {error.strerror or error}") from error
        paths.append(path)
    return paths


def _title(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        title = ", ".join(label_runs(runs))
        return title if len(title) <= 80 else f"{len(runs)} runs"
    if runs[0].ends_with_preferences:
        right = runs[0].preference.columns["accuracy"]
        return runs[0].name + (f": {number(right[-1]):.1%} of pairs told right" if right else "")
    bits = runs[0].bits_per_byte
    return runs[0].name + (f": {bits:.4f} bits per byte" if math.isfinite(bits) else "")


def _draw(panel: Axes, figure: Figure, runs: Sequence[RunRecord]) -> None:
    factor = {"bytes": 1e-9, "share": 100.0}.get(figure.unit, 1.0)
    for curve in figure.curves:
        _curve(panel, curve, runs, factor)
    if len(runs) == 1:
        _stages(panel, runs[0])
    units = {
        "loss": "nats a pair" if runs[0].ends_with_preferences else "nats a token",
        "bits_per_byte": "bits per byte",
        "tokens_per_second": "tokens/s",
        "preference_accuracy": "%",
        "preference_margin": "β × nats",
        "rewards": "β × nats",
    }
    panel.set_title(figure.title)
    panel.set_ylabel(units.get(figure.key, ""))
    panel.set_xlabel("step")
    if figure.zero:
        panel.set_ylim(0, panel.get_ylim()[1] * 1.06)
    last, first = max(run.last_step for run in runs), min(run.first_step for run in runs)
    if last > first:
        panel.set_xlim(first, last)
    panel.xaxis.set_major_formatter("{x:,.0f}")
    if figure.unit == "rate":
        panel.yaxis.set_major_formatter(lambda value, _: short(value))
    if len(figure.curves) > 1:
        panel.legend(fontsize=9)


def _curve(panel: Axes, curve: Curve, runs: Sequence[RunRecord], factor: float) -> None:
    """Its line holds the values of events.jsonl, in the unit that the panel shows."""
    table = table_of(runs[curve.run], curve.table)
    steps = finite(table.columns["step"])
    values = finite(table.columns[curve.column]) * factor
    style: dict[str, Any] = {"color": COLOURS[curve.colour], "linestyle": _DASHES[curve.dash % 4]}
    skipped = [row for row, kind in enumerate(table.columns.get("skipped", [])) if kind is not None]
    if curve.band is not None:
        low, high = (finite(table.columns[name]) * factor for name in curve.band)
        panel.fill_between(steps, low, high, color=COLOURS[curve.colour], alpha=0.16, linewidth=0)
    if curve.smoothed is None:
        marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(steps) <= 60 else {}
        panel.plot(steps, values, label=curve.label, linewidth=1.6, **style, **marker)
        return
    taken = values.copy()
    taken[skipped] = np.nan
    panel.plot(steps, taken, linewidth=0.8, alpha=0.35, **style)
    mean = finite(table.columns[curve.smoothed]) * factor
    panel.plot(steps, mean, label=curve.label, linewidth=1.7, **style)
    if skipped:
        top = panel.get_ylim()[1]
        heights = np.where(np.isfinite(values[skipped]), np.minimum(values[skipped], top), top)
        panel.plot(steps[skipped], heights, "x", color="#a63a00", markersize=6, clip_on=False)


def _stages(panel: Axes, run: RunRecord) -> None:
    for place, span in enumerate(run.stages):
        colour = "#e7eef3" if place % 2 else "#f6f3ec"
        panel.axvspan(span.start[0], span.end[0], color=colour, zorder=0, linewidth=0)
