"""Reading events.jsonl: what happened in a run, once each."""

from __future__ import annotations

import json
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
    path = run / "events.jsonl" if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"there is no {path}: {run} is not the directory of a run")
    events: list[Event] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or "event" not in event:
            continue
        if event["event"] == "start":
            events = []
        if event["event"] == "resume":
            step = event["step"]
            events = [earlier for earlier in events if earlier.get("step", 0) <= step]
        events.append(event)
    return events
