"""`plan --check`: runs that nobody trained, whose every difference is known by hand."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.planning.check import Check, Row, check_run
from llamita.planning.hardware import Device, Hardware, Price

BATCH = 100
STEP_FLOPS = 5e9


@dataclass
class Told:
    """Events with a clock of their own that starts at 1,000 seconds."""

    path: Path
    now: float = 1000.0

    def write(self, kind: str, step: int, *, after: float = 0.0, **fields: Any) -> None:
        self.now += after
        event = {"event": kind, "time": self.now, "step": step, **fields}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def begin(self, kind: str, step: int, last: int, **fields: Any) -> None:
        self.write(kind, step, last_step=last, environment={"processes": 1}, **fields)

    def forecast(self, step: int, last: int, *, after: float = 4.0, **changes: Any) -> None:
        """A second a step, 2 s a validation, 1 s a checkpoint; MFU 0.25."""
        steps = last - step
        stage = {"name": "stable", "first_step": step, "steps": steps, "tokens": steps * BATCH}
        stage |= {"flops": steps * STEP_FLOPS, "seconds": 1.0 * steps}
        parts = {"steps": {"count": steps, "seconds": 1.0 * steps}}
        parts |= {"validation": {"count": 3, "seconds": 6.0}}
        parts |= {"saving": {"count": 2, "seconds": 2.0}}
        told = {"last_step": last, "stages": [stage], "parts": parts, "seconds": steps + 8.0}
        told |= {"devices": 1, "mfu": 0.25, "memory": {"weights": 1, "total": 2 * 10**9}}
        told |= {"predicted": None, "left_out": ["waiting for data", "other work"]}
        self.write("forecast", step, after=after, **{**told, **changes})

    def steps(
        self, first: int, last: int, each: float = 1.0, *, wait: float = 0.0, **changes: Any
    ) -> None:
        """Written at once when the last has been taken, as training does."""
        self.now += (last - first + 1) * each
        for step in range(first, last + 1):
            fields = {"stage": "stable", "tokens": step * BATCH, "loss": 3.0, **changes}
            self.write("step", step, **fields)
        rate = BATCH / each
        self.write("progress", last, tokens_per_second=rate, mfu=0.25 / each, data_wait=wait)

    def validation(self, step: int, bits: float = 2.0, *, after: float = 2.0) -> None:
        self.write("validation", step, after=after, bits_per_byte=bits, tokens=50, bytes=200)

    def save(self, step: int, *, after: float = 1.0) -> None:
        self.write("checkpoint", step, after=after, path=f"step-{step}")

    def end(self, step: int, *, peak: float = 3.5e9) -> None:
        self.write("memory", step, estimate={}, baseline_bytes=5e8, peak_bytes=peak)
        self.write("end", step, final="final", bits_per_byte=2.0)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "events.jsonl")


def whole(told: Told, each: float = 1.0, **forecast: Any) -> None:
    """Ten steps, as planned where `each` is 1: 10 + 3 × 2 + 2 × 1 = 18 seconds."""
    told.begin("start", 0, 10)
    told.forecast(0, 10, **forecast)
    told.validation(0)
    told.steps(1, 5, each)
    told.validation(5)
    told.save(5)
    told.steps(6, 10, each)
    told.validation(10, 1.5)
    told.save(10)
    told.end(10)


def rows(check: Check) -> dict[str, Row]:
    return {row.what.strip(): row for row in check.rows}


def pair(check: Check, what: str) -> tuple[float | None, float | None]:
    row = rows(check)[what]
    return row.planned, row.achieved


def notes(check: Check) -> str:
    return "\n".join(check.notes)


# -- one process ----------------------------------------------------------------------------------


def test_as_planned(told: Told) -> None:
    whole(told)
    check = check_run(told.path)
    assert (check.finished, check.planned, check.step, check.last_step) == (True, True, 10, 10)
    assert check.state == "finished at step 10"
    assert {what: (row.planned, row.achieved) for what, row in rows(check).items()} == {
        "steps": (10, 10),
        "tokens": (1000, 1000),
        "arithmetic": (5e10, 5e10),
        "time": (18, 18),
        "in steps": (10, 10),
        "in validation": (6, 6),
        "in saving": (2, 2),
        "tokens/s": (100, 100),
        "MFU": (0.25, 0.25),
        "memory": (2e9, 3e9),
        "validation": (None, 1.5),
        "training loss": (None, 3.0),
    }
    assert rows(check)["memory"].difference == 0.5
    assert rows(check)["time"].difference == 0
    assert rows(check)["validation"].difference is None


def test_slower_steps(told: Told) -> None:
    """1.5 s a step: 15 + 6 + 2 = 23 s in place of 18, at two thirds of the pace."""
    whole(told, 1.5)
    check = check_run(told.path)
    assert pair(check, "time") == (18, 23)
    assert rows(check)["time"].difference == pytest.approx(5 / 18)
    assert pair(check, "in steps") == (10, 15)
    assert pair(check, "tokens/s") == (100, pytest.approx(100 / 1.5))
    assert pair(check, "MFU") == (0.25, pytest.approx(0.25 / 1.5))
    assert "beyond the plan: steps +5.0s" in check.notes
    assert "steps ran at 67% of the pace that was measured before the first one" in check.notes
    assert "the plan does not know of waiting for data or other work" in check.notes


def test_nothing_is_explained_where_nothing_differs(told: Told) -> None:
    whole(told)
    (preparing, cost) = check_run(told.path).notes
    assert preparing.startswith("4.0s went into preparing before the plan was written")
    assert cost.startswith("energy and cost:")


def test_waiting_uneven_and_skipped(told: Told) -> None:
    told.begin("start", 0, 10)
    told.forecast(0, 10)
    told.validation(0)
    told.steps(1, 5, 1.0, wait=0.1)
    told.steps(6, 6, 1.0, skipped="spike", loss="nan")
    told.steps(7, 10, 2.5, wait=0.5)
    told.validation(10, after=7.0)
    told.end(10)
    check = check_run(told.path)
    # 5 · 0.1 + 10 · 0.5 of 5 + 1 + 10 seconds of stepping.
    assert "steps waited 5.5s for data, 34.4% of their time" in check.notes
    assert "the pace was uneven: between 40 and 100 tokens/s" in check.notes
    assert "1 of 10 steps were skipped: they took time and reached no weights" in check.notes
    # Two validations of 2 and 7 s in place of three of 2 s; no checkpoint in place of two.
    assert "beyond the plan: steps +6.0s, validation +3.0s, saving −2.0s" in check.notes
    assert pair(check, "tokens/s") == (100, pytest.approx(1000 / 16))


def test_stages_differ(told: Told) -> None:
    """Stopped after 7 of 4 + 6 steps of 1 and 3 s: 4 + 9 s were planned up to there."""
    first = {"name": "stable", "first_step": 0, "steps": 4, "tokens": 400, "flops": 4e9}
    second = {"name": "decay", "first_step": 4, "steps": 6, "tokens": 1800, "flops": 18e9}
    told.begin("start", 0, 10)
    told.forecast(0, 10, stages=[first | {"seconds": 4.0}, second | {"seconds": 18.0}])
    told.validation(0)
    told.steps(1, 4)
    told.validation(4)
    told.steps(5, 7, 3.0, stage="decay")
    told.save(7)
    told.write("interrupted", 7)
    check = check_run(told.path)
    assert not check.finished
    assert check.state == (
        "interrupted at step 7 of 10 (70% of the plan); planned is what the plan says up to there"
    )
    assert pair(check, "tokens")[0] == 400 + 900
    assert pair(check, "arithmetic") == (13e9, 13e9)
    assert pair(check, "in steps") == (13, 13)
    # As many validations and checkpoints as there were: two of three, one of two.
    assert pair(check, "in validation") == (4, 4)
    assert pair(check, "in saving") == (1, 1)
    assert pair(check, "time") == (18, 18)


def test_a_run_that_goes_on(told: Told) -> None:
    told.begin("start", 0, 10)
    told.forecast(0, 10)
    told.validation(0)
    told.steps(1, 5)
    check = check_run(told.path)
    assert check.state.startswith("running, or ended without saying so, at step 5 of 10 (50%")
    assert pair(check, "time") == (5 + 2, 5 + 2)
    assert pair(check, "memory") == (2e9, None)


def test_what_time_goes_into(told: Told) -> None:
    """Samples have a part of their own, and `final` is made before the end: that is saving."""
    told.begin("start", 0, 4)
    parts = {"steps": {"count": 4, "seconds": 4.0}, "samples": {"count": 1, "seconds": 5.0}}
    told.forecast(0, 4, parts=parts | {"saving": {"count": 1, "seconds": 1.0}})
    told.steps(1, 4)
    told.write("sample", 4, after=2.0, prompt="a", text="b")
    told.write("sample", 4, after=3.0, prompt="c", text="d")
    told.save(4)
    told.now += 0.5
    told.end(4)
    told.now += 0.25
    told.write("end", 4)
    check = check_run(told.path)
    assert pair(check, "in samples") == (5, 5)
    assert pair(check, "in saving") == (1, 1.25)
    assert pair(check, "in steps") == (4, 4.5)


def test_small_parts_are_in_the_sum_alone(told: Told) -> None:
    """Under 1% of the time has no line, under 2% no words."""
    told.begin("start", 0, 200)
    told.forecast(0, 200)
    told.validation(0)
    told.steps(1, 100, 1.0, wait=0.03)
    told.steps(101, 200, 1.02)
    told.save(200)
    told.save(200, after=0.5)
    told.end(200)
    check = check_run(told.path)
    assert "in saving" not in rows(check)
    assert pair(check, "time")[1] == pytest.approx(100 + 102 + 2 + 1.5)
    # 3 s of 202 are 1.5%; the largest difference, of validation, is 4 s of 208.
    assert "waited" not in notes(check)
    assert "beyond" not in notes(check)


def test_a_clock_that_is_set_back(told: Told) -> None:
    told.begin("start", 0, 10)
    told.forecast(0, 10)
    told.steps(1, 5)
    told.now -= 1000
    told.steps(6, 10)
    told.end(10)
    assert pair(check_run(told.path), "time")[1] == 5


def test_nothing_but_a_plan(told: Told) -> None:
    told.begin("start", 0, 10)
    told.forecast(0, 10)
    check = check_run(told.path)
    assert pair(check, "steps") == (0, 0)
    assert check.lines()


def test_less_than_the_process_held_before(told: Told) -> None:
    told.begin("start", 0, 1)
    told.forecast(0, 1)
    told.steps(1, 1)
    told.end(1, peak=4e8)
    assert pair(check_run(told.path), "memory") == (2e9, 0)


# -- several processes ----------------------------------------------------------------------------


def died_and_went_on(told: Told) -> None:
    """Saved at step 4 and killed after 7; an hour later taken up at 4 with 3 s of preparing."""
    told.begin("start", 0, 10)
    told.forecast(0, 10)
    told.validation(0)
    told.steps(1, 4)
    told.save(4)
    told.steps(5, 7)
    told.now += 3600
    told.begin("resume", 4, 10, changed=["runtime.threads"])
    told.forecast(4, 10, after=3.0)
    told.steps(5, 10)
    told.validation(10)
    told.save(10)
    told.end(10)


def test_pauses_do_not_count_and_lost_steps_do(told: Told) -> None:
    died_and_went_on(told)
    check = check_run(told.path)
    assert (check.finished, check.step) == (True, 10)
    assert pair(check, "steps") == (10, 10)
    assert pair(check, "tokens") == (1000, 1000)
    assert pair(check, "arithmetic") == (5e10, 13 * STEP_FLOPS)
    assert pair(check, "in steps") == (10, 13)
    assert pair(check, "preparing again") == (None, 3)
    # 13 steps, two validations of 2 s, two checkpoints of 1 s, 3 s of preparing again.
    assert pair(check, "time") == (18, 13 + 4 + 2 + 3)
    said = notes(check)
    assert "2 processes, 1h00m between them not counted" in said
    assert "a process ended without saying so" in said
    assert "3 steps were lost and taken again: 3.0s of the time" in said
    assert "went on from step 4 with changes: runtime.threads" in said
    assert "beyond the plan: steps +3.0s, preparing again +3.0s, validation −2.0s" in said


def test_what_was_lost_is_not_there_yet_again(told: Told) -> None:
    """Saved at 2, dead after validating at 6 with 1 bit; taken up at 2 and now at 4, as at 5."""
    told.begin("start", 0, 10)
    told.forecast(0, 10)
    told.validation(0, 3.0)
    told.steps(1, 2)
    told.save(2)
    told.steps(3, 6)
    told.validation(6, 1.0)
    told.begin("resume", 2, 10)
    told.forecast(2, 10)
    told.steps(3, 4)
    check = check_run(told.path)
    assert pair(check, "steps") == (4, 4)
    assert pair(check, "tokens") == (400, 400)
    assert pair(check, "in validation") == (2, 4)
    assert pair(check, "validation") == (None, 3.0)
    assert "4 steps were lost and taken again: 6.0s of the time" in notes(check)


def test_further_back_than_the_process_before(told: Told) -> None:
    """Its checkpoint was damaged: the third goes on from the first one's, and all of the second is
    lost: 2 steps of the first, with their second of saving, and 2 of the second."""
    told.begin("start", 0, 10)
    told.forecast(0, 10)
    told.steps(1, 2)
    told.save(2)
    told.steps(3, 4)
    told.save(4)
    told.write("interrupted", 4)
    told.begin("resume", 4, 10)
    told.forecast(4, 10)
    told.steps(5, 6)
    told.write("interrupted", 6)
    told.begin("resume", 2, 10)
    told.forecast(2, 10)
    told.steps(3, 10)
    told.end(10)
    check = check_run(told.path)
    assert pair(check, "arithmetic")[1] == 14 * STEP_FLOPS
    # 2 steps + 1 s of saving, and of the second process 4 s of preparing and 2 steps.
    assert "4 steps were lost and taken again: 9.0s of the time" in notes(check)


def test_a_run_that_was_made_longer(told: Told) -> None:
    """Each stretch by its own plan: 10 steps in 18 s, then 5 more at 2 s and 3 s beside them."""
    whole(told)
    told.begin("resume", 10, 15)
    longer = {"name": "more", "first_step": 10, "steps": 5, "tokens": 500, "flops": 1e9}
    parts = {"steps": {"count": 5, "seconds": 10.0}, "validation": {"count": 1, "seconds": 3.0}}
    told.forecast(
        10, 15, after=2.0, stages=[longer | {"seconds": 10.0}], parts=parts, mfu=0.1, seconds=13.0
    )
    told.steps(11, 15, 2.0, stage="more")
    told.validation(15, after=3.0)
    told.end(15)
    check = check_run(told.path)
    assert (check.step, check.last_step) == (15, 15)
    assert pair(check, "steps") == (15, 15)
    assert pair(check, "arithmetic") == (51e9, 51e9)
    assert pair(check, "time") == (18 + 13, 18 + 13 + 2)
    assert rows(check)["MFU"].planned == pytest.approx((10 * 0.25 + 10 * 0.1) / 20)


def test_started_anew(told: Told) -> None:
    """Nothing had been saved; the first attempt is another run, whose plan does not hold."""
    told.begin("start", 0, 99)
    told.forecast(0, 99)
    told.steps(1, 6)
    told.now += 50
    whole(told)
    check = check_run(told.path)
    assert pair(check, "time") == (18, 18)
    assert "the run was started anew: 10s before that" in notes(check)


def test_a_branch_counts_its_own_steps(told: Told) -> None:
    told.begin("start", 100, 110)
    told.forecast(100, 110)
    told.steps(101, 110)
    told.end(110)
    check = check_run(told.path)
    assert pair(check, "steps") == (10, 10)
    assert pair(check, "tokens") == (1000, 1000)
    assert pair(check, "tokens/s") == (100, 100)


# -- runs without a plan --------------------------------------------------------------------------


def test_before_there_were_plans(told: Told) -> None:
    """The stages that were announced and the probe's step are there, and nothing else."""
    stages = [
        {"name": "stable", "first_step": 0, "num_steps": 6, "batch_tokens": BATCH},
        {"name": "decay", "first_step": 6, "num_steps": 4, "batch_tokens": BATCH},
    ]
    told.begin("start", 0, 10, stages=stages)
    told.write("probe", 0, after=1.0, step_seconds=0.5, rest_seconds=5.0, compile_seconds=0.0)
    told.validation(0)
    told.steps(1, 10)
    told.write("memory", 10, estimate={"a": 1e9, "b": 1e9}, baseline_bytes=5e8, peak_bytes=3e9)
    told.write("end", 10)
    check = check_run(told.path)
    assert not check.planned
    assert pair(check, "steps") == (10, 10)
    assert pair(check, "tokens") == (1000, 1000)
    assert pair(check, "time") == (None, 12)
    assert pair(check, "in steps") == (5, 10)
    assert pair(check, "in validation") == (None, 2)
    assert pair(check, "tokens/s") == (200, 100)
    assert pair(check, "memory") == (2e9, 2.5e9)
    assert "arithmetic" not in rows(check)
    assert check.notes[0].startswith("no plan was written into this run before its first step")


