"""Several machines that make one study: here, several directories with one storage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamita.windtunnel.findings import Status
from llamita.windtunnel.points import Point, Points
from llamita.windtunnel.results import Journal
from llamita.windtunnel.sharing import SharedRuns, pieces
from llamita.windtunnel.storage import GONE_SECONDS, Storage, default_storage
from llamita.windtunnel.verb import tunnel_show
from tests.windtunnel.helpers import RATES, points_of, result_of, write_spec

EXPERIMENTS = {
    "rate": RATES,
    "law": {"kind": "law", "sizes": ["16x1"], "tokens_per_parameter": [2, 4]},
}


class Machine:
    """One of several; what it makes is taken from a list."""

    def __init__(self, folder: Path, name: str, points: Points, data: str = "a") -> None:
        directory = folder / name
        directory.mkdir(exist_ok=True)
        self.journal = Journal(directory)
        url = default_storage(folder)
        self.storage = Storage(url, "study", {"prose": data}, name, self.journal)
        work = pieces(points.points, lambda point: float(point.num_tokens))
        self.runs = SharedRuns(self.storage, work, self.journal)

    def end(self, piece: list[Point], status: Status = "done") -> None:
        for point in piece:
            self.journal.add(result_of(point, status, 2.0 if status == "done" else None))
            self.runs.ended(point)

    def claim(self) -> list[Point]:
        self.runs._asked = -1e9  # it does not ask again at once, which is not what is tested
        return list(self.runs.claim())


@pytest.fixture
def points(tiny_data: Path, tmp_path: Path) -> Points:
    return points_of(tmp_path, tiny_data, EXPERIMENTS)


def test_branches_are_given_out_with_their_trunk(points: Points) -> None:
    work = pieces(points.points, lambda point: 1.0)
    trunks = {point.trunk for point in points.points} - {None}
    (trunk,) = trunks
    (with_branches,) = [piece for piece in work.values() if len(piece) > 1]
    assert with_branches[0].key == trunk
    assert {point.trunk for point in with_branches[1:]} == {trunk}
    assert sum(len(piece) for piece in work.values()) == len(points.points)


def test_each_run_is_made_once_and_known_to_all(points: Points, tmp_path: Path) -> None:
    machines = [Machine(tmp_path, name, points) for name in ("one", "two", "three")]
    made: list[str] = []
    turns = 0
    while any(pieces := [(each, each.claim()) for each in machines]) and turns < 20:
        turns += 1
        for machine, piece in pieces:
            machine.end(piece)
            made += [point.key for point in piece]
        if not any(piece for _, piece in pieces):
            break
    assert sorted(made) == sorted(point.key for point in points.points)
    assert [each.runs.elsewhere for each in machines] == [0, 0, 0]
    for each in machines:
        own = set(each.journal.runs)
        assert own < set(made)
        each.storage.take_results()
        assert set(each.journal.runs) == set(made)
    assert machines[0].journal.runs == machines[1].journal.runs


def test_one_goes_on_with_what_it_had_begun(points: Points, tmp_path: Path) -> None:
    begun = Machine(tmp_path, "one", points).claim()
    other = Machine(tmp_path, "two", points).claim()
    again = Machine(tmp_path, "one", points).claim()
    assert begun
    assert [point.key for point in again] == [point.key for point in begun]
    assert {point.key for point in other}.isdisjoint(point.key for point in begun)


def test_what_a_machine_that_is_gone_had_begun_is_anothers(
    points: Points, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Machine(tmp_path, "one", points)
    begun = gone.claim()
    other = Machine(tmp_path, "two", points)
    taken: list[str] = []
    while piece := other.claim():
        other.end(piece)
        taken += [point.key for point in piece]
    assert not {point.key for point in begun} & set(taken)
    assert other.runs.elsewhere == len(begun)
    late = time.time() + GONE_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: late)
    piece = other.claim()
    assert [point.key for point in piece] == [point.key for point in begun]
    other.end(piece)
    gone.end(begun)  # it was not gone: its results are its own, and spoil nothing
    assert other.runs.elsewhere == 0


def test_one_that_shows_itself_is_not_gone(
    points: Points, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Machine(tmp_path, "one", points)
    begun = slow.claim()
    late = time.time() + GONE_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: late)
    slow.runs._trials._beaten -= 100
    slow.runs.beat()
    other = Machine(tmp_path, "two", points)
    while piece := other.claim():
        assert not {point.key for point in begun} & {point.key for point in piece}
        other.end(piece)


def test_a_failed_run_is_tried_again_by_the_next_call_only(points: Points, tmp_path: Path) -> None:
    first = Machine(tmp_path, "one", points)
    failed = first.claim()
    first.end(failed, "failed")
    while piece := first.claim():
        assert [point.key for point in piece] != [point.key for point in failed]
        first.end(piece)
    again = Machine(tmp_path, "two", points).claim()
    assert [point.key for point in again] == [point.key for point in failed]


def test_two_that_begin_at_once_make_no_run_twice(
    points: Points, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found the list empty, and both filled it."""
    one, two = (Machine(tmp_path, name, points) for name in ("one", "two"))
    one.runs._enqueue_missing()
    with monkeypatch.context() as patched:
        patched.setattr(two.runs._trials, "all", list)
        two.runs._enqueue_missing()
    assert len(two.runs._trials.all()) == 2 * len(two.runs._work)
    made: list[str] = []
    for machine in (one, two, one, two, one, two, one, two, one, two, one, two, one, two):
        piece = machine.claim()
        machine.end(piece)
        made += [point.key for point in piece]
    assert sorted(made) == sorted(point.key for point in points.points)


