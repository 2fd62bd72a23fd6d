"""Searches that Optuna steers, on losses that a formula gives in place of runs."""

from __future__ import annotations

import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest

from llamita.errors import UserError
from llamita.windtunnel.findings import RunResult
from llamita.windtunnel.points import Point, Points
from llamita.windtunnel.results import Journal
from llamita.windtunnel.search import Search
from llamita.windtunnel.storage import GONE_SECONDS, Storage, default_storage, without_password
from tests.windtunnel.helpers import RATES, points_of, result_of

SEARCH = RATES | {
    "axes": {"optimizer.learning_rate": {"low": 1e-4, "high": 1.0}},
    "search": {"kind": "tpe", "trials": 10, "seed": 3},
    "sizes": ["16x1"],
}
BEST = 0.02


def loss_at(point: Point) -> float:
    """Lowest at BEST, as a parabola in the rate's logarithm."""
    rate = point.values["optimizer.learning_rate"]
    return 1.0 + 0.05 * math.log(rate / BEST) ** 2


def search_of(points: Points, study: Path, **changes: Any) -> Search:
    study.mkdir(exist_ok=True)
    values = {
        "url": default_storage(study),
        "name": "study",
        "data": {},
        "owner": "here",
        "journal": Journal(study),
    } | changes
    return Search(points.searched[0], points.base, Storage(**values))


def end(search: Search, point: Point, result: RunResult) -> None:
    search._journal.add(result)
    search.ended(point, result)


@pytest.fixture
def points(tiny_data: Path, tmp_path: Path) -> Points:
    return points_of(tmp_path, tiny_data, {"rate": SEARCH})


def run_all(search: Search, journal: Journal) -> list[Point]:
    made = []
    while (point := search.next()) is not None:
        made.append(point)
        ended = result_of(point, loss=loss_at(point))
        journal.add(ended)
        search.ended(point, ended)
    return made


def test_a_search_comes_near_the_planted_optimum(tiny_data: Path, tmp_path: Path) -> None:
    search = {"kind": "tpe", "trials": 24, "seed": 3}
    points = points_of(tmp_path, tiny_data, {"rate": SEARCH | {"search": search}})
    study = tmp_path / "study"
    study.mkdir()
    journal = Journal(study)
    made = run_all(search_of(points, study, journal=journal), journal)
    assert len(made) == 24
    best = min(made, key=loss_at)
    assert best.values["optimizer.learning_rate"] == pytest.approx(BEST, rel=0.5)
    # and spends more of its later trials near it than chance would (a quarter of the range)
    near = [abs(math.log10(p.values["optimizer.learning_rate"] / BEST)) < 0.5 for p in made[8:]]
    assert sum(near) > len(near) / 2


def test_the_same_search_tries_the_same_values(points: Points, tmp_path: Path) -> None:
    tried = []
    for name in ("a", "b"):
        study = tmp_path / name
        study.mkdir()
        journal = Journal(study)
        tried.append([p.key for p in run_all(search_of(points, study, journal=journal), journal)])
    assert tried[0] == tried[1]


