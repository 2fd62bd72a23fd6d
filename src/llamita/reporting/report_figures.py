"""Which curves a report shows. The page's SVG, its script and the PNGs all draw from this list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llamita.planning.quantities import number
from llamita.reporting.evaluation_events import name_of, scores_of
from llamita.reporting.report_records import DATASET, RunRecord
from llamita.reporting.report_series import Table, finite
from llamita.reporting.tuning_events import bits_per_byte_of, learns_preferences

NUM_COLOURS = 7
"""Colours that the page's style defines, told apart with any common colour blindness."""


@dataclass(frozen=True)
class Curve:
    """One line of a figure: columns of a table of a run.

    `smoothed` names a second column, drawn bold over the faint raw one. `dash` numbers a pattern,
    so that lines differ by more than colour.
    """

    run: int
    table: str
    column: str
    label: str
    colour: int
    dash: int = 0
    smoothed: str | None = None
    band: tuple[str, str] | None = None
    """Columns of a lower and an upper end, between which the curve's colour is laid."""


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as what was estimated beforehand."""

    value: float
    label: str


@dataclass(frozen=True)
class Figure:
    """`unit` decides how values are written: number, rate, bytes or share."""

    key: str
    title: str
    explanation: str
    unit: str
    curves: Sequence[Curve]
    wide: bool = False
    log: bool = False
    """Whether the y axis may be made logarithmic."""
    zero: bool = False
    """Whether the y axis begins at zero."""
    levels: Sequence[Level] = ()


def table_of(run: RunRecord, name: str) -> Table:
    """`steps`, `progress`, `validation`, `preference` or `evaluation`."""
    table = getattr(run, name)
    assert isinstance(table, Table)
    return table


def label_runs(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each run that no other bears: its own, with its directory where needed."""
    names = Counter(run.name for run in runs)
    labels = [
        run.name if names[run.name] == 1 else f"{run.name} ({run.directory.name})" for run in runs
    ]
    again = Counter(labels)
    return [
        label if again[label] == 1 else f"{run.name} ({run.directory})"
        for run, label in zip(runs, labels, strict=True)
    ]


def figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """The figures that have something to show."""
    return [figure for figure in _all_figures(runs) if figure.curves]


def _all_figures(runs: Sequence[RunRecord]) -> list[Figure]:
    return [
        *_of_learning(runs),
        *_of_preferences(runs),
        *_of_benchmarks(runs),
        *_of_machine(runs),
    ]


def _of_learning(runs: Sequence[RunRecord]) -> list[Figure]:
    return [
        Figure(
            "loss",
            "Training loss",
            f"{_loss_unit(runs)} of each step's batch, faint; its centred mean over 2% of the "
            "steps, bold. Crosses are skipped steps.",
            "number",
            _each(runs, "steps", "loss", "loss_smoothed"),
            wide=True,
            log=True,
        ),
        Figure(
            "bits_per_byte",
            "Validation",
            f"Bits per byte of held-out {_held_out(runs)}; lower is better.",
            "number",
            _validation(runs),
            wide=True,
            log=True,
        ),
        Figure(
            "learning_rate",
            "Learning rate",
            "As the optimizer was given it, before any scaling of groups.",
            "number",
            _each(runs, "steps", "learning_rate"),
            log=True,
            zero=True,
        ),
        Figure(
            "grad_norm",
            "Gradient norm",
            "Global norm before clipping, faint; its centred mean, bold.",
            "number",
            _each(runs, "steps", "grad_norm", "grad_norm_smoothed"),
            log=True,
        ),
    ]


def _loss_unit(runs: Sequence[RunRecord]) -> str:
    pairs = [bool(finite(run.steps.columns.get("margin", [])).size) for run in runs]
    if not any(pairs):
        return "Nats a token"
    tokens = [not learns_preferences(event) for run in runs for event in run.of("step")]
    return "Nats a token, or nats a pair of preferences," if any(tokens) else "Nats a pair"


def _held_out(runs: Sequence[RunRecord]) -> str:
    found = {measured_on(run).removeprefix(" of ") or "text" for run in runs if run.validation}
    return found.pop() if len(found) == 1 else "text or answers" if found else "text"


def measured_on(run: RunRecord) -> str:
    """What a run's bits per byte are of, to be put after them: "", " of answers", …"""
    names = [n.removeprefix(DATASET) for n in run.validation.columns if n.startswith(DATASET)]
    return bits_per_byte_of(run.announced[-1] if run.announced else {}, names or None)


