"""What a run's events say of its plan and of what came of it; `check.py` compares the two.

A plan is a `forecast` event (training/forecast.py). The first one of a run is its plan; when a run
went on with more or fewer steps, the forecast made then is the plan of what followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llamita.planning.quantities import number

Event = Mapping[str, Any]

STEPS, VALIDATION, SAVING, SAMPLES = "steps", "validation", "saving", "samples"
EVALUATION = "evaluation"
AGAIN = "preparing again"
"""What time goes into: of a run's own, and of later processes that begin where others stopped."""
REFERENCE = "reference"
"""Of a plan: the reference model's passes over pairs. No event of its own ends them, so that they
count as validation, to which they lead over."""
_KINDS = {
    "validation": VALIDATION,
    "preference": VALIDATION,
    "checkpoint": SAVING,
    "end": SAVING,
    "sample": SAMPLES,
    "evaluation": EVALUATION,
}
"""What the time before an event went into, where it is not steps. Before `end`, `final` is made."""
_PREPARED = ("step", "validation", "preference", "sample", "evaluation", "stage")
"""What a process does once its plan is written begins with one of these."""


@dataclass(frozen=True)
class Process:
    """The events of one process, from its `start` or `resume` to the last that it wrote."""

    events: Sequence[Event]

    @property
    def begins(self) -> int:
        """Steps that were taken before it."""
        return int(self.events[0]["step"])

    @property
    def reached(self) -> int:
        return max((int(e["step"]) for e in self.of("step")), default=self.begins)

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.gaps())

    @property
    def preparing(self) -> float:
        """Seconds until its plan was written: allocating, compiling, measuring."""
        total = 0.0
        for event, seconds in self.gaps():
            if event["event"] in _PREPARED:
                break
            total += seconds
        return total

    @property
    def forecast(self) -> Event | None:
        return next(iter(self.of("forecast")), None)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]

    def gaps(self) -> Iterator[tuple[Event, float]]:
        """Each event but the first, and the seconds since the one before it."""
        for before, event in pairwise(self.events):
            passed = number(event.get("time")) - number(before.get("time"))
            yield event, max(0.0, passed) if math.isfinite(passed) else 0.0

    def parts(self) -> dict[str, float]:
        """Seconds after preparing, by what they went into."""
        found: dict[str, float] = {}
        pairs = {event.get("stage") for event in self.of("step") if "margin" in event}
        for event, seconds in self.gaps():
            kind = _KINDS.get(event["event"], STEPS)
            if event["event"] == "stage" and event.get("name") in pairs:
                kind = VALIDATION  # its reference was made just before
            found[kind] = found.get(kind, 0.0) + seconds
        found[STEPS] = found.get(STEPS, 0.0) - self.preparing
        return found


def processes_of(events: Sequence[Event]) -> list[Process]:
    """A run's processes in order; events before the first `start` or `resume` belong to none.

    Every event has its step; one without is not ours.
    """
    found: list[list[Event]] = []
    for event in events:
        if not isinstance(event.get("step"), int):
            continue
        if event["event"] in ("start", "resume"):
            found.append([event])
        elif found:
            found[-1].append(event)
    return [Process(tuple(events)) for events in found]