def test_what_was_made_before_it_was_shared_is_told(points: Points, tmp_path: Path) -> None:
    one = Machine(tmp_path, "one", points)
    for point in points.points:
        one.journal.add(result_of(point, "done", 2.0))
    assert one.claim() == []
    two = Machine(tmp_path, "two", points)
    two.storage.take_results()
    assert two.journal.runs == one.journal.runs


def test_other_data_are_another_study(points: Points, tmp_path: Path) -> None:
    one = Machine(tmp_path, "one", points)
    while piece := one.claim():
        one.end(piece)
    other = Machine(tmp_path, "two", points, data="b")
    other.storage.take_results()
    assert not other.journal.runs
    assert other.claim()


@pytest.mark.slow
def test_two_processes_share_a_study(tiny_data: Path, tmp_path: Path) -> None:
    """Grid, coordinates, trunk with branches, and a search, with real runs."""
    short = RATES | {"sizes": ["16x1", "32x1"], "tokens": 4000}
    search = short | {
        "axes": {"optimizer.learning_rate": {"low": 1e-3, "high": 0.1}},
        "search": {"kind": "tpe", "trials": 4},
    }
    coordinates = {"kind": "coordinates", "steps": [1]}
    experiments = EXPERIMENTS | {"rate": short, "searched": search, "coordinates": coordinates}
    spec = write_spec(
        tmp_path, tiny_data, experiments, storage=f"sqlite:///{tmp_path}/shared.db", runs_at_once=1
    )
    folders = [tmp_path / "one", tmp_path / "two"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "llamita", "tunnel", "run", str(spec), "--out", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for folder in folders
    ]
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for folder in folders:
        tunnel_show(folder, say=lambda line: None)
    journals = [Journal(folder) for folder in folders]
    assert journals[0].runs == journals[1].runs
    assert journals[0].coordinates == journals[1].coordinates
    assert {run.status for run in journals[0].runs.values()} == {"done"}
    made = [{path.name for path in (folder / "points").iterdir()} for folder in folders]
    runs = [{name for name in each if not name.endswith(".txt")} for each in made]
    assert all(runs)
    assert not runs[0] & runs[1]
    assert runs[0] | runs[1] == set(journals[0].runs)
    assert (
        json.loads((folders[0] / "study.json").read_text())["id"]
        != json.loads((folders[1] / "study.json").read_text())["id"]
    )