def _of_preferences(runs: Sequence[RunRecord]) -> list[Figure]:
    """Nothing for runs that learned none. The reference's reward is 0 by definition, and it would
    be right about as many pairs as wrong."""
    return [
        Figure(
            "preference_margin",
            "Reward margin",
            "Of pairs held out, chosen less rejected, with its 95% confidence interval; where that "
            "holds 0, nothing is shown to have been learnt." + _beside_training(runs),
            "number",
            [*_held_out_pairs(runs, "margin"), *_of_batches(runs, "margin")],
            levels=[Level(0.0, "reference")] if _held_out_pairs(runs, "margin") else [],
        ),
        Figure(
            "preference_accuracy",
            "Pairs told right",
            "How often the chosen answer gained more than the rejected one, of pairs held out, "
            "with its 95% confidence interval; 50% is no better than chance."
            + _beside_training(runs),
            "share",
            [*_held_out_pairs(runs, "accuracy"), *_of_batches(runs, "accuracy")],
        ),
        Figure(
            "rewards",
            "Rewards",
            "β times how much likelier than by the reference model an answer has become, of each "
            "step's batch, faint; centred mean, bold. Both may fall while the margin grows.",
            "number",
            _rewards(runs),
        ),
        Figure(
            "preference_loss",
            "Loss of pairs held out",
            "Nats a pair; lower is better.",
            "number",
            [
                Curve(
                    index,
                    "preference",
                    "loss",
                    "held out" if len(runs) == 1 else label,
                    index % NUM_COLOURS,
                    dash=index // NUM_COLOURS,
                )
                for index, (run, label) in enumerate(zip(runs, label_runs(runs), strict=True))
                if _has_values(run, "preference", "loss")
            ],
            log=True,
        ),
    ]


def _beside_training(runs: Sequence[RunRecord]) -> str:
    return " Dashed: the training batches' centred mean." if len(runs) == 1 else ""


def _held_out_pairs(runs: Sequence[RunRecord], what: str) -> list[Curve]:
    labels, found = label_runs(runs), []
    for index, run in enumerate(runs):
        prefix = f"{what}/mean/"
        names = [
            column.removeprefix(prefix)
            for column in run.preference.columns
            if column.startswith(prefix) and _has_values(run, "preference", column)
        ]
        for place, name in enumerate(names):
            own = "held out" if len(names) == 1 else name
            colour = place if len(runs) == 1 else index
            found.append(
                Curve(
                    index,
                    "preference",
                    prefix + name,
                    own if len(runs) == 1 else labels[index] + (f": {name}" if names[1:] else ""),
                    colour % NUM_COLOURS,
                    dash=0 if len(runs) == 1 else place,
                    band=(f"{what}/low/{name}", f"{what}/high/{name}"),
                )
            )
    return found


def _of_batches(runs: Sequence[RunRecord], what: str) -> list[Curve]:
    """The training batches' mean beside the held-out pairs of a single run."""
    mean = f"{what}_smoothed"
    if len(runs) != 1 or not _has_values(runs[0], "steps", mean):
        return []
    return [Curve(0, "steps", mean, "training batches", 4, dash=1)]


def _rewards(runs: Sequence[RunRecord]) -> list[Curve]:
    labels, found = label_runs(runs), []
    for index, run in enumerate(runs):
        for place, kind in enumerate(("chosen", "rejected")):
            column = f"rewards_{kind}"
            if _has_values(run, "steps", column):
                own = len(runs) == 1
                label = kind if own else f"{labels[index]}: {kind}"
                colour = (2, 1)[place] if own else index % NUM_COLOURS
                mean = f"{column}_smoothed"
                found.append(Curve(index, "steps", column, label, colour, place, mean))
    return found


