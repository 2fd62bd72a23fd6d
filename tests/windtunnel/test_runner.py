"""Studies that are really run: in several processes, killed, gone on with, and failing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.recipes.loading import load_recipe
from llamita.training.process import locked
from llamita.training.run import TrainingResult, train
from llamita.windtunnel import runner as runner_module
from llamita.windtunnel.costs import Costs
from llamita.windtunnel.findings import RunResult
from llamita.windtunnel.points import POINTS, Points
from llamita.windtunnel.results import JOURNAL, Journal
from llamita.windtunnel.runner import Runner, SlotPlan
from llamita.windtunnel.spec import load_spec
from llamita.windtunnel.study import begin_study, open_study
from tests.training.helpers import quiet
from tests.windtunnel.helpers import RATES, points_of, write_spec

SWEEP = RATES | {"tokens_per_parameter": 4, "sizes": ["16x1", "32x1"]}
LAW = {"kind": "law", "tokens_per_parameter": [2, 4], "sizes": ["32x1"]}
STUDY = {"rate": SWEEP, "law": LAW}
SLOTS = [SlotPlan("cpu", 1), SlotPlan("cpu", 1)]


class Notes:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.results: list[RunResult] = []
        self.begun: list[str] = []
        self.lines: list[str] = []
        self.left_slots: list[int] = []

    def started(self, slot: int, key: str, name: str, **cost: Any) -> None:
        self.begun.append(key)

    def progress(self, slot: int, step: int, last_step: int, loss: float | None) -> None:
        assert 0 <= step <= last_step

    def ended(self, slot: int, result: RunResult) -> None:
        self.results.append(result)

    def left(self, slot: int, *, done: bool = False) -> None:
        self.left_slots.append(slot)

    def say(self, line: str) -> None:
        self.lines.append(line)


def make(
    points: Points, study: Path, slots: int = 1, notes: Notes | None = None
) -> tuple[Journal, Notes]:
    study.mkdir(parents=True, exist_ok=True)
    notes, journal = notes or Notes(), Journal(study)
    cost = Costs(points).of
    Runner(study, points.points, journal, SLOTS[:slots], notes, cost).run([])
    return journal, notes


def bits(journal: Journal) -> dict[str, tuple[Any, ...]]:
    """What must not depend on how a study came to its end."""
    return {
        key: (run.status, run.loss, run.curve, run.tokens, dict(run.values))
        for key, run in journal.runs.items()
    }


@pytest.fixture(scope="module")
def reference(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("reference-study")
    points = points_of(folder, tiny_data, STUDY)
    journal, notes = make(points, folder / "study", slots=2)
    return SimpleNamespace(points=points, journal=journal, notes=notes, study=folder / "study")


def test_every_run_is_made_once_and_is_done(reference: SimpleNamespace) -> None:
    keys = [point.key for point in reference.points.points]
    assert sorted(reference.notes.begun) == sorted(keys)
    assert {run.status for run in reference.journal.runs.values()} == {"done"}
    assert sorted(reference.journal.runs) == sorted(keys)


def test_a_branch_begins_where_it_leaves_its_trunk(reference: SimpleNamespace) -> None:
    """Which may still go on by then: what a stage ends with is on the disk."""
    branches = [point for point in reference.points.points if point.trunk is not None]
    assert branches
    for point in branches:
        events = reference.study / POINTS / point.key / "events.jsonl"
        first = json.loads(events.read_text("utf-8").splitlines()[0])
        assert first["step"] == point.start_step
        assert Path(first["start_from"]).parent.name == point.trunk


def test_a_run_of_a_study_is_a_run_of_train(reference: SimpleNamespace, tmp_path: Path) -> None:
    """To the bit: same recipe, trained alone."""
    point = next(p for p in reference.points.points if not p.trunk and p.size.hidden_size == 32)
    alone = train(point.recipe, out=tmp_path / "alone", overrides=["runtime.threads=1"], say=quiet)
    assert isinstance(alone, TrainingResult)
    assert reference.journal.runs[point.key].loss == alone.bits_per_byte


def test_results_hold_what_the_run_was(reference: SimpleNamespace) -> None:
    for point in reference.points.points:
        run = reference.journal.runs[point.key]
        assert (run.size, run.seed, run.tokens) == (point.size.name, point.seed, point.num_tokens)
        assert run.total_parameters > run.parameters == point.size.parameters
        assert run.curve[-1] == (point.num_tokens, run.loss)
        assert run.seconds > 0
        assert run.flops == pytest.approx(Costs().of(point).flops)


def test_only_trunks_keep_their_weights(reference: SimpleNamespace) -> None:
    trunks = {point.trunk for point in reference.points.points if point.trunk}
    for point in reference.points.points:
        run = reference.study / POINTS / point.key
        assert bool(list(run.glob("step-*"))) == (point.key in trunks)
        assert (run / "events.jsonl").is_file()


def test_the_same_study_again_makes_nothing(reference: SimpleNamespace) -> None:
    journal, notes = make(reference.points, reference.study)
    assert notes.begun == []
    assert bits(journal) == bits(reference.journal)


@pytest.mark.slow
def test_a_torn_last_line_costs_that_run_alone(reference: SimpleNamespace, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(reference.study, study)
    path = study / JOURNAL
    whole = path.read_bytes().splitlines(keepends=True)
    torn = json.loads(whole[-1])["key"]
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:40])
    journal, notes = make(reference.points, study)
    assert notes.begun == [torn]
    assert bits(journal) == bits(reference.journal)


@pytest.mark.slow
def test_a_trunk_whose_checkpoints_are_gone_is_made_again_for_a_new_branch(
    reference: SimpleNamespace, tiny_data: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    shutil.copytree(reference.study, study)
    branch = next(p for p in reference.points.points if p.trunk)
    shutil.rmtree(study / POINTS / branch.trunk)
    path = study / JOURNAL
    kept = [line for line in path.read_text().splitlines() if branch.key not in line]
    path.write_text("\n".join(kept) + "\n")
    journal, notes = make(reference.points, study)
    assert notes.begun == [branch.trunk, branch.key]
    assert bits(journal) == bits(reference.journal)


# -- what goes wrong ------------------------------------------------------------------------------


@contextlib.contextmanager
def command(spec: Path, study: Path) -> Iterator[subprocess.Popen[str]]:
    """`llamita tunnel run` in a process of its own."""
    words = [sys.executable, "-m", "llamita", "tunnel", "run", str(spec), "--out", str(study)]
    process = subprocess.Popen(
        [*words, "--runs-at-once", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.02)


def half_done(study: Path) -> int:
    """Runs that have stepped and not ended."""
    texts = [path.read_text() for path in (study / POINTS).glob("*/events.jsonl")]
    return sum('"event": "step"' in text and '"event": "end"' not in text for text in texts)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_study_that_was_ended_goes_on_to_the_same_results(
    reference: SimpleNamespace, tiny_data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Ended with some runs finished and others half done."""
    spec = write_spec(tmp_path, tiny_data, STUDY)
    study = tmp_path / "study"

    def finished() -> int:
        path = study / JOURNAL
        return len(path.read_text().splitlines()) if path.exists() else 0

    def come_so_far() -> bool:
        return finished() > 1 and half_done(study) > 0

    with command(spec, study) as process:
        wait_for(come_so_far)
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)
        if number == signal.SIGINT:
            assert "Go on with: " in said
            assert "tunnel run" in said
    before = finished()
    journal, notes = make(reference.points, study)
    assert len(notes.begun) <= len(reference.points.points) - before
    assert bits(journal) == bits(reference.journal)


