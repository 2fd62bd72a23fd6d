"""L(N, D) from runs of a study: MiniCPM's way, one stable run a size with decays branching off it.

Six sizes of six lengths then take tokens in proportion to the longest of each size, and not to the
sum of all (arXiv 2404.06395, section 4.5: O(m)·C instead of O(m²)·C).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llamita.errors import UserError
from llamita.planning.fitting import (
    BOOTSTRAP,
    MIN_DISTINCT,
    MIN_POINTS,
    FittedLaw,
    fit_observations,
)
from llamita.planning.laws import Law
from llamita.planning.observations import Observation, Observations
from llamita.windtunnel.findings import LawStudy, OptimalRatio, RunResult

LARGEST_BUDGET = 1e21
"""FLOPs, up to which compute-optimal points are given: there MiniCPM has 192 tokens a parameter."""


def study_law(
    runs: Sequence[RunResult],
    trunks: Mapping[str, str],
    *,
    name: str = "windtunnel",
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> LawStudy:
    """Fit L = E + A/N^α + B/D^β to decayed runs, with intervals that know which share a trunk.

    D are all tokens that a branch's weights have seen, its trunk's included; N leaves embeddings
    out; the loss is in bits per byte. Budgets are 6·N·D.

    Args:
        trunks: key of a branch → key of the run that it branches off. A run that is a trunk and no
            branch has not decayed, and is no point of the law. A run that is neither is a point.

    Raises:
        UserError: too few points, sizes or lengths for five constants; scipy is not installed.
    """
    points = [run for run in runs if run.loss is not None and run.key not in _undecayed(trunks)]
    rows = tuple(
        Observation(
            parameters=float(run.parameters),
            tokens=float(run.tokens),
            loss=run.loss,
            group=trunks.get(run.key, ""),
            where=run.key,
        )
        for run in points
        if run.loss is not None
    )
    _refuse_too_few(rows, len(runs))
    fitted = fit_observations(
        Observations(rows, "bits per byte", "non-embedding"),
        name=name,
        source="fitted by llamita to a study's runs",
        bootstrap=bootstrap,
        seed=seed,
    )
    return LawStudy(
        fitted=fitted,
        ratios=optimal_ratios(fitted),
        runs=tuple(points),
        trunk_tokens=_tokens_of_trunks(runs, trunks),
        branch_tokens=sum(run.tokens - (_start(run) if run.key in trunks else 0) for run in points),
        separate_tokens=sum(run.tokens for run in points),
    )


def optimal_ratios(fitted: FittedLaw) -> tuple[OptimalRatio, ...]:
    """Compute-optimal points, a decade apart, from the runs' least compute to `LARGEST_BUDGET`.

    None where the runs leave a constant open: then nothing says where the two terms balance.
    """
    if fitted.undetermined:
        return ()
    spent = [6 * row.parameters * row.tokens for row in fitted.observations.rows]
    lowest, highest = min(spent), max(spent)
    first = math.floor(math.log10(lowest))
    last = max(round(math.log10(LARGEST_BUDGET)), math.ceil(math.log10(highest)))
    return tuple(
        _ratio(fitted.law, 10.0**power, not lowest <= 10.0**power <= highest)
        for power in range(first, last + 1)
    )


def _ratio(law: Law, flops: float, extrapolated: bool) -> OptimalRatio:
    parameters, tokens = law.compute_optimal(flops)
    return OptimalRatio(
        flops=flops,
        parameters=parameters,
        tokens=tokens,
        ratio=tokens / parameters,
        ratio_interval=law.interval_of(lambda each: _tokens_per_parameter(each, flops)),
        extrapolated=extrapolated,
    )


def _tokens_per_parameter(law: Law, flops: float) -> float:
    parameters, tokens = law.compute_optimal(flops)
    return tokens / parameters


def _undecayed(trunks: Mapping[str, str]) -> set[str]:
    return set(trunks.values()) - set(trunks)


def _refuse_too_few(rows: Sequence[Observation], tried: int) -> None:
    needs = (
        ("different points (N, D)", {(row.parameters, row.tokens) for row in rows}, MIN_POINTS),
        ("model sizes", {row.parameters for row in rows}, MIN_DISTINCT),
        ("lengths of training", {row.tokens for row in rows}, MIN_DISTINCT),
    )
    missing = [
        f"{least - len(values)} more {what} (there {'is' if len(values) == 1 else 'are'} "
        f"{len(values)} of at least {least})"
        for what, values, least in needs
        if len(values) < least
    ]
    if missing:
        raise UserError(
            f"a law of five constants needs {', and '.join(missing)}; of {tried} runs "
            f"{len(rows)} decayed and came to an end: add runs, or run the study to its end"
        )


def _start(run: RunResult) -> int:
    """Tokens after which a branch left its trunk: that is when it was first validated."""
    return run.curve[0][0] if run.curve else run.tokens


def _tokens_of_trunks(runs: Sequence[RunResult], trunks: Mapping[str, str]) -> int:
    """Each up to the last place where a branch left it."""
    ends: dict[str, int] = {}
    for run in runs:
        if run.key in trunks:
            ends[trunks[run.key]] = max(ends.get(trunks[run.key], 0), _start(run))
    return sum(ends.values())