def _of_benchmarks(runs: Sequence[RunRecord]) -> list[Figure]:
    """One for each task and metric that was asked while a run trained."""
    labels = label_runs(runs)
    known = {
        name_of(score): score
        for run in runs
        for event in run.of("evaluation")
        for score in scores_of(event)
    }
    found = []
    for place, (name, score) in enumerate(known.items()):
        chance = number(score.get("chance"))
        guessed = [Level(chance, "chance")] if math.isfinite(chance) else []
        curves = [
            Curve(
                index,
                "evaluation",
                f"value/{name}",
                str(score["metric"]) if len(runs) == 1 else labels[index],
                index % NUM_COLOURS,
                dash=index // NUM_COLOURS,
                band=(f"low/{name}", f"high/{name}"),
            )
            for index, run in enumerate(runs)
            if _has_values(run, "evaluation", f"value/{name}")
        ]
        better = "higher" if score.get("higher_is_better", True) else "lower"
        about = f"Of {number(score.get('items')):,.0f} items, with its 95% interval; {better} is "
        about += "better." + (" Dashed: what guessing scores." if guessed else "")
        unit = "share" if score.get("is_share") else "number"
        found.append(Figure(f"evaluation_{place}", name, about, unit, curves, levels=guessed))
    return found


def _of_machine(runs: Sequence[RunRecord]) -> list[Figure]:
    return [
        Figure(
            "tokens_per_second",
            "Throughput",
            "Tokens trained on a second; validation and saving left out.",
            "rate",
            _each(runs, "progress", "tokens_per_second"),
            zero=True,
        ),
        Figure(
            "mfu",
            "MFU",
            "Share of the matrix-product rate measured on this device.",
            "share",
            _each(runs, "progress", "mfu"),
            zero=True,
        ),
        Figure(
            "memory_bytes",
            "Memory",
            "Resident set on a CPU, the allocator's peak on a GPU.",
            "bytes",
            _each(runs, "progress", "memory_bytes"),
            zero=True,
            levels=_estimates(runs),
        ),
        Figure(
            "data_wait",
            "Waiting for data",
            "Share of the time in which a step waited for its batch.",
            "share",
            _each(runs, "progress", "data_wait"),
            zero=True,
        ),
    ]


def estimate_total(run: RunRecord) -> float:
    """Bytes that the run was estimated to need, from its `memory` event; NaN without one."""
    parts = run.last("memory").get("estimate")
    return sum(map(number, parts.values())) if isinstance(parts, dict) and parts else math.nan


def _estimates(runs: Sequence[RunRecord]) -> list[Level]:
    """One run's estimate above its baseline. (Lines of several would hide one another.)"""
    if len(runs) != 1:
        return []
    base = number(runs[0].last("memory").get("baseline_bytes", 0))
    total = estimate_total(runs[0]) + base
    return [Level(total, "estimated")] if math.isfinite(total) else []


def _each(
    runs: Sequence[RunRecord], table: str, column: str, mean: str | None = None
) -> list[Curve]:
    labels = label_runs(runs)
    names = {"loss": "loss", "grad_norm": "norm", "learning_rate": "rate", "mfu": "MFU"}
    names |= {"tokens_per_second": "tokens/s", "memory_bytes": "memory", "data_wait": "wait"}
    return [
        Curve(
            index,
            table,
            column,
            names[column] if len(runs) == 1 else labels[index],
            index % NUM_COLOURS,
            dash=index // NUM_COLOURS,
            smoothed=mean,
        )
        for index, run in enumerate(runs)
        if _has_values(run, table, column)
    ]


def _validation(runs: Sequence[RunRecord]) -> list[Curve]:
    """Together in the run's colour, unbroken; each dataset beside it."""
    labels, found = label_runs(runs), []
    for index, run in enumerate(runs):
        columns = [name for name in run.validation.columns if name.startswith(DATASET)]
        if not _has_values(run, "validation", "bits_per_byte"):
            continue
        own, colour = len(runs) == 1, index % NUM_COLOURS
        label = "together" if own else labels[index]
        found.append(Curve(index, "validation", "bits_per_byte", label, colour))
        if _has_values(run, "validation", "average"):
            label = "average of weights" if own else f"{labels[index]}: average of weights"
            found.append(Curve(index, "validation", "average", label, 5 if own else colour, dash=3))
        for number_of, column in enumerate(columns if len(columns) > 1 else ()):
            name = column.removeprefix(DATASET)
            found.append(
                Curve(
                    index,
                    "validation",
                    column,
                    name if own else f"{labels[index]}: {name}",
                    (number_of + 1) % NUM_COLOURS if own else colour,
                    dash=number_of % 3 + 1,
                )
            )
    return found


def _has_values(run: RunRecord, table: str, column: str) -> bool:
    values = table_of(run, table).columns.get(column, [])
    return bool((finite(values) == finite(values)).any()) if values else False