@pytest.mark.slow
def test_a_killed_process_is_a_result_and_the_others_go_on(
    reference: SimpleNamespace, tiny_data: Path, tmp_path: Path
) -> None:
    class Killer(Notes):
        def progress(self, slot: int, step: int, last_step: int, loss: float | None) -> None:
            point = runner._held[slot].point
            if not victim and point is not None:
                victim.append(point.key)
                os.kill(runner._held[slot].process.pid or 0, signal.SIGKILL)

    victim: list[str] = []
    study = tmp_path / "study"
    study.mkdir()
    journal, notes = Journal(study), Killer()
    points = reference.points
    runner = Runner(study, points.points, journal, SLOTS, notes, Costs(points).of)
    runner.run([])
    killed = [run for run in journal.runs.values() if run.status == "killed"]
    saved = list((study / POINTS / victim[0]).glob("step-*"))
    events = (study / POINTS / victim[0] / "events.jsonl").read_text()
    assert saved or '"event": "checkpoint"' not in events
    assert [run.key for run in killed] == victim
    assert "signal 9" in killed[0].reason
    branches = {p.key for p in points.points if p.trunk == victim[0]}
    assert {run.key for run in journal.runs.values() if run.status == "failed"} == branches
    again, notes = make(points, study)  # and the same command tries it once more
    assert set(notes.begun) == {*victim, *branches}
    assert bits(again) == bits(reference.journal)


