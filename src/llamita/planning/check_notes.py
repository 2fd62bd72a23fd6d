"""What a run's events show of why it differed from its plan, in words. Nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamita.planning.outcome import (
    AGAIN,
    SAMPLES,
    SAVING,
    STEPS,
    VALIDATION,
    Achieved,
    Planned,
    Process,
)
from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short

_WORTH_SAYING = 0.02
"""Of the time in question; below it nothing is explained."""
_CLOSE = 0.1
_UNEVEN = 1.5
"""Fastest over slowest pace from which on the machine was not the same throughout."""


def seconds_text(seconds: float) -> str:
    """As `duration`, with a decimal below ten seconds."""
    return f"{seconds:.1f}s" if seconds < 9.95 else duration(seconds)


def plan_notes(planned: Planned, unplanned: int, abandoned: float) -> Iterator[str]:
    """What the comparison rests on."""
    if not planned.written:
        yield (
            "no plan was written into this run before its first step: planned are the steps and "
            "tokens that it announced, and the time of its probe, forward and backward alone"
        )
    if unplanned:
        yield (
            f"the first {unplanned:,} steps were taken before a plan was written; what is compared "
            "begins after them"
        )
    if abandoned >= 1:
        yield (
            f"the run was started anew: {seconds_text(abandoned)} before that, of which nothing "
            "was kept, are not counted"
        )


def time_notes(planned: Planned, achieved: Achieved) -> Iterator[str]:
    """What a difference in time is made of."""
    if planned.written:
        yield from _parts(planned, achieved)
    pace = achieved.tokens_per_second / planned.tokens_per_second
    if abs(pace - 1) > _CLOSE:
        yield f"steps ran at {pace:.0%} of the pace that was measured before the first one"
    if achieved.rates and achieved.rates[1] > _UNEVEN * achieved.rates[0]:
        slowest, fastest = achieved.rates
        yield f"the pace was uneven: between {short(slowest)} and {short(fastest)} tokens/s"
    if achieved.waiting > _WORTH_SAYING * achieved.stepping:
        yield (
            f"steps waited {seconds_text(achieved.waiting)} for data, "
            f"{achieved.waiting / achieved.stepping:.1%} of their time"
        )
    if abs(achieved.seconds - planned.seconds) > _CLOSE * planned.seconds:
        yield f"the plan does not know of {' or '.join(planned.left_out)}"


def _parts(planned: Planned, achieved: Achieved) -> Iterator[str]:
    excess = {
        name: achieved.parts.get(name, 0.0) - planned.parts.get(name, 0.0)
        for name in (STEPS, VALIDATION, SAVING, SAMPLES, AGAIN)
    }
    told = [
        f"{name} {'+' if more > 0 else '−'}{seconds_text(abs(more))}"
        for name, more in sorted(excess.items(), key=lambda item: -abs(item[1]))
        if abs(more) > _WORTH_SAYING * planned.seconds
    ]
    if told:
        yield f"beyond the plan: {', '.join(told)}"


def history_notes(processes: Sequence[Process], achieved: Achieved) -> Iterator[str]:
    """Preparing, pauses, deaths, changes, and steps that were lost or skipped."""
    if achieved.preparing > _WORTH_SAYING * achieved.seconds:
        yield (
            f"{seconds_text(achieved.preparing)} went into preparing before the plan was written, "
            "and are not counted"
        )
    if len(processes) > 1:
        yield (
            f"{len(processes)} processes, {seconds_text(sum(achieved.pauses))} between them not "
            f"counted"
        )
    if achieved.unannounced:
        many = "a process" if achieved.unannounced == 1 else f"{achieved.unannounced} processes"
        yield f"{many} ended without saying so: the time after the last event is not known"
    steps, seconds = achieved.lost
    if steps:
        yield (
            f"{steps:,} steps were lost and taken again: {seconds_text(seconds)} of the time, and "
            f"their arithmetic, are counted twice"
        )
    for process in processes[1:]:
        changed = [str(key) for key in process.events[0].get("changed") or ()]
        if changed:
            yield f"went on from step {process.begins:,} with changes: {', '.join(changed)}"
    if achieved.skipped:
        yield (
            f"{achieved.skipped:,} of {achieved.steps:,} steps were skipped: they took time and "
            "reached no weights"
        )


def early_notes(stopped: Mapping[str, Any], planned: Planned) -> Iterator[str]:
    """What an end before the plan's leaves undone."""
    if stopped:
        left = planned.ends - planned.last
        yield f"validation.patience ended the run: {left:,} of the plan's steps were not taken"


def loss_notes(
    predicted: Mapping[str, Any], achieved: float | None, planned: Planned, *, finished: bool
) -> Iterator[str]:
    """What the law's figure is worth beside the achieved one, in the law's unit."""
    law, unit = predicted["law"], predicted["loss_unit"]
    if not predicted["comparable"]:
        yield (
            f"the loss by {law} is of another text"
            f"{' and another tokenizer' if unit == 'nats per token' else ''}: the difference is no "
            "error of either. A law fitted on runs of this data can be compared (llamita law fit)"
        )
        return
    if not finished:
        yield f"{law} speaks of the end of training, which is not there yet"
        return
    interval = predicted["interval"]
    if interval is not None and achieved is not None:
        low, high = interval
        where = "inside" if low <= achieved <= high else "outside"
        yield f"{achieved:.4f} {unit} lies {where} the interval of {law}, {low:.4f} to {high:.4f}"
    if abs(planned.tokens / predicted["tokens"] - 1) > 0.01 and planned.first == 0:
        yield (
            f"{law} spoke of {short(predicted['tokens'])} tokens, and the recipe trains on "
            f"{short(planned.tokens)}"
        )
