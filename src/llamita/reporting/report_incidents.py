"""What a reader of a report should know of besides its curves: skips, stops, an early end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamita.planning.quantities import duration, number
from llamita.reporting.events import Event
from llamita.reporting.tuning_events import early_stop_text


@dataclass(frozen=True)
class Incident:
    """Something that a reader should know of. `time` is Unix seconds, or NaN."""

    step: int
    kind: str
    what: str
    time: float = math.nan
    action: str = ""


def incidents_of(events: Sequence[Event], steps: Mapping[str, list[Any]]) -> list[Incident]:
    """In order of steps. `steps` are the columns of a run's steps."""
    found = _skips(steps) + _stops(events)
    return sorted(found, key=lambda incident: incident.step)


def _skips(steps: Mapping[str, list[Any]]) -> list[Incident]:
    """Skipped steps; those of one kind that follow on one another are one incident."""
    groups: list[tuple[int, int, str]] = []
    for row, kind in enumerate(steps["skipped"]):
        if kind is None:
            continue
        if groups and groups[-1][1] == row - 1 and groups[-1][2] == kind:
            groups[-1] = (groups[-1][0], row, kind)
        else:
            groups.append((row, row, str(kind)))
    found = []
    for first, last, kind in groups:
        names = {"spike": "spike", "non_finite": "loss or gradient not finite"}
        loss, norm = steps["loss"][first], steps["grad_norm"][first]
        many = f"steps {steps['step'][first]:,} to {steps['step'][last]:,}, first with "
        what = (
            f"{names.get(kind, kind)}: {many if last > first else ''}loss {number(loss):.4g}, "
            f"gradient norm {number(norm):.4g}; nothing of it reached the weights"
        )
        found.append(Incident(steps["step"][first], "skipped", what))
    return found


def _stops(events: Sequence[Event]) -> list[Incident]:
    found = []
    before: Event = {}
    for event in events:
        kind, step, time = event["event"], event.get("step"), number(event.get("time"))
        if kind == "interrupted" and isinstance(step, int):
            found.append(Incident(step, kind, "stopped by a signal, after saving", time))
        if kind == "resume" and isinstance(step, int):
            pause = time - number(before.get("time"))
            died = before.get("event") not in ("interrupted", "end")
            what = "a process ended without saying so; went on" if died else "went on"
            what += f" from step {step:,}"
            if math.isfinite(pause):
                what += f", {duration(max(0.0, pause))} after the last event that stands"
            changed = [str(key) for key in event.get("changed") or ()]
            what += f"; changed: {', '.join(changed)}" if changed else "; nothing changed"
            for warning in event.get("warnings") or ():
                what += f"; {warning}"
            found.append(Incident(step, "resumed", what, time))
        if kind == "early_stop":
            found.append(Incident(event["step"], "early stop", early_stop_text(event), time))
        if kind == "sink_failed" and isinstance(step, int):
            what = f"{event.get('name')} failed and was left out: {event.get('error')}"
            found.append(Incident(step, "tracking", what, time))
        before = event
    return found
