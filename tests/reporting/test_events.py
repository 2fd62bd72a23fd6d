"""events.jsonl: what is written, and what readers make of crashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamita.errors import UserError
from llamita.reporting.events import read_events
from llamita.training.telemetry import EventLog


def write(path: Path, *lines: object) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def steps(path: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in read_events(path) if e["event"] == "step"]


def step(number: int, loss: float) -> dict[str, object]:
    return {"event": "step", "step": number, "loss": loss}


def test_superseded_events_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(
        path,
        {"event": "start", "step": 0},
        step(1, 5.0),
        step(2, 4.0),
        {"event": "checkpoint", "step": 2},
        step(3, 3.0),
        step(4, 2.0),
        {"event": "validation", "step": 4},
        {"event": "resume", "step": 2},
        step(3, 3.5),
        {"event": "resume", "step": 2},
        step(3, 3.25),
        step(4, 2.25),
    )
    assert steps(path) == [(1, 5.0), (2, 4.0), (3, 3.25), (4, 2.25)]
    kinds = [event["event"] for event in read_events(tmp_path)]
    assert kinds.count("validation") == 0
    assert kinds.count("checkpoint") == 1


def test_a_run_that_started_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, {"event": "start", "step": 0}, step(1, 5.0), {"event": "start", "step": 0})
    assert [event["event"] for event in read_events(path)] == ["start"]


def test_torn_and_foreign_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = json.dumps(step(1, 5.0)).encode()
    path.write_bytes(whole + b"\n" + whole[:-9] + b"\n\xff\xfe\n[1]\n{}\n\n" + whole[:20])
    assert steps(path) == [(1, 5.0)]


def test_a_torn_line_is_closed_off_and_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "step", "step": 1, "loss": 5.0}\n{"event": "st')
    log = EventLog(path)
    log.write("step", step=2, loss=4.0)
    log.close()
    assert steps(path) == [(1, 5.0), (2, 4.0)]


def test_a_whole_file_is_continued_without_an_empty_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for number in (1, 2):
        log = EventLog(path)
        log.write("step", step=number, loss=1.0)
        log.close()
    assert len(path.read_text().splitlines()) == 2


def test_non_finite_numbers_stay_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("step", step=1, loss=float("nan"), norms={"a": float("inf"), "b": [-float("inf")]})
    log.close()
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    event = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (event["loss"], event["norms"]) == ("nan", {"a": "inf", "b": ["-inf"]})


def test_no_events(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the directory of a run"):
        read_events(tmp_path)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    log = EventLog(full)
    log.write("step", step=1)
    with pytest.raises(UserError, match=r"/dev/full.*No space left"):
        log.flush()
    with pytest.raises(UserError, match="No space left"):
        log.close()
