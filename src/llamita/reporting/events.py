"""Reading events.jsonl: what happened in a run, once each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llamita.errors import UserError

Event = dict[str, Any]


def read_events(run: Path) -> list[Event]:
    """The events of a run directory, or of an events file, in order.

    A line that a crash tore is dropped. When a run went on from step s, what an earlier process had
    written about steps after s was computed again, and the superseded events are dropped; when it
    started over, because nothing had been saved, all of them are.

    Raises:
        UserError: there are no events.
    """
    return standing_events(read_all_events(run))


def read_all_events(run: Path) -> list[Event]:
    """The same with what was superseded: it took time, and money, all the same.

    Raises:
        UserError: there are no events.
    """
    path = run / "events.jsonl" if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"there is no {path}: {run} is not the directory of a run")
    events: list[Event] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events


def standing_events(events: Iterable[Event]) -> list[Event]:
    """Those that no later process superseded."""
    standing: list[Event] = []
    for event in events:
        if event["event"] == "start":
            standing = []
        if event["event"] == "resume":
            step = event["step"]
            standing = [earlier for earlier in standing if earlier.get("step", 0) <= step]
        standing.append(event)
    return standing