def test_plans_came_halfway(told: Told) -> None:
    """Only the process with a plan is compared."""
    told.begin("start", 0, 10)
    told.steps(1, 4)
    told.write("interrupted", 4)
    told.begin("resume", 4, 10)
    told.forecast(4, 10)
    told.steps(5, 10)
    told.validation(10)
    told.end(10)
    check = check_run(told.path)
    assert check.planned
    assert pair(check, "steps") == (6, 6)
    assert pair(check, "tokens") == (600, 600)
    assert pair(check, "in steps") == (6, 6)
    assert "the first 4 steps were taken before a plan was written" in notes(check)


def test_no_start(told: Told) -> None:
    told.steps(1, 2)
    with pytest.raises(UserError, match="hold no start"):
        check_run(told.path)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the directory of a run"):
        check_run(tmp_path)


# -- loss -----------------------------------------------------------------------------------------


def law(**changes: Any) -> dict[str, Any]:
    made = {"law": "mine", "loss": 1.2, "loss_unit": "bits per byte", "interval": [1.1, 1.3]}
    made |= {"comparable": True, "tokens": 1000, "parameters": 500}
    return {**made, **changes}


def test_a_law_of_this_data(told: Told) -> None:
    whole(told, predicted=law())
    check = check_run(told.path)
    row = rows(check)["loss by mine"]
    assert (row.unit, row.planned, row.achieved) == ("bits per byte", 1.2, 1.5)
    assert row.difference == pytest.approx(0.25)
    assert "validation" not in rows(check), "it would be told twice"
    assert "1.5000 bits per byte lies outside the interval of mine, 1.1000 to 1.3000" in check.notes


