"""What a study is going to do, in lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short
from llamita.windtunnel.costs import ASSUMED_SHARE, Costs, Rate
from llamita.windtunnel.points import Points
from llamita.windtunnel.results import Journal
from llamita.windtunnel.runner import SlotPlan

_HEAD = ("run", "N", "tokens", "FLOPs", "time", "")


def describe_study(
    points: Points, journal: Journal, costs: Costs, slots: Sequence[SlotPlan], rate: Rate
) -> Iterator[str]:
    """Every run with what it takes, and the total. N is without embeddings; tokens and FLOPs of a
    branch are its own."""
    rows: list[tuple[str, ...]] = [_HEAD]
    flops, seconds, tokens, missing = 0.0, 0.0, 0, 0
    for point in points.points:
        cost = costs.of(point)
        takes = rate.seconds(point, cost)
        done = journal.is_final(point.key)
        if not done and not point.coordinates:
            flops, tokens, missing = flops + cost.flops, tokens + cost.tokens, missing + 1
            seconds += takes or 0.0
        rows.append(
            (
                point.name
                + (f", from {point.trunk} step {point.start_step}" if point.trunk else ""),
                short(cost.parameters),
                short(cost.tokens),
                f"{cost.flops:.2e}",
                "?" if takes is None else duration(takes),
                "there" if done else point.key,
            )
        )
    yield from _table(rows)
    for cell in points.searched:
        yield (
            f"{cell.experiment} {cell.size.name} {cell.parametrization} seed {cell.seed}: "
            f"{cell.trials} trials over {', '.join(cell.sweep.axes)}, as it goes"
        )
    yield ""
    where = f"{len(slots)} at once on {slots[0].device}"
    time = "in a time that the first runs will show"
    if rate.assumed is not None or rate.measured:
        time = f"about {duration(seconds / len(slots))}"
        basis = "by what its runs have reached"
        if not rate.measured:
            basis = f"if runs reach {ASSUMED_SHARE:.0%} of this CPU's product rate"
        time += f" ({basis}; validation and starting besides)"
    yield f"{missing} runs to make, {short(tokens)} tokens, {flops:.3g} FLOPs: {where}, {time}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
