"""`plan --check` of runs that tune, or end before their plan does."""

from __future__ import annotations

from typing import Any

import pytest

from llamita.planning.check import check_run
from tests.planning.test_check import BATCH, STEP_FLOPS, Told, notes, pair, rows, told

__all__ = ["told"]

PARTS: dict[str, Any] = {
    "steps": {"count": 10, "seconds": 10.0},
    "validation": {"count": 3, "seconds": 6.0},
    "reference": {"count": 7, "seconds": 5.0},
}
PAIRS = {"margin": 0.1, "accuracy": 1.0, "loss": 0.5}


def preference(told: Told, step: int, *, after: float = 2.0) -> None:
    told.write("preference", step, after=after, loss=0.6, accuracy=0.75, datasets={})


def test_a_run_of_preferences_alone(told: Told) -> None:
    """5 s for the reference, 2 s for each of three validations."""
    told.begin("start", 0, 10)
    told.forecast(0, 10, parts=PARTS)
    preference(told, 0, after=7.0)
    told.write("stage", 0, name="stable")
    told.steps(1, 5, **PAIRS)
    preference(told, 5)
    told.steps(6, 10, **PAIRS)
    preference(told, 10)
    told.end(10)
    check = check_run(told.path)
    assert pair(check, "in validation") == (11, 11)
    assert pair(check, "in steps") == (10, 10)
    assert pair(check, "time") == (21, 21)
    assert pair(check, "held-out pairs") == (None, 0.6)
    assert pair(check, "pairs told right") == (None, 0.75)
    assert (rows(check)["training loss"].unit, rows(check)["training loss"].achieved) == (
        "nats per pair",
        0.5,
    )
    assert "validation" not in rows(check)


def test_a_later_stage_s_reference_is_no_step(told: Told) -> None:
    def stage(name: str, first: int) -> dict[str, Any]:
        of = {"name": name, "first_step": first, "steps": 5, "tokens": 5 * BATCH}
        return of | {"flops": 5 * STEP_FLOPS, "seconds": 5.0}

    told.begin("start", 0, 10)
    told.forecast(0, 10, parts=PARTS, stages=[stage("stable", 0), stage("pairs", 5)])
    told.validation(0)
    told.write("stage", 0, name="stable")
    told.steps(1, 5)
    told.validation(5)
    told.write("stage", 5, after=5.0, name="pairs")
    told.steps(6, 10, stage="pairs", **PAIRS)
    preference(told, 10)
    told.end(10)
    check = check_run(told.path)
    assert pair(check, "in validation") == (11, 11)
    assert pair(check, "in steps") == (10, 10)


def test_a_sample_before_the_first_step_is_no_preparing(told: Told) -> None:
    parts = {"steps": PARTS["steps"], "samples": {"count": 2, "seconds": 6.0}}
    told.begin("start", 0, 10)
    told.forecast(0, 10, parts=parts)
    told.write("sample", 0, after=3.0, prompt="a", text="b")
    told.write("stage", 0, name="stable")
    told.steps(1, 10)
    told.write("sample", 10, after=3.0, prompt="a", text="c")
    told.end(10)
    check = check_run(told.path)
    assert pair(check, "in samples") == (6, 6)
    assert pair(check, "in steps") == (10, 10)


def test_an_early_end(told: Told) -> None:
    """Planned is what the plan says of the steps that were taken."""
    told.begin("start", 0, 10)
    told.forecast(0, 10)
    told.validation(0)
    told.steps(1, 5)
    told.validation(5)
    told.write("early_stop", 5, measure="bits_per_byte", value=2.0, validations=1)
    told.save(5)
    told.end(5)
    check = check_run(told.path)
    assert check.finished
    assert check.state == (
        "ended early at step 5 of 10, after 1 validation without a gain; planned is what the plan "
        "says up to there"
    )
    assert pair(check, "steps") == (5, 5)
    assert pair(check, "time") == (10, 10)
    assert "5 of the plan's steps were not taken" in notes(check)


def test_half_way_the_reference_is_planned_whole(told: Told) -> None:
    told.begin("start", 0, 10)
    told.forecast(0, 10, parts=PARTS)
    preference(told, 0, after=7.0)
    told.write("stage", 0, name="stable")
    told.steps(1, 5, **PAIRS)
    told.write("interrupted", 5)
    # The reference, and one of the three validations.
    assert pair(check_run(told.path), "in validation") == (7, 7)


@pytest.mark.parametrize(
    ("kinds", "what"),
    [({"a": "chats"}, "validation of answers"), ({"a": "text"}, "validation"), ({}, "validation")],
)
def test_bits_per_byte_say_what_they_are_of(told: Told, kinds: dict[str, str], what: str) -> None:
    told.begin("start", 0, 10, data_kinds=kinds)
    told.forecast(0, 10)
    told.steps(1, 10)
    told.write("validation", 10, bits_per_byte=1.5, datasets={"a": 1.5})
    told.end(10)
    assert pair(check_run(told.path), what) == (None, 1.5)