def test_inside_the_interval(told: Told) -> None:
    whole(told, predicted=law(interval=[1.0, 1.5]))
    assert "lies inside the interval of mine" in notes(check_run(told.path))


@pytest.mark.parametrize(
    ("unit", "reached"),
    [
        ("nats per byte", 1.5 * math.log(2)),
        # 1.5 bits a byte of 200 bytes, over 50 tokens.
        ("nats per token", 1.5 * math.log(2) * 200 / 50),
    ],
)
def test_a_law_in_other_units(told: Told, unit: str, reached: float) -> None:
    whole(told, predicted=law(loss_unit=unit, loss=2.0, interval=None))
    check = check_run(told.path)
    assert pair(check, "loss by mine") == (2.0, pytest.approx(reached))
    assert rows(check)["loss by mine"].difference == pytest.approx(reached / 2 - 1)
    assert pair(check, "validation") == (None, 1.5)
    assert "interval" not in notes(check)


def test_a_law_of_another_text(told: Told) -> None:
    """Both figures are shown, and their difference is no error."""
    whole(told, predicted=law(comparable=False, loss_unit="nats per token", loss=2.5))
    check = check_run(told.path)
    row = rows(check)["loss by mine"]
    assert (row.planned, row.difference) == (2.5, None)
    assert row.achieved is not None
    said = notes(check)
    assert "the loss by mine is of another text and another tokenizer" in said
    assert "interval" not in said