def test_a_search_that_was_killed_goes_on_with_what_it_had_begun(
    points: Points, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    study.mkdir()
    whole_study = tmp_path / "whole"
    whole_study.mkdir()
    journal = Journal(whole_study)
    whole = [p.key for p in run_all(search_of(points, whole_study, journal=journal), journal)]
    first = search_of(points, study)
    begun = first.next()
    assert begun is not None  # and now the process is killed
    journal = Journal(study)
    again = [p.key for p in run_all(search_of(points, study, journal=journal), journal)]
    assert again[0] == begun.key
    assert again == whole


def test_another_machines_trial_is_left_to_it(points: Points, tmp_path: Path) -> None:
    storage = default_storage(tmp_path)
    theirs = search_of(points, tmp_path / "theirs", url=storage, owner="there").next()
    journal = Journal(tmp_path)
    ours = run_all(search_of(points, tmp_path / "ours", url=storage, journal=journal), journal)
    assert theirs is not None
    assert theirs.key not in {point.key for point in ours}
    assert len(ours) == 9  # theirs is one of the ten


def test_a_trial_of_a_machine_that_is_gone_is_tried_by_another(
    points: Points, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = default_storage(tmp_path)
    theirs = search_of(points, tmp_path / "theirs", url=storage, owner="there").next()
    late = time.time() + GONE_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: late)
    journal = Journal(tmp_path)
    ours = run_all(search_of(points, tmp_path / "ours", url=storage, journal=journal), journal)
    assert theirs is not None
    assert len(ours) == 10


def test_one_whose_trial_was_given_to_another_goes_on(
    points: Points, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept, and its run is its own still."""
    storage = default_storage(tmp_path)
    slept = search_of(points, tmp_path / "slept", url=storage, owner="slept")
    point = slept.next()
    assert point is not None
    late = time.time() + GONE_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: late)
    assert search_of(points, tmp_path / "other", url=storage, owner="other").next() is not None
    assert not slept.judged(point, 1, 3.0)
    slept._trials._beaten -= 100
    slept.beat()
    end(slept, point, result_of(point, loss=2.0))
    assert slept._journal.runs[point.key].loss == 2.0


def test_a_trial_that_was_begun_just_now_is_not_gone(
    points: Points, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner had no time yet to say that it lives."""
    storage = default_storage(tmp_path)
    theirs = search_of(points, tmp_path / "theirs", url=storage, owner="there")
    theirs._trials.study.ask(theirs._distributions)
    journal = Journal(tmp_path)
    ours = run_all(search_of(points, tmp_path / "ours", url=storage, journal=journal), journal)
    assert len(ours) == 9


def test_a_diverged_run_counts_as_bad_and_a_failed_one_not_at_all(
    points: Points, tmp_path: Path
) -> None:
    search = search_of(points, tmp_path / "study")
    for status in ("diverged", "failed", "pruned"):
        point = search.next()
        assert point is not None
        end(search, point, result_of(point, status))  # type: ignore[arg-type]
    (name,) = optuna.get_all_study_names(default_storage(tmp_path / "study"))
    study = optuna.load_study(study_name=name, storage=default_storage(tmp_path / "study"))
    assert name.endswith("/rate/16x1/llama/0")
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "PRUNED"]
    assert study.trials[0].value == 4.0  # what it began with


def test_values_that_are_drawn_again_are_not_run_again(tiny_data: Path, tmp_path: Path) -> None:
    """Of three values ten trials ask: three runs are made, and the search comes to its end."""
    axes = {"optimizer.learning_rate": [0.001, 0.01, 0.1]}
    found = points_of(tmp_path, tiny_data, {"rate": SEARCH | {"axes": axes}})
    study = tmp_path / "study"
    study.mkdir()
    journal = Journal(study)
    search = search_of(found, study, journal=journal)
    begun = []
    while (point := search.next()) is not None:  # none ends meanwhile, as with many devices
        begun.append(point)
    assert len({point.key for point in begun}) == len(begun) <= 3
    for point in begun:
        ended = result_of(point, loss=loss_at(point))
        journal.add(ended)
        search.ended(point, ended)
    assert search.next() is None


def test_a_search_whose_runs_all_fail_comes_to_its_end(points: Points, tmp_path: Path) -> None:
    """And the next call tries as many again."""
    for _ in range(2):
        search = search_of(points, tmp_path / "study")
        count = 0
        while (point := search.next()) is not None:
            end(search, point, result_of(point, "failed"))
            count += 1
        assert count == 10


def test_a_run_far_worse_than_the_others_is_stopped(points: Points, tmp_path: Path) -> None:
    search = search_of(points, tmp_path / "study")
    for _ in range(6):
        point = search.next()
        assert point is not None
        for step in range(1, 6):
            assert not search.judged(point, step, 3.0 - 0.1 * step)
        end(search, point, result_of(point, loss=2.5))
    point = search.next()
    assert point is not None
    stopped = [search.judged(point, step, 3.9) for step in range(1, 6)]
    assert stopped[0] is False  # the first validations say little
    assert True in stopped


def test_storage_that_is_gone_or_locked_is_an_error(points: Points, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is locked, gone or not to be reached"):
        search_of(points, tmp_path / "s", url=f"sqlite:///{tmp_path}/nowhere/optuna.db")
    with pytest.raises(UserError, match="is locked, gone or not to be reached"):
        search_of(points, tmp_path / "s", url="nosuchdatabase://x")


def test_a_driver_that_is_not_installed_is_named(points: Points, tmp_path: Path) -> None:
    if find_spec("psycopg2") is not None:
        pytest.skip("psycopg2 is installed")
    with pytest.raises(UserError, match=r"://me:…@host/db: the driver .*psycopg2"):
        search_of(points, tmp_path / "s", url="postgresql+psycopg2://me:secret@host/db")


def test_a_password_is_not_shown() -> None:
    url = "postgresql://me:secret@host/db"
    assert without_password(url) == "postgresql://me:…@host/db"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"


def test_values_that_a_search_cannot_choose_among(tiny_data: Path, tmp_path: Path) -> None:
    axes = {"optimizer.betas": [[0.9, 0.95], [0.9, 0.99]]}
    found = points_of(tmp_path, tiny_data, {"rate": SEARCH | {"axes": axes}})
    with pytest.raises(UserError, match="plain values"):
        search_of(found, tmp_path / "s")
