"""Predicted against achieved: a run beside the plan that was written into it before its first step.

What counts is the time from the plan's writing to the last event, pauses between processes left
out, with what later processes took to begin again and what was lost and done twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError
from llamita.planning.check_notes import (
    early_notes,
    history_notes,
    loss_notes,
    plan_notes,
    seconds_text,
    time_notes,
)
from llamita.planning.outcome import (
    AGAIN,
    EVALUATION,
    SAMPLES,
    SAVING,
    STEPS,
    VALIDATION,
    Achieved,
    Event,
    Planned,
    Process,
    achieved_of,
    planned_of,
    processes_of,
)
from llamita.planning.quantities import gigabytes, number
from llamita.planning.quantities import tokens as short

if TYPE_CHECKING:
    from llamita.planning.hardware import Hardware

PER_PAIR = "nats per pair"
LOSS_UNITS = ("bits per byte", "nats per byte", "nats per token", PER_PAIR)
_SHOWN_SHARE = 0.01
"""What is done beside steps has a line of its own from this share of the time on."""


@dataclass(frozen=True)
class Row:
    """A quantity as planned and as it came out; None where it is not known.

    unit: "" for a count, `tokens`, `FLOP`, `s`, `tokens/s`, `share`, `bytes`, `kWh`, `USD`, or one
    of `LOSS_UNITS`.
    compared: whether the two speak of the same thing.
    """

    what: str
    unit: str
    planned: float | None
    achieved: float | None
    compared: bool = True

    @property
    def difference(self) -> float | None:
        """(achieved - planned) / planned."""
        if not self.compared or not self.planned or self.achieved is None:
            return None
        return self.achieved / self.planned - 1

    def cells(self) -> list[str]:
        """The name, both values and the difference as text."""
        name = f"{self.what}, {self.unit}" if self.unit in LOSS_UNITS else self.what
        difference = ""
        if self.difference is not None:
            difference = "0.0%" if abs(self.difference) < 5e-4 else f"{self.difference:+.1%}"
        values = [_text(value, self.unit) for value in (self.planned, self.achieved)]
        return [name, *values, difference]


@dataclass(frozen=True)
class Check:
    """A run against its plan.

    state: a sentence on how far it is; planned: whether a plan was written into it.
    """

    run: str
    state: str
    finished: bool
    planned: bool
    step: int
    last_step: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The state, a table, and notes in plain words."""
        cells = [["", "planned", "achieved", "difference"], *(row.cells() for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = [f"{self.run}: {self.state}"]
        for what, *values in cells:
            shown = (cell.rjust(width) for cell, width in zip(values, widths[1:], strict=True))
            lines.append(f"  {what.ljust(widths[0])}  {'  '.join(shown)}".rstrip())
        for note in self.notes:
            lines += wrap(note, 100, initial_indent="  ", subsequent_indent="    ")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Plain values; of each row `difference` is (achieved - planned) / planned, or null."""
        rows = [
            {
                "what": row.what.strip(),
                "unit": row.unit,
                "planned": row.planned,
                "achieved": row.achieved,
                "difference": row.difference,
            }
            for row in self.rows
        ]
        return {
            "run": self.run,
            "state": self.state,
            "finished": self.finished,
            "plan_written": self.planned,
            "step": self.step,
            "last_step": self.last_step,
            "rows": rows,
            "notes": list(self.notes),
        }


def check_run(
    run: str | Path, *, hardware: Hardware | None = None, usd_per_kwh: float | None = None
) -> Check:
    """Compare a run's outcome with its plan.

    Args:
        run: a run's directory, or its events file.
        hardware: what it ran on, for energy and cost.
        usd_per_kwh: price of electricity, on top of the hardware's own if that has one.

    Raises:
        UserError: no events; a price of electricity without the hardware's power.
    """
    from llamita.reporting.events import read_all_events

    every = processes_of(read_all_events(Path(run)))
    if not every:
        raise UserError(f"{run}: its events hold no start, so that there is nothing to compare")
    found = _Found.of(every)
    planned, achieved = found.planned, found.achieved
    loss, loss_said = _loss(found)
    money, money_said = _money(found, hardware, usd_per_kwh)
    rows = [*_work(found), *_time(found), *_speed(found), _memory(found), *loss, *money]
    return Check(
        run=str(run),
        state=_state(found),
        finished=found.finished,
        planned=planned.written,
        step=planned.last,
        last_step=planned.ends,
        rows=tuple(row for row in rows if row.planned is not None or row.achieved is not None),
        notes=(
            *plan_notes(planned, found.unplanned, found.abandoned),
            *time_notes(planned, achieved),
            *history_notes(found.processes, achieved),
            *early_notes(found.last("early_stop"), planned),
            *loss_said,
            *money_said,
        ),
    )


# -- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """processes: from the first with a plan on. abandoned: seconds of attempts before the run was
    started anew, of which nothing was kept. unplanned: steps taken before plans were written."""

    processes: Sequence[Process]
    planned: Planned
    achieved: Achieved
    abandoned: float
    unplanned: int

    @classmethod
    def of(cls, every: Sequence[Process]) -> _Found:
        starts = [n for n, each in enumerate(every) if each.events[0]["event"] == "start"]
        own = every[starts[-1] if starts else 0 :]
        first = next((n for n, each in enumerate(own) if each.forecast), 0)
        planned = planned_of(own[first:])
        return cls(
            own[first:],
            planned,
            achieved_of(own[first:], planned.step_flops),
            sum(process.seconds for process in every[: len(every) - len(own)]),
            own[first].begins - own[0].begins,
        )

    @property
    def finished(self) -> bool:
        return bool(self.processes[-1].of("end"))

    def last(self, kind: str) -> Event:
        """The last event of a kind that stands, or an empty one."""
        reached = self.processes[-1].reached
        for process in reversed(self.processes):
            for event in reversed(process.of(kind)):
                if event["step"] <= reached:
                    return event
        return {}


def _state(found: _Found) -> str:
    planned = found.planned
    stopped = found.last("early_stop")
    if found.finished and stopped:
        many = stopped["validations"]
        return (
            f"ended early at step {planned.last:,} of {planned.ends:,}, after {many} "
            f"validation{'s' if many > 1 else ''} without a gain; planned is what the plan says up "
            "to there"
        )
    if found.finished:
        return f"finished at step {planned.last:,}"
    share = (planned.last - planned.first) / max(1, planned.ends - planned.first)
    last = found.processes[-1].events[-1]["event"]
    how = "interrupted" if last == "interrupted" else "running, or ended without saying so,"
    return (
        f"{how} at step {planned.last:,} of {planned.ends:,} ({share:.0%} of the plan); planned is "
        "what the plan says up to there"
    )


def _work(found: _Found) -> list[Row]:
    planned, achieved = found.planned, found.achieved
    return [
        _row("steps", "", planned.last - planned.first, achieved.steps),
        _row("tokens", "tokens", planned.tokens, achieved.tokens),
        _row("arithmetic", "FLOP", planned.flops, achieved.flops),
    ]


def _time(found: _Found) -> list[Row]:
    planned, achieved = found.planned, found.achieved
    rows = [_row("time", "s", planned.seconds, achieved.seconds)]
    for name in (STEPS, VALIDATION, SAVING, SAMPLES, EVALUATION, AGAIN):
        one, other = planned.parts.get(name), achieved.parts.get(name)
        if name == STEPS or max(one or 0.0, other or 0.0) >= _SHOWN_SHARE * achieved.seconds:
            what = name if name == AGAIN else f"in {name}"
            rows.append(_row(f"  {what}", "s", one, other))
    return rows


def _speed(found: _Found) -> list[Row]:
    planned, achieved = found.planned, found.achieved
    return [
        _row("tokens/s", "tokens/s", planned.tokens_per_second, achieved.tokens_per_second),
        _row("MFU", "share", planned.mfu, achieved.mfu),
    ]


def _memory(found: _Found) -> Row:
    """Of the last process: its peak above what it held before the model was made."""
    event = found.last("memory")
    told = next((each.forecast for each in reversed(found.processes) if each.forecast), None)
    estimate = math.nan if told is None else number(told["memory"]["total"])
    if told is None and isinstance(event.get("estimate"), dict):
        estimate = sum(number(size) for size in event["estimate"].values())
    peak = number(event.get("peak_bytes")) - number(event.get("baseline_bytes"))
    # Where less was needed than the process held before, nothing came on top.
    return _row("memory", "bytes", estimate, peak if math.isnan(peak) else max(0.0, peak))


def _loss(found: _Found) -> tuple[list[Row], list[str]]:
    """The last validation, beside the law's figure where there is one, and the last step's loss."""
    from llamita.reporting.tuning_events import bits_per_byte_of

    validation, planned = found.last("validation"), found.planned
    bits = number(validation.get("bits_per_byte"))
    tokens, size = number(validation.get("tokens")), number(validation.get("bytes"))
    reached = {"bits per byte": bits, "nats per byte": bits * math.log(2)}
    if tokens > 0:
        reached["nats per token"] = bits * math.log(2) * size / tokens
    rows: list[Row] = []
    notes: list[str] = []
    law = planned.predicted
    if law is not None:
        unit = law["loss_unit"]
        compared = law["comparable"] and found.finished
        loss = reached.pop(unit, math.nan)
        rows.append(_row(f"loss by {law['law']}", unit, law["loss"], loss, compared=compared))
        notes += loss_notes(law, rows[0].achieved, planned, finished=found.finished)
    if "bits per byte" in reached:
        names = validation.get("datasets") or None
        measured = bits_per_byte_of(found.processes[-1].events[0], names)
        rows.append(_row(f"validation{measured}", "bits per byte", None, bits))
    pairs, step = found.last("preference"), found.last("step")
    rows.append(_row("held-out pairs", PER_PAIR, None, number(pairs.get("loss"))))
    rows.append(_row("pairs told right", "share", None, number(pairs.get("accuracy"))))
    unit = PER_PAIR if "margin" in step else "nats per token"
    return [*rows, _row("training loss", unit, None, number(step.get("loss")))], notes


def _money(
    found: _Found, hardware: Hardware | None, usd_per_kwh: float | None
) -> tuple[list[Row], list[str]]:
    """Energy and cost of the time that was planned, and of the time that it took."""
    if hardware is None:
        if usd_per_kwh is not None:
            raise UserError("a price of electricity needs to know what draws it: add --hardware")
        return [], ["energy and cost: llamita plan --check says them with --hardware NAME"]
    rented, watts = hardware.usd_per_hour, hardware.watts
    if usd_per_kwh is not None and watts is None:
        raise UserError(f"no power is known of {hardware.label}; give it: --watts 350")
    if rented is None and watts is None:
        raise UserError(
            f"--hardware {hardware.label}: neither price nor power is known of it, so that it says "
            "nothing here; add --price NAME=1.40usd/h"
        )
    hours = [found.planned.seconds / 3600, found.achieved.seconds / 3600]
    rows, notes = [], []
    if watts is not None:
        rows.append(_row("energy", "kWh", *(watts / 1000 * each for each in hours)))
    hourly = (rented or 0.0) + (watts or 0.0) / 1000 * (usd_per_kwh or 0.0)
    if rented is not None or usd_per_kwh is not None:
        rows.append(_row("cost", "USD", *(hourly * each for each in hours)))
        what = [] if rented is None else [f"{_dollars(rented)} an hour of {hardware.label}"]
        if usd_per_kwh is not None:
            what.append(f"electricity at {_dollars(usd_per_kwh)} a kWh")
        notes.append(f"cost: {' and '.join(what)}")
    else:
        notes.append(
            f"cost: {hardware.label} has no price; add --price NAME=1.40usd/h, or --power-price"
        )
    if watts is not None:
        notes.append(f"energy: {watts:,.0f} W, the devices' limit, for as long as it took")
    if hardware.num_devices != found.planned.devices:
        notes.append(
            f"the run had {found.planned.devices} of --hardware's {hardware.num_devices} devices: "
            "energy and cost are of all of these"
        )
    return rows, notes


# -- text -----------------------------------------------------------------------------------------


def _row(
    what: str, unit: str, planned: float | None, achieved: float | None, *, compared: bool = True
) -> Row:
    """What is not finite is not known."""

    def known(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value

    return Row(what, unit, known(planned), known(achieved), compared)


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    match unit:
        case "":
            return f"{value:,.0f}"
        case "tokens" | "tokens/s":
            return short(value)
        case "FLOP":
            return f"{value:.3g} FLOP"
        case "s":
            return seconds_text(value)
        case "share":
            return f"{value:.1%}"
        case "bytes":
            return gigabytes(value)
        case "kWh":
            return f"{value:.3g} kWh"
        case "USD":
            return _dollars(value)
    return f"{value:.4f}"


def _dollars(usd: float) -> str:
    return f"${usd:.2g}" if usd < 0.1 else f"${usd:,.2f}"
