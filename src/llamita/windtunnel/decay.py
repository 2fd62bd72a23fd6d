"""How long, in which form and on which text to decay: runs that end one trunk in different ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from llamita.errors import UserError
from llamita.planning.fitting import require_scipy
from llamita.windtunnel.decay_words import NAMED, Noise, compare, describe
from llamita.windtunnel.findings import DecayCell, DecayStudy, RunResult
from llamita.windtunnel.parabola import fit_additive

_Way = tuple[str, float, str, str]
"""Size, share, form, mixture."""


def study_decays(runs: Sequence[RunResult], *, level: float = 0.95) -> DecayStudy:
    """Compare the ways in which runs decay, size by size.

    A run that has `decay.share` among its values is a decay (and `decay.form`, `decay.mixture`);
    the others are trunks. Differences are means of what runs of one seed, and so of one trunk,
    differ by. Their intervals are Student's, with the noise that all ways of a size have in common,
    offsets of ways and of seeds taken out: (ways − 1)·(seeds − 1) degrees of freedom. A size's
    first way, in the runs' order, is what its others are compared with in the cells.

    The verdict compares with the best, and calls a way worse only where that difference's interval
    lies above nought, wide enough to hold for all pairs of ways at once (Bonferroni).

    Raises:
        UserError: no decay has ended; scipy is not installed.
    """
    require_scipy()
    decays = [run for run in runs if "decay.share" in run.values]
    losses: dict[_Way, dict[int, float]] = {}
    for run in decays:
        if run.status == "done" and run.loss is not None:
            losses.setdefault(_way(run), {})[run.seed] = run.loss
    if not losses:
        raise UserError(
            f"of {len(decays)} runs that decay none has ended; at least 2 ways to decay are needed "
            "to compare them"
        )
    cells: list[DecayCell] = []
    undecayed: dict[str, float] = {}
    verdicts = []
    for size in dict.fromkeys(way[0] for way in losses):
        of_size = {way: found for way, found in losses.items() if way[0] == size}
        noise = _noise(list(of_size.values()))
        compared = _cells(of_size, noise, level)
        loss = _undecayed(runs, decays, size)
        if loss is not None:
            undecayed[size] = loss
        cells += compared
        verdicts.append(f"{size}: {describe(compared, loss, noise, level)}")
    return DecayStudy(tuple(cells), undecayed, ". ".join(verdicts), tuple(_notes(runs, losses)))


def _way(run: RunResult) -> _Way:
    values = run.values
    return (
        run.size,
        float(values["decay.share"]),
        str(values.get("decay.form", "")),
        str(values.get("decay.mixture", "")),
    )


def _noise(losses: Sequence[Mapping[int, float]]) -> Noise:
    rows = [(way, seed, loss) for way, found in enumerate(losses) for seed, loss in found.items()]
    ways, seeds, values = (np.array(column) for column in zip(*rows, strict=True))
    fit = fit_additive(ways, values, seeds)
    deviation = math.sqrt(fit.squares / fit.freedom) if fit.freedom > 0 else math.nan
    return Noise(deviation, fit.freedom)


def _cells(
    losses: Mapping[_Way, Mapping[int, float]], noise: Noise, level: float
) -> list[DecayCell]:
    """Of one size."""
    reference = next(iter(losses.values()))
    cells = []
    for (size, share, form, mixture), by_seed in losses.items():
        difference, interval = None, None
        if by_seed is not reference:
            difference, interval = compare(by_seed, reference, noise, level)
        cells.append(
            DecayCell(
                share=share,
                form=form,
                mixture=mixture,
                size=size,
                losses=dict(by_seed),
                mean=sum(by_seed.values()) / len(by_seed),
                difference=difference,
                difference_interval=interval,
            )
        )
    return cells


def _undecayed(runs: Sequence[RunResult], decays: Sequence[RunResult], size: str) -> float | None:
    """Mean over the trunks of a size, of the loss where their last decay begins."""
    begins = [
        run.tokens * (1 - float(run.values["decay.share"])) for run in decays if run.size == size
    ]
    trunks = [run for run in runs if run.size == size and "decay.share" not in run.values]
    found = [loss for run in trunks if (loss := _loss_at(run, max(begins))) is not None]
    return sum(found) / len(found) if found else None


def _loss_at(run: RunResult, tokens: float) -> float | None:
    """Linear in ln(tokens) between validations; the last one's where a trunk ends earlier."""
    points = [point for point in run.curve if point[0] > 0]
    if not points:
        return run.loss
    counts, losses = zip(*points, strict=True)
    return float(np.interp(math.log(tokens), np.log(counts), losses))


def _notes(runs: Sequence[RunResult], losses: Mapping[_Way, Mapping[int, float]]) -> list[str]:
    notes = []
    lost = [run for run in runs if run.status != "done"]
    if lost:
        shown = ", ".join(f"{run.key} ({run.status})" for run in lost[:NAMED])
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        count = "1 run has" if len(lost) == 1 else f"{len(lost)} runs have"
        notes.append(f"{count} no loss and cannot be compared: {shown}{more}")
    seeds = {size: 0 for size, *_ in losses}
    for (size, *_), by_seed in losses.items():
        seeds[size] = max(seeds[size], len(by_seed))
    single = [size for size, count in seeds.items() if count < 2]
    if single:
        notes.append(
            f"{', '.join(single)}: one seed, so that nothing tells a difference from noise; at "
            "least 1 more seed is missing, and 3 or more in all make intervals narrow"
        )
    return notes
