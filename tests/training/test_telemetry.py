"""Observers of events: they see what was written, and cannot hurt a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamita.reporting.alerts import find_alerts
from llamita.reporting.events import read_events
from llamita.training.telemetry import EventLog
from tests.training.helpers import losses, tiny_recipe, trained


class Recorder:
    live = False

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.closed = 0

    def observe(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


class Watched(Recorder):
    live = True


class Broken(Recorder):
    """Fails at its n-th event, or when it is closed."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at = at

    def observe(self, event: dict[str, Any]) -> None:
        super().observe(event)
        if len(self.events) == self.at:
            raise OSError("no space left")

    def close(self) -> None:
        raise RuntimeError("cannot close")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_observer_sees_exactly_what_was_written(tmp_path: Path) -> None:
    recorder, path = Recorder(), tmp_path / "events.jsonl"
    log = EventLog(path, [recorder])
    log.write("step", step=1, loss=float("nan"), shape=(1, 2), names={"é": float("inf")})
    log.write("end", step=1)
    assert recorder.closed == 0
    log.close()
    assert recorder.closed == 1
    assert recorder.events == lines(path)
    assert recorder.events[0]["loss"] == "nan"
    assert recorder.events[0]["time"] > 1e9


@pytest.mark.parametrize("at", [2, None])
def test_an_observer_that_fails_is_left_out_and_named(tmp_path: Path, at: int | None) -> None:
    said: list[str] = []
    broken, healthy, path = Broken(at), Recorder(), tmp_path / "events.jsonl"
    log = EventLog(path, [broken, healthy], said.append)
    for number in range(1, 5):
        log.write("step", step=number)
    log.close()
    assert len(broken.events) == (2 if at else 4)
    (line,) = said
    assert "Broken failed and is left out" in line
    assert "run the same command again" in line
    (failed,) = [event for event in lines(path) if event["event"] == "sink_failed"]
    assert failed["step"] == (2 if at else 4)
    assert failed["name"] == "Broken"
    assert ("no space left" if at else "cannot close") in failed["error"]
    assert [e["step"] for e in lines(path) if e["event"] == "step"] == [1, 2, 3, 4]
    assert failed in healthy.events, "the others go on, and see that it failed"
    assert healthy.closed == 1


def test_the_second_ctrl_c_passes_through_an_observer(tmp_path: Path) -> None:
    class Interrupted(Recorder):
        def observe(self, event: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    log = EventLog(tmp_path / "events.jsonl", [Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        log.write("step", step=1)


def test_a_run_with_observers_is_the_same_run(
    tmp_path: Path, tiny_data: Path, reference: Path
) -> None:
    recorder, watched, broken = Recorder(), Watched(), Broken(7)
    out = tmp_path / "run"
    trained(tiny_recipe(tiny_data), out, observers=[recorder, watched, broken])
    assert losses(out) == losses(reference)
    written = lines(out / "events.jsonl")
    assert recorder.events == written
    assert watched.events == written
    assert recorder.closed == watched.closed == 1
    kinds = [event["event"] for event in written]
    assert kinds.count("sink_failed") == 1
    start = written[0]
    assert start["recipe"]["name"] == "tiny"
    assert [stage["first_step"] for stage in start["stages"]] == [0, 8]
    assert [stage["learning_rate_at_end"] for stage in start["stages"]] == [1e-2, 1e-2 / 4]
    share = [event["mixture"]["prose"] for event in written if event["event"] == "progress"][7]
    assert share == pytest.approx(0.7, abs=1 / 32)  # within a window of 8 steps × 4


def test_a_watched_run_is_told_every_second_and_else_every_few_steps(
    tmp_path: Path, tiny_data: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamita.training import loop

    runtime = {"device": "cpu", "dtype": "float32", "micro_batch_size": 2, "compile": "never"}
    runtime |= {"threads": 1, "log_every_steps": 100}
    recipe = tiny_recipe(tiny_data, runtime=runtime, checkpoints={})
    monkeypatch.setattr(loop, "_REFRESH_SECONDS", 0.0)
    reports = {}
    for name, observers in (("alone", []), ("recorded", [Recorder()]), ("watched", [Watched()])):
        said: list[str] = []
        trained(recipe, tmp_path / name, observers=observers, say=said.append)
        events = read_events(tmp_path / name)
        reports[name] = [event["step"] for event in events if event["event"] == "progress"]
        assert losses(tmp_path / name) == losses(reference), name
        assert len([line for line in said if line.startswith("step  8/12 ")]) == 1
        assert not [line for line in said if line.startswith("step  3/12 ")], "no more lines"
    assert reports["alone"] == reports["recorded"] == [8, 12]
    assert reports["watched"] == list(range(1, 13))


def test_an_ordinary_run_raises_no_alarm(reference: Path) -> None:
    events = read_events(reference)
    assert len(events) > 30
    assert find_alerts(events) == []