# -- the plan -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """What forecasts said of the steps from `first` to `last`. The plan itself goes to `ends`.

    written: whether forecasts said it. parts: seconds by what they go into. step_flops: by the
    stage's name.
    """

    written: bool
    first: int
    last: int
    ends: int
    tokens: float
    flops: float
    parts: Mapping[str, float]
    mfu: float
    devices: int
    predicted: Mapping[str, Any] | None
    left_out: Sequence[str]
    step_flops: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """NaN where no forecast said what there is beside steps."""
        return sum(self.parts.values()) if self.written else math.nan

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.parts[STEPS] if self.parts.get(STEPS) else math.nan


def planned_of(processes: Sequence[Process]) -> Planned:
    """The plan, up to where the run has come.

    Args:
        processes: where any of them wrote a plan, from the first of those on.
    """
    plans: list[tuple[Event, list[Process]]] = []
    for process in processes:
        plan = process.forecast or _announced(process)
        if not plans or plan["last_step"] != plans[-1][0]["last_step"]:
            plans.append((plan, []))
        plans[-1][1].append(process)
    ends = [int(plan["step"]) for plan, _ in plans[1:]] + [processes[-1].reached]
    parts: dict[str, float] = {}
    tokens = flops = busy = 0.0
    step_flops: dict[str, float] = {}
    for (plan, members), end in zip(plans, ends, strict=True):
        for stage in plan["stages"]:
            share = min(1.0, max(0.0, (end - stage["first_step"]) / stage["steps"]))
            tokens += share * stage["tokens"]
            flops += share * stage["flops"]
            busy += plan["mfu"] * share * stage["seconds"]
            parts[STEPS] = parts.get(STEPS, 0.0) + share * stage["seconds"]
            step_flops[stage["name"]] = stage["flops"] / stage["steps"]
        for name, seconds in _beside_steps(plan, members, end).items():
            parts[name] = parts.get(name, 0.0) + seconds
    newest = plans[-1][0]
    return Planned(
        written=all("seconds" in plan for plan, _ in plans),
        first=int(plans[0][0]["step"]),
        last=ends[-1],
        ends=int(newest["last_step"]),
        tokens=tokens,
        flops=flops,
        parts=parts,
        mfu=busy / parts[STEPS] if parts[STEPS] else math.nan,
        devices=int(newest["devices"]),
        predicted=newest["predicted"],
        left_out=newest["left_out"],
        step_flops=step_flops,
    )


def _announced(process: Process) -> Event:
    """In place of a forecast: the stages that a process announced, at the pace that it measured.

    Runs had no forecasts once; their probe timed forward and backward alone.
    """
    begin, probe = process.events[0], next(iter(process.of("probe")), {})
    last = begin.get("last_step", process.reached)
    each = number(probe.get("step_seconds"))
    whole = {"name": "", "first_step": process.begins, "num_steps": last - process.begins}
    stages = []
    for stage in begin.get("stages") or [whole]:
        first = max(stage["first_step"], process.begins)
        steps = stage["first_step"] + stage["num_steps"] - first
        if steps > 0:
            amounts = {"tokens": steps * number(stage.get("batch_tokens")), "flops": math.nan}
            amounts |= {"steps": steps, "seconds": steps * each}
            stages.append({"name": stage["name"], "first_step": first, **amounts})
    return {
        "step": process.begins,
        "last_step": last,
        "stages": stages,
        "parts": {},
        "mfu": math.nan,
        "devices": (begin.get("environment") or {}).get("processes", 1),
        "predicted": None,
        "left_out": [],
    }


def _beside_steps(plan: Event, processes: Sequence[Process], end: int) -> dict[str, float]:
    """Seconds of validating, saving and sampling: of as many times as it was done by step `end`,
    where the plan goes further."""
    done: dict[str, set[int]] = {}
    for process in processes:
        for event in process.events:
            kind = _KINDS.get(event["event"])
            if kind is not None and event["step"] <= end:
                done.setdefault(kind, set()).add(event["step"])
    found: dict[str, float] = {}
    for name, part in plan["parts"].items():
        if name == REFERENCE:
            made = end >= plan["last_step"] or _has_pairs(processes)
            found[VALIDATION] = found.get(VALIDATION, 0.0) + (part["seconds"] if made else 0.0)
        elif name != STEPS and part["count"]:
            times = part["count"] if end >= plan["last_step"] else len(done.get(name, ()))
            found[name] = found.get(name, 0.0) + part["seconds"] * times / part["count"]
    return found


def _has_pairs(processes: Sequence[Process]) -> bool:
    return any(process.of("preference") for process in processes)


# -- what came of it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Achieved:
    """What processes did and how long it took, pauses between them left out.

    parts: seconds since the first plan was written, by what they went into; what was lost and done
    again is in them twice. lost: steps, and the seconds that they and what followed them took.
    stepping: seconds of steps alone, by `progress` events; waiting: those of them for data.
    rates: the slowest and the fastest tokens a second that were told.
    """

    steps: int
    tokens: float
    flops: float
    parts: Mapping[str, float]
    preparing: float
    pauses: Sequence[float]
    unannounced: int
    lost: tuple[int, float]
    skipped: int
    stepping: float
    waiting: float
    tokens_per_second: float
    mfu: float
    rates: tuple[float, float] | None

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def achieved_of(processes: Sequence[Process], step_flops: Mapping[str, float]) -> Achieved:
    """Args:
    processes: from the first with a plan on, where there is one.
    step_flops: FLOPs of a step by its stage's name, as far as they are known.
    """
    parts: dict[str, float] = {}
    for process in processes:
        for name, seconds in process.parts().items():
            parts[name] = parts.get(name, 0.0) + seconds
    again = sum(process.preparing for process in processes[1:])
    if again:
        parts[AGAIN] = again
    taken = [event for process in processes for event in process.of("step")]
    reached = processes[-1].reached
    standing = {event["step"]: event for event in taken if event["step"] <= reached}
    pace = _pace(processes)
    ends = [process.events[-1] for process in processes[:-1]]
    return Achieved(
        steps=len(standing),
        tokens=_tokens(standing, processes[0].begins),
        flops=sum(step_flops.get(str(event.get("stage")), math.nan) for event in taken),
        parts=parts,
        preparing=processes[0].preparing,
        pauses=[
            max(0.0, number(after.events[0].get("time")) - number(before.get("time")))
            for before, after in zip(ends, processes[1:], strict=True)
        ],
        unannounced=sum(event["event"] not in ("interrupted", "end") for event in ends),
        lost=_lost(processes),
        skipped=sum("skipped" in event for event in standing.values()),
        **pace,
    )


def _tokens(steps: Mapping[int, Event], begins: int) -> float:
    """Tokens of the steps after `begins`."""
    if not steps:
        return 0.0
    return number(steps[max(steps)].get("tokens")) - _tokens_before(steps, begins)


def _tokens_before(steps: Mapping[int, Event], begins: int) -> float:
    """Tokens trained on by step `begins`, by its own event or by those after it."""
    if begins == 0:
        return 0.0
    if begins in steps:
        return number(steps[begins].get("tokens"))
    later = sorted(step for step in steps if step > begins)[:2]
    if len(later) < 2:
        return math.nan
    first, second = (number(steps[step].get("tokens")) for step in later)
    return 2 * first - second


def _pace(processes: Sequence[Process]) -> dict[str, Any]:
    """Stepping by `progress` events, each of which tells of the steps since the one before."""
    steps = {event["step"]: event for process in processes for event in process.of("step")}
    tokens = stepping = waiting = useful = 0.0
    rates = []
    for process in processes:
        told = now = _tokens_before(steps, process.begins)
        for event in process.events:
            if event["event"] == "step":
                now = number(event.get("tokens"))
            rate = number(event.get("tokens_per_second"))
            if event["event"] != "progress" or not now - told > 0 or not rate > 0:
                continue
            seconds = (now - told) / rate
            tokens, stepping = tokens + now - told, stepping + seconds
            waiting += seconds * number(event.get("data_wait"))
            useful += seconds * number(event.get("mfu"))
            rates.append(rate)
            told = now
    return {
        "stepping": stepping,
        "waiting": waiting,
        "tokens_per_second": tokens / stepping if stepping else math.nan,
        "mfu": useful / stepping if stepping else math.nan,
        "rates": (min(rates), max(rates)) if rates else None,
    }


def _lost(processes: Sequence[Process]) -> tuple[int, float]:
    """Steps that later processes took again, and the time from the last event that stands on."""
    steps, seconds, stands = 0, 0.0, math.inf
    for process in reversed(processes):
        if process.reached > stands:
            steps += process.reached - max(int(stands), process.begins)
            kept = [event for event in process.events if event.get("step", 0) <= stands]
            since = kept[-1] if process.begins <= stands else process.events[0]
            seconds += max(0.0, number(process.events[-1]["time"]) - number(since["time"]))
        stands = min(stands, process.begins)
    return steps, seconds
