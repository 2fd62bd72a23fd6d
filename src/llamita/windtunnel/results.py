"""What a study's runs came to: read from their events, and kept in results.jsonl, a line a run.

The journal is the study's memory: a run that is in it is not made again, and it stays readable
when the runs' directories are gone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamita.errors import UserError
from llamita.reporting.events import read_all_events, standing_events
from llamita.windtunnel.findings import RunResult, Status
from llamita.windtunnel.points import POINTS, Point

JOURNAL = "results.jsonl"
FINAL: tuple[Status, ...] = ("done", "diverged", "pruned")
"""How a run ends that would end so again. One that failed or was killed is tried once more."""


def run_result(point: Point, study: Path, status: Status, reason: str = "") -> RunResult:
    """Of a point's run, from its events.

    A run that went to its end is `diverged` if its loss is no number, or above what it began with.
    """
    run = study / POINTS / point.key
    every = read_all_events(run) if (run / "events.jsonl").is_file() else []
    events = standing_events(every)
    batch = point.recipe.batch_tokens
    curve = tuple(
        (event["step"] * batch, float(event["bits_per_byte"]))
        for event in events
        if event["event"] == "validation"
    )
    loss = curve[-1][1] if curve and status == "done" else None
    if status == "done":
        if loss is None:
            status, reason = "failed", "nothing was held out of the data, so there is no loss"
        elif not math.isfinite(loss) or loss > curve[0][1] > 0:
            status, loss = "diverged", None
            reason = f"held-out loss went from {curve[0][1]:.3f} to {curve[-1][1]:.3f}"
    start = next((event for event in every if event["event"] == "start"), {})
    forecast = next((event for event in every if event["event"] == "forecast"), {})
    return RunResult(
        key=point.key,
        experiment=point.experiment,
        status=status,
        size=point.size.name,
        hidden_size=point.size.hidden_size,
        layers=point.size.layers,
        parameters=point.size.parameters,
        total_parameters=int(start.get("parameters", 0)),
        parametrization=point.parametrization,
        seed=point.seed,
        tokens=point.num_tokens,
        batch_tokens=batch,
        values=dict(point.values),
        loss=loss,
        curve=tuple((tokens, value) for tokens, value in curve if math.isfinite(value)),
        seconds=_seconds(every),
        flops=float(forecast.get("flops", 0.0)),
        reason=reason,
    )


def _seconds(events: Sequence[Mapping[str, Any]]) -> float:
    """That processes spent on a run, without the time between them."""
    spent, began, last = 0.0, None, 0.0
    for event in events:
        if event["event"] in ("start", "resume"):
            if began is not None:
                spent += last - began
            began = event["time"]
        last = event["time"]
    return spent + (last - began if began is not None else 0.0)


def record_is_final(record: Mapping[str, Any]) -> bool:
    return record["kind"] == "coordinates" or record["status"] in FINAL


class Journal:
    """results.jsonl of a study.

    Raises:
        UserError: it cannot be read or written.
    """

    def __init__(self, study: Path) -> None:
        self.path = study / JOURNAL
        self.runs: dict[str, RunResult] = {}
        self.coordinates: dict[str, dict[str, Any]] = {}
        """Key → the record of a point that looked into a model."""
        self.records: dict[str, dict[str, Any]] = {}
        """Key → its line."""
        for record in self._read():
            self._take(record)

    def _read(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error
        found = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # what a crash tore; its run will be read again from its own events
            if isinstance(record, dict) and "kind" in record:
                found.append(record)
        return found

    def _take(self, record: dict[str, Any]) -> None:
        self.records[record["key"]] = record
        fields = {key: value for key, value in record.items() if key != "kind"}
        if record["kind"] == "coordinates":
            self.coordinates[record["key"]] = fields
        else:
            fields["curve"] = tuple((int(t), float(v)) for t, v in fields["curve"])
            self.runs[record["key"]] = RunResult(**fields)

    def is_final(self, key: str) -> bool:
        return key in self.records and record_is_final(self.records[key])

    def add(self, result: RunResult) -> None:
        self._write({"kind": "run", **asdict(result)})

    def add_coordinates(self, point: Point, measured: Mapping[str, Any]) -> None:
        self._write(
            {
                "kind": "coordinates",
                "key": point.key,
                "experiment": point.experiment,
                "parametrization": point.parametrization,
                "hidden_size": point.size.hidden_size,
                "seed": point.seed,
                "measured": measured,
            }
        )

    def take_over(self, record: Mapping[str, Any]) -> None:
        """Another machine's line of a run, unless this one knows as much."""
        key = record["key"]
        if key not in self.records or (record_is_final(record) and not self.is_final(key)):
            self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            with self.path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"could not write {self.path}: {error.strerror or error}. What is in it is safe, "
                "and so are the runs; free some space and run the same command again"
            ) from error
        self._take(json.loads(line))
