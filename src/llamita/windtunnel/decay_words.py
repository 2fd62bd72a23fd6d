"""Ways to decay compared with the best of them, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamita.windtunnel.findings import DecayCell, Interval
from llamita.windtunnel.parabola import student_t

NAMED = 4
"""Ways that a sentence lists before it counts them."""


@dataclass(frozen=True)
class Noise:
    """Standard deviation of a loss about its way's and its seed's mean; NaN with no freedom."""

    deviation: float
    freedom: int


def compare(
    losses: Mapping[int, float], reference: Mapping[int, float], noise: Noise, level: float
) -> tuple[float | None, Interval | None]:
    """Seed → loss of two ways: the mean difference over the seeds that both have, and its interval;
    None with no such seed, and where nothing tells of noise."""
    gaps = [losses[seed] - reference[seed] for seed in losses if seed in reference]
    if not gaps:
        return None, None
    mean = sum(gaps) / len(gaps)
    if noise.freedom < 1:
        return mean, None
    half = student_t(noise.freedom, level) * noise.deviation * math.sqrt(2 / len(gaps))
    return mean, (mean - half, mean + half)


def describe(
    cells: Sequence[DecayCell], undecayed: float | None, noise: Noise, level: float
) -> str:
    """One size's ways, without a winner where none is shown."""
    best = min(cells, key=lambda cell: cell.mean)
    name = name_of(best, cells)
    gain = "" if undecayed is None else f", {undecayed - best.mean:.3g} below the trunk"
    at = f"{name}, {best.mean:.4f}{gain}"
    if len(cells) == 1:
        return f"{at}; no other way to decay has ended, and at least 1 is missing to compare with"
    # The best is whichever noise made lowest, so that any two might be what is compared.
    together = 1 - (1 - level) / math.comb(len(cells), 2)
    alike: list[DecayCell] = []
    worse: list[tuple[DecayCell, float]] = []
    for cell in cells:
        if cell is not best:
            difference, interval = compare(cell.losses, best.losses, noise, together)
            if difference is not None and interval is not None and interval[0] > 0:
                worse.append((cell, difference))
            else:
                alike.append(cell)
    if noise.freedom < 1:
        found = f"lowest is {at}, of one seed: whether it is better than others cannot be said"
    elif not alike:
        found = f"best is {at}"
    else:
        found = f"lowest is {at}, not shown to be better than {_list(alike, cells)}"
    if worse:
        gaps = sorted(gap for _, gap in worse)
        span = f"{gaps[0]:.3g}" if len(gaps) == 1 else f"{gaps[0]:.3g} to {gaps[-1]:.3g}"
        found += f"; {_list([cell for cell, _ in worse], cells)} end {span} higher"
    return found + _shortest(cells, best, noise, level)


def name_of(cell: DecayCell, cells: Sequence[DecayCell]) -> str:
    """What sets a way apart from the others."""
    words = [f"{cell.share * 100:.3g}%"]
    if len({each.form for each in cells}) > 1:
        words.append(cell.form)
    if len({each.mixture for each in cells}) > 1:
        words.append(f"on {cell.mixture}")
    return " ".join(words)


def _list(chosen: Sequence[DecayCell], cells: Sequence[DecayCell]) -> str:
    if len(chosen) > NAMED:
        return f"{len(chosen)} of the {len(cells) - 1} others"
    return ", ".join(name_of(cell, cells) for cell in chosen)


def _shortest(cells: Sequence[DecayCell], best: DecayCell, noise: Noise, level: float) -> str:
    """What the shortest decay costs, in its best form."""
    share = min(cell.share for cell in cells)
    if share == best.share:
        return ""
    cell = min((cell for cell in cells if cell.share == share), key=lambda cell: cell.mean)
    difference, interval = compare(cell.losses, best.losses, noise, level)
    if difference is None:
        return ""
    found = f"; the shortest decay, {name_of(cell, cells)}, ends {difference:+.3g} beside it"
    return found if interval is None else f"{found} ({interval[0]:+.3g} to {interval[1]:+.3g})"
