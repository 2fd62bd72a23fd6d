"""What `llamita law` does: show laws, and fit them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError
from llamita.planning.laws import (
    CONSTANTS,
    DEFAULT_LAW,
    Law,
    Rule,
    find_law,
    shipped_laws,
)
from llamita.planning.quantities import tokens as short

if TYPE_CHECKING:
    from llamita.planning.fitting import FittedLaw

_BUDGETS = tuple(10.0**exponent for exponent in range(18, 25))
"""FLOPs at which `law show` gives the optimum."""


def show_laws(name: str | Path | None = None) -> list[str]:
    """A table of the laws that come with llamita; or all about one of them, or about a law's file.

    Raises:
        UserError: no such law.
    """
    if name is not None:
        law = find_law(name)
        return _about_law(law) if isinstance(law, Law) else _about_rule(law)
    laws = shipped_laws()
    header = ["law", *CONSTANTS, "N in", "D in", "loss", "N counts"]
    rows = [_row(law) for law in laws.values() if isinstance(law, Law)]
    lines = _aligned([header, *rows], numbers=range(1, 6))
    lines += ["", "from"]
    width = max(len(law) for law in laws)
    lines += [f"{law:<{width}}  {what.source}" for law, what in laws.items()]
    return [
        "L(N, D) = E + A/N^alpha + B/D^beta; N: parameters, D: tokens, in units of `N in`, `D in`",
        "",
        *lines,
        "",
        f"The default is {DEFAULT_LAW}. More of one: llamita law show NAME",
    ]


def fit_law(
    sources: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    name: str | None = None,
    parameters: str | None = None,
    tokens: str | None = None,
    loss: str | None = None,
    group: str | None = None,
    loss_unit: str | None = None,
    counts: str | None = None,
    delta: float | None = None,
    bootstrap: int | None = None,
    seed: int | None = None,
    plot: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FittedLaw:
    """Fit a law to tables of runs and to runs' directories.

    Args:
        sources: .csv, .tsv, .jsonl files and directories of runs.
        out: the law's file, for wherever a law's name is taken; None writes nothing.
        name: the law's name; default that of `out`.
        parameters, tokens, loss, group: a table's columns, where they bear no usual name.
        loss_unit: of a table: nats per token, nats per byte or bits per byte.
        counts: total or non-embedding parameters.
        delta: of the Huber loss; default 1e-3.
        bootstrap: fits to resampled observations, by which intervals are found; default 400, 0:
            none.
        seed: for other resamples; default 0.
        plot: a .png or .svg of the residuals.
        progress: called with (fits done, fits in all).

    Raises:
        UserError: anything the user can put right.
    """
    # numpy is imported here, and not where laws are only shown.
    from llamita.planning.fitting import BOOTSTRAP, DELTA, fit_observations, require_scipy
    from llamita.planning.law_files import check_destination, write_law
    from llamita.planning.observations import Columns, read_observations
    from llamita.reporting.residual_plot import check_plot, write_residual_plot

    require_scipy()
    if bootstrap == 0 and seed is not None:
        raise UserError("--seed has no effect with --bootstrap 0; leave it out")
    called = name or ("fitted" if out is None else Path(out).stem)
    if out is not None:
        check_destination(Path(out), called)
    if plot is not None:
        check_plot(Path(plot))
    observations = read_observations(
        sources, columns=Columns(parameters, tokens, loss, group), loss=loss_unit, counts=counts
    )
    today = datetime.date.today().isoformat()
    shown = ", ".join(str(source) for source in sources[:3])
    rest = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    fitted = fit_observations(
        observations,
        name=called,
        source=f"fitted by llamita law fit on {today} to {len(observations.rows)} observations "
        f"from {shown}{rest}",
        delta=DELTA if delta is None else delta,
        bootstrap=BOOTSTRAP if bootstrap is None else bootstrap,
        seed=0 if seed is None else seed,
        progress=progress,
    )
    if out is not None:
        write_law(fitted.law, out)
    if plot is not None:
        write_residual_plot(fitted, Path(plot))
    return fitted


# -- a fit in words -------------------------------------------------------------------------------


def describe_fit(fitted: FittedLaw) -> list[str]:
    """What a fit found, how well it fits, and what is doubtful, in lines of text."""
    law, rows = fitted.law, fitted.observations.rows
    lines = [f"{law.name}: {_formula(law)} {law.loss}"]
    lines += _constants(law)
    sizes, tokens = law.fitted_parameters, law.fitted_tokens
    assert sizes is not None
    assert tokens is not None
    lines += [
        f"  fitted to   {len(rows)} observations of {short(sizes[0])} to {short(sizes[1])} "
        f"parameters ({law.counts}) and {short(tokens[0])} to {short(tokens[1])} tokens",
        f"  fit         R² {fitted.r_squared:.5f} of log-loss, residuals {fitted.rms:.3%} RMS and "
        f"{max(abs(value) for value in fitted.residuals):.3%} at most",
        f"  minimum     sum of Huber losses {fitted.objective:.6g} at δ = {fitted.delta:g}; "
        f"{fitted.agreeing_starts} of {fitted.num_starts} starts end there",
        f"  intervals   {_bootstrap(fitted)}",
    ]
    held = fitted.held_out
    if held is not None:
        error = round(held.error, 4) + 0.0  # and no -0.00%
        many = f" (RMS of the {held.num_observations}: {held.rms:.2%})"
        lines += [
            f"  left out    without {held.largest}, the law predicts {held.predicted:.4f} where "
            f"{held.observed:.4f} was measured: {error:+.2%}, at {held.reach:.3g} times the "
            f"compute of the rest{many if held.num_observations > 1 else ''}"
        ]
    loose = [name for name in fitted.undetermined if name != "E"]
    most = max(6 * row.parameters * row.tokens for row in rows)
    optima = [_optimum(law, most * factor) for factor in (1, 10, 100)]
    if loose:
        optima = [f"unknown: it takes {' and '.join(loose)}, which these runs do not determine"]
    for number, optimum in enumerate(optima):
        lines += [f"  {'' if number else 'optimum':<10}  {optimum}"]
    return lines + [f"  warning     {warning}" for warning in fitted.warnings]


def fit_as_json(fitted: FittedLaw) -> dict[str, Any]:
    """The same for programs; the bootstrap's samples are in the law's file."""
    law, held = fitted.law, fitted.held_out
    values = asdict(law)
    for key in ("samples", "repetition", "errors", "note"):
        del values[key]
    return {
        "law": values,
        "objective": fitted.objective,
        "delta": fitted.delta,
        "converged": fitted.converged,
        "undetermined": list(fitted.undetermined),
        "r_squared": fitted.r_squared,
        "rms": fitted.rms,
        "bootstrap": {
            "fits": len(law.samples),
            "resampled": fitted.resampled,
            "of": fitted.num_resampled,
            "seed": fitted.seed,
        },
        "held_out": None if held is None else {**asdict(held), "error": held.error},
        "observations": [
            {**asdict(row), "residual": residual}
            for row, residual in zip(fitted.observations.rows, fitted.residuals, strict=True)
        ],
        "warnings": list(fitted.warnings),
    }


def _bootstrap(fitted: FittedLaw) -> str:
    if not fitted.law.samples:
        return "none" if fitted.bootstrap else "none (--bootstrap 0)"
    return (
        f"95%, percentiles of {len(fitted.law.samples)} fits to {fitted.resampled}s drawn with "
        f"replacement from {fitted.num_resampled} (seed {fitted.seed})"
    )


def _optimum(law: Law, flops: float) -> str:
    parameters, tokens = law.compute_optimal(flops)
    size = _between(_optimal_size(law, flops), short)
    return (
        f"at {flops:.3g} FLOPs {short(parameters)} parameters{size}, {short(tokens)} tokens, "
        f"loss {_loss(law, parameters, tokens)}"
    )


def _optimal_size(law: Law, flops: float) -> tuple[float, float] | None:
    return law.interval_of(lambda each: each.compute_optimal(flops)[0])


def _loss(law: Law, parameters: float, tokens: float) -> str:
    interval = _between(law.interval(parameters, tokens), lambda value: f"{value:.4f}")
    return f"{law.at(parameters, tokens):.4f}{interval}"


def _between(interval: tuple[float, float] | None, words: Callable[[float], str]) -> str:
    return "" if interval is None else f" [{words(interval[0])}, {words(interval[1])}]"


# -- a law in words -------------------------------------------------------------------------------


def _row(law: Law) -> list[str]:
    numbers = [f"{getattr(law, key):.5g}" for key in CONSTANTS]
    units = [_unit(law.parameters_unit), _unit(law.tokens_unit)]
    return [law.name, *numbers, *units, law.loss, law.counts]


def _unit(value: float) -> str:
    return f"{value:g}".replace("e+0", "e")


def _formula(law: Law) -> str:
    n = "N" if law.parameters_unit == 1 else f"(N/{_unit(law.parameters_unit)})"
    d = "D" if law.tokens_unit == 1 else f"(D/{_unit(law.tokens_unit)})"
    return (
        f"L(N, D) = {law.E:.5g} + {law.A:.5g}/{n}^{law.alpha:.4g} + {law.B:.5g}/{d}^{law.beta:.4g}"
    )


def _constants(law: Law) -> list[str]:
    lines = []
    for key in CONSTANTS:
        line = f"  {key:<10}  {getattr(law, key):.5g}"
        if key in law.errors:
            line += f" ± {law.errors[key]:.3g}"
        if key in law.intervals:
            low, high = law.intervals[key]
            line += f" [{low:.5g}, {high:.5g}]"
        lines.append(line)
    return lines


def _about_law(law: Law) -> list[str]:
    lines = [f"{law.name}: {_formula(law)}", *_constants(law)]
    lines += [f"  {'loss':<10}  {law.loss}", f"  {'N counts':<10}  {law.counts} parameters"]
    known = [
        f"{short(fitted[0])} to {short(fitted[1])} {what}"
        for what, fitted in (("parameters", law.fitted_parameters), ("tokens", law.fitted_tokens))
        if fitted is not None
    ]
    if law.fitted_ratio is not None:
        low, high = law.fitted_ratio
        known += [f"{low:.3g} to {high:.3g} tokens per parameter"]
    lines += [f"  {'runs':<10}  {', '.join(known) or 'the source does not say'}"]
    if law.repetition is not None:
        lines += [f"  {'repetition':<10}  {_repetition(law)}"]
    lines += [f"  {'source':<10}  {law.source}"]
    lines += [f"  {'note':<10}  {law.note}"] if law.note else []
    lines += [f"  {'text':<10}  {law.data}"] if law.data else []
    if law.samples:
        lines += [f"  {'bootstrap':<10}  {len(law.samples)} fits; 95% intervals in brackets"]
    table = [["FLOPs", "parameters", "tokens", "tokens/parameter", "loss", ""]]
    table += [_at_budget(law, flops) for flops in _BUDGETS]
    return [*lines, "", "compute-optimal, 6·N·D = FLOPs:", *_aligned(table, numbers=range(5))]


def _at_budget(law: Law, flops: float) -> list[str]:
    parameters, tokens = law.compute_optimal(flops)
    return [
        f"{flops:.0e}".replace("+", ""),
        short(parameters) + _between(_optimal_size(law, flops), short),
        short(tokens),
        f"{tokens / parameters:.3g}",
        _loss(law, parameters, tokens),
        "extrapolated" if law.beyond_its_runs(parameters, tokens) else "",
    ]


def _repetition(law: Law) -> str:
    assert law.repetition is not None
    star = law.repetition.parameters
    return f"R* of data {law.repetition.data:g}" + ("" if star is None else f", of N {star:g}")


def _about_rule(rule: Rule) -> list[str]:
    table = [["FLOPs", "parameters", "tokens"]]
    for flops in _BUDGETS:
        parameters, tokens = rule.compute_optimal(flops)
        table.append([f"{flops:.0e}".replace("+", ""), short(parameters), short(tokens)])
    return [
        f"{rule.name}: D = {rule.tokens_per_parameter:g}·N",
        f"  {'N counts':<10}  {rule.counts} parameters",
        f"  {'source':<10}  {rule.source}",
        *([f"  {'note':<10}  {rule.note}"] if rule.note else []),
        "",
        "6·N·D = FLOPs:",
        *_aligned(table, numbers=range(3)),
    ]


def _aligned(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[str]:
    """Columns two spaces apart, those of numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:>{width}}" if column in numbers else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