def test_a_diverged_run_is_a_result(tiny_data: Path, tmp_path: Path) -> None:
    axes = {"optimizer.learning_rate": [0.01, 1e4]}
    changes = {"clip": {"optimizer.clip_grad_norm": None, "guard.spike_sigmas": None}}
    sweep = SWEEP | {"axes": axes, "sizes": ["16x1"], "overrides": changes["clip"]}
    points = points_of(tmp_path, tiny_data, {"rate": sweep})
    journal, notes = make(points, tmp_path / "study")
    by_rate = {r.values["optimizer.learning_rate"]: r for r in journal.runs.values()}
    assert by_rate[0.01].status == "done"
    assert by_rate[1e4].status == "diverged"
    assert by_rate[1e4].loss is None
    assert by_rate[1e4].reason
    _, notes = make(points, tmp_path / "study")
    assert notes.begun == []  # it would diverge again


@pytest.mark.slow
def test_a_run_that_fails_says_why_and_the_others_go_on(tiny_data: Path, tmp_path: Path) -> None:
    points = points_of(tmp_path, tiny_data, {"rate": SWEEP})
    study = tmp_path / "study"
    first = points.points[0]
    (study / POINTS).mkdir(parents=True)
    (study / POINTS / first.key).write_text("in the way", "utf-8")
    journal, _ = make(points, study)
    assert journal.runs[first.key].status == "failed"
    assert journal.runs[first.key].reason
    assert "Error" in (study / POINTS / f"{first.key}.log.txt").read_text()
    others = [run.status for key, run in journal.runs.items() if key != first.key]
    assert others == ["done"] * 3


@pytest.mark.slow
def test_a_full_disk_stops_the_study_and_finished_runs_stay(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = points_of(tmp_path, tiny_data, {"rate": SWEEP})
    study = tmp_path / "study"
    last = points.points[0]  # the smaller sizes are made last
    (study / POINTS).mkdir(parents=True)
    (study / POINTS / last.key).write_text("in the way", "utf-8")
    monkeypatch.setattr(
        runner_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000)
    )
    with pytest.raises(UserError, match=r"1 MB are free.*same command again"):
        make(points, study)
    assert sum(run.status == "done" for run in Journal(study).runs.values()) >= 1


@pytest.mark.slow
def test_a_run_that_another_process_makes_is_waited_for(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_ELSEWHERE_SECONDS", 0.5)
    points = points_of(tmp_path, tiny_data, {"rate": SWEEP | {"sizes": ["16x1"]}})
    study = tmp_path / "study"
    held = contextlib.ExitStack()
    held.enter_context(locked(study / POINTS / points.points[0].key))

    class Freeing(Notes):
        def left(self, slot: int, *, done: bool = False) -> None:
            super().left(slot, done=done)
            held.close()

    journal, notes = make(points, study, notes=Freeing())
    assert {run.status for run in journal.runs.values()} == {"done"}
    assert notes.left_slots
    assert any("another process" in line for line in notes.lines)


# -- the study's directory ------------------------------------------------------------------------


def test_other_data_under_the_same_path_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    spec = write_spec(tmp_path, data, {"rate": SWEEP})
    study_directory = tmp_path / "study"
    opened = SimpleNamespace(
        directory=study_directory, points=points_of(tmp_path, data, {"rate": SWEEP})
    )
    base = load_recipe(tmp_path / "base.yaml")
    begin_study(opened, spec, base)  # type: ignore[arg-type]
    assert open_study(study_directory).spec == load_spec(spec)
    shutil.rmtree(data / "prose")
    shutil.copytree(data / "code", data / "prose")
    with pytest.raises(UserError, match="prose is not the data"):
        begin_study(opened, spec, base)  # type: ignore[arg-type]


def test_what_is_no_study_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no study"):
        open_study(tmp_path)


def test_a_result_survives_the_journal(reference: SimpleNamespace) -> None:
    read = Journal(reference.study)
    for key, run in reference.journal.runs.items():
        assert dataclasses.asdict(read.runs[key]) == dataclasses.asdict(run)


@pytest.mark.slow
def test_a_search_makes_real_runs_and_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    """Through the verb, of a spec that has nothing else."""
    from llamita.windtunnel.verb import tunnel_run

    search = {"kind": "tpe", "trials": 4, "prune": True}
    axes = {"optimizer.learning_rate": {"low": 1e-4, "high": 0.1}}
    sweep = SWEEP | {"axes": axes, "search": search, "sizes": ["16x1"], "tokens_per_parameter": 8}
    spec = write_spec(tmp_path, tiny_data, {"rate": sweep})
    lines: list[str] = []
    found = tunnel_run(spec, out=tmp_path / "study", runs_at_once=2, say=lines.append)
    assert found is not None
    assert len(found.runs) == 4
    assert {run.status for run in found.runs} <= {"done", "pruned"}
    again = tunnel_run(spec, out=tmp_path / "study", runs_at_once=2, say=lines.append)
    assert again is not None
    assert again.runs == found.runs