def test_a_law_speaks_of_the_end(told: Told) -> None:
    told.begin("start", 0, 10)
    told.forecast(0, 10, predicted=law())
    told.validation(0)
    told.steps(1, 5)
    check = check_run(told.path)
    assert pair(check, "loss by mine") == (1.2, 2.0)
    assert rows(check)["loss by mine"].difference is None
    assert "mine speaks of the end of training, which is not there yet" in check.notes


def test_a_law_of_another_number_of_tokens(told: Told) -> None:
    whole(told, predicted=law(tokens=2000))
    assert "mine spoke of 2k tokens, and the recipe trains on 1k" in check_run(told.path).notes


# -- energy and cost ------------------------------------------------------------------------------

DEVICE = Device("box", "A box", "its maker", watts=500.0)


def test_rent_and_energy(told: Told) -> None:
    """18 s planned and 23 s taken, of two devices at 36 dollars an hour and 1 kW."""
    whole(told, 1.5, devices=2)
    hardware = Hardware(DEVICE, 2, Price(18.0, "a list"))
    check = check_run(told.path, hardware=hardware)
    assert pair(check, "energy") == (pytest.approx(18 / 3600), pytest.approx(23 / 3600))
    assert pair(check, "cost") == (pytest.approx(0.18), pytest.approx(0.23))
    assert rows(check)["cost"].difference == pytest.approx(5 / 18)
    assert "cost: $36.00 an hour of 2 × box" in check.notes
    assert "--hardware's" not in notes(check)


