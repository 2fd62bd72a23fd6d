"""Tokens that runs of different batches take to reach one loss, and the batch that takes fewest.

MiniCPM's first steps (arXiv 2404.06395, section 3.3): curves of loss against tokens, cut at one
loss, and a parabola in ln(batch) through ln(tokens) at which they are cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llamita.planning.quantities import tokens as short
from llamita.windtunnel.findings import EqualLoss, Optimum, RunResult, Trial
from llamita.windtunnel.optimum import fit_optimum
from llamita.windtunnel.parabola import Array
from llamita.windtunnel.window import MIN_VALUES

NUM_LOSSES = 8
"""At which a size's curves are cut. They share their runs' noise: more of them say hardly more."""
_REACHED = 4
"""Batches that have to reach a loss: one more than a parabola has constants."""


@dataclass(frozen=True)
class Cut:
    """One size's curves at its losses.

    losses: (losses,), falling. tokens: (runs, losses), ln of what each run takes, NaN where it does
    not come so far. batches, seeds: (runs,). optima: of each loss, None where there is none.
    skipped: why, in sentences.
    """

    size: str
    losses: Array
    tokens: Array
    batches: tuple[int, ...]
    seeds: tuple[int, ...]
    optima: tuple[Optimum | None, ...]
    skipped: tuple[str, ...]

    def minima(self) -> list[EqualLoss]:
        return [
            self._equal_loss(index, optimum)
            for index, optimum in enumerate(self.optima)
            if optimum is not None
        ]

    def _equal_loss(self, index: int, optimum: Optimum) -> EqualLoss:
        by_batch: dict[int, list[float]] = {}
        for batch, tokens in zip(self.batches, self.tokens[:, index], strict=True):
            if not math.isnan(tokens):
                by_batch.setdefault(batch, []).append(float(tokens))
        batches = sorted(by_batch)
        return EqualLoss(
            size=self.size,
            loss=float(self.losses[index]),
            batches=tuple(batches),
            tokens=tuple(math.exp(sum(by_batch[b]) / len(by_batch[b])) for b in batches),
            best=optimum,
        )


def cut_curves(size: str, runs: Sequence[RunResult]) -> Cut | str:
    """One size's runs at losses spread evenly in ln(loss).

    They lie between the highest loss that all runs have been measured above twice, so that none is
    at a curve's beginning, and the lowest that at least four batches, or as many as there are,
    reach with all their seeds. ln(tokens) over ln(loss) is a monotone cubic through the
    measurements (Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5:300, 1984) that are below all
    before them. Straight lines would bend the law: of planted curves of 24 measurements they gave
    b = 6.31 for 6.24.

    Returns:
        A sentence where there is nothing to cut.
    """
    usable = [run for run in runs if run.status == "done" and _points(run) > 1]
    batches = sorted({run.batch_tokens for run in usable})
    if len(batches) < MIN_VALUES:
        return (
            f"{size}: curves of {len(batches)} batch sizes, where {MIN_VALUES} are needed; "
            f"missing are {MIN_VALUES - len(batches)} more"
        )
    curves = [_lowest_so_far(run) for run in usable]
    top = min(float(logs[1]) for _, logs in curves)
    worst: dict[int, float] = {}
    for run, (_, logs) in zip(usable, curves, strict=True):
        worst[run.batch_tokens] = max(worst.get(run.batch_tokens, -math.inf), float(logs[-1]))
    enough = max(MIN_VALUES, min(_REACHED, len(batches)))
    bottom = sorted(worst.values())[enough - 1]
    if not bottom < top:
        return (
            f"{size}: no loss lies on the curves of {enough} batches at once: by the second "
            f"validation all are down to {math.exp(top):.4g}, and {enough} reach "
            f"{math.exp(bottom):.4g}; train for longer, or validate more often"
        )
    logs = top + (bottom - top) * (np.arange(NUM_LOSSES) + 0.5) / NUM_LOSSES
    tokens = np.array([_crossings(curve, logs) for curve in curves])
    return _with_optima(
        Cut(
            size=size,
            losses=np.exp(logs),
            tokens=tokens,
            batches=tuple(run.batch_tokens for run in usable),
            seeds=tuple(run.seed for run in usable),
            optima=(),
            skipped=(),
        )
    )


def mean_curves(runs: Sequence[RunResult]) -> Mapping[int, tuple[tuple[int, float], ...]]:
    """Batch tokens → (tokens, loss), a mean over the seeds where all were measured."""
    found: dict[int, dict[int, list[float]]] = {}
    counts: dict[int, int] = {}
    for run in runs:
        if run.status == "done" and _points(run) > 1:
            counts[run.batch_tokens] = counts.get(run.batch_tokens, 0) + 1
            for tokens, loss in run.curve:
                found.setdefault(run.batch_tokens, {}).setdefault(tokens, []).append(loss)
    return {
        batch: tuple(
            (tokens, sum(losses) / len(losses))
            for tokens, losses in sorted(found[batch].items())
            if len(losses) == counts[batch]
        )
        for batch in sorted(found)
    }


# -- one curve ------------------------------------------------------------------------------------


def _points(run: RunResult) -> int:
    """Validations after the beginning, where ln(tokens) is nothing."""
    return sum(tokens > 0 for tokens, _ in run.curve)


def _lowest_so_far(run: RunResult) -> tuple[Array, Array]:
    """ln(tokens) and ln of the lowest loss until then, both (validations,)."""
    points = np.log(np.array([point for point in run.curve if point[0] > 0], dtype=float))
    return points[:, 0], np.minimum.accumulate(points[:, 1])


def _crossings(curve: tuple[Array, Array], logs: Array) -> Array:
    """ln(tokens) at which losses are reached first; NaN where they are not, or before the first."""
    from scipy.interpolate import PchipInterpolator

    tokens, lowest = curve
    first = np.flatnonzero(np.diff(lowest, prepend=math.inf) < 0)
    if len(first) < 2:
        return np.full(len(logs), math.nan)
    return np.asarray(PchipInterpolator(-lowest[first], tokens[first], extrapolate=False)(-logs))


# -- the minima -----------------------------------------------------------------------------------


def _with_optima(cut: Cut) -> Cut:
    optima: list[Optimum | None] = []
    lost: dict[str, list[float]] = {}
    for loss, column in zip(cut.losses, cut.tokens.T, strict=True):
        trials = [
            Trial(float(batch), float(tokens), seed)
            for batch, tokens, seed in zip(cut.batches, column, cut.seeds, strict=True)
            if not math.isnan(tokens)
        ]
        optimum = fit_optimum(trials)
        if optimum.edge is not None:
            end, to = ("smallest", "smaller") if optimum.edge == "low" else ("largest", "larger")
            why = f"fewest tokens at the {end} batch, {short(optimum.value)}: add {to} ones"
            lost.setdefault(why, []).append(float(loss))
        elif not optimum.is_found:
            lost.setdefault("no minimum that a parabola has: add seeds", []).append(float(loss))
        optima.append(optimum if optimum.is_found else None)
    skipped = tuple(
        f"{cut.size} at {_losses(losses)} ({len(losses)} of {len(cut.losses)} losses): {why}"
        for why, losses in lost.items()
    )
    return Cut(cut.size, cut.losses, cut.tokens, cut.batches, cut.seeds, tuple(optima), skipped)


def _losses(losses: Sequence[float]) -> str:
    if len(losses) == 1:
        return f"{losses[0]:.4g}"
    return f"{max(losses):.4g} to {min(losses):.4g}"