def test_rent_and_electricity(told: Told) -> None:
    """18 s at 36 dollars an hour, and 0.005 kWh at 2 dollars."""
    whole(told, devices=2)
    hardware = Hardware(DEVICE, 2, Price(18.0, "a list"))
    check = check_run(told.path, hardware=hardware, usd_per_kwh=2.0)
    assert pair(check, "cost")[1] == pytest.approx(0.18 + 0.005 * 2)


def test_electricity_alone_is_the_cost_of_ones_own(told: Told) -> None:
    whole(told)
    check = check_run(told.path, hardware=Hardware(DEVICE, 1), usd_per_kwh=0.3)
    assert pair(check, "cost")[1] == pytest.approx(0.5 * 18 / 3600 * 0.3)


def test_power_without_a_price(told: Told) -> None:
    whole(told)
    check = check_run(told.path, hardware=Hardware(DEVICE, 1))
    assert "energy" in rows(check)
    assert "cost" not in rows(check)
    assert "add --price NAME=1.40usd/h, or --power-price" in notes(check)


def test_another_number_of_devices(told: Told) -> None:
    whole(told)
    check = check_run(told.path, hardware=Hardware(DEVICE, 8))
    assert "the run had 1 of --hardware's 8 devices" in notes(check)


@pytest.mark.parametrize(
    ("hardware", "usd_per_kwh", "message"),
    [
        (None, 0.3, "add --hardware"),
        (Hardware(Device("box", "", ""), 1, Price(1.0, "")), 0.3, "--watts"),
        (Hardware(Device("box", "", ""), 1), None, "neither price nor power"),
    ],
)
def test_flags_that_say_nothing(
    told: Told, hardware: Hardware | None, usd_per_kwh: float | None, message: str
) -> None:
    whole(told)
    with pytest.raises(UserError, match=message):
        check_run(told.path, hardware=hardware, usd_per_kwh=usd_per_kwh)


# -- as text and JSON -----------------------------------------------------------------------------


def test_lines(told: Told) -> None:
    whole(told, 1.5)
    lines = check_run(told.path).lines()
    table = [line for line in lines if line.startswith("  ")]
    assert lines[0] == f"{told.path}: finished at step 10"
    assert table[0].split() == ["planned", "achieved", "difference"]
    (time,) = [line for line in table if line.startswith("  time")]
    assert time.split() == ["time", "18s", "23s", "+27.8%"]
    (bits,) = [line for line in table if line.startswith("  validation, bits per byte")]
    assert bits.split()[-2:] == ["–", "1.5000"]
    # The columns stand under their headings.
    assert time.index("18s") + 3 == table[0].index("planned") + len("planned")


def test_json(told: Told) -> None:
    whole(told, 1.5)
    check = check_run(told.path)
    found = json.loads(json.dumps(check.as_json(), allow_nan=False))
    assert (found["finished"], found["plan_written"], found["step"]) == (True, True, 10)
    assert found["rows"][3] == {
        "what": "time",
        "unit": "s",
        "planned": 18.0,
        "achieved": 23.0,
        "difference": pytest.approx(5 / 18),
    }
    assert found["notes"] == list(check.notes)
