"""Alerts from crafted events: each fires on its condition, and not just short of it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest

from llamita.reporting.alerts import Alert, AlertFinder, find_alerts

Event = dict[str, Any]

RECIPE = {
    "optimizer": {"learning_rate": 4e-3, "clip_grad_norm": 1.0},
    "datasets": {"prose": {"path": "data/prose"}},
}
START: Event = {
    "event": "start",
    "time": 0.0,
    "step": 0,
    "recipe": RECIPE,
    "environment": {"device": "cpu", "micro_batch_size": 8},
}


def step(number: int, loss: Any = 3.0, **fields: Any) -> Event:
    base = {"event": "step", "time": number * 0.1, "step": number, "stage": "stable"}
    return {**base, "loss": loss, "grad_norm": 0.5, "learning_rate": 4e-3, "tokens": 0, **fields}


def progress(number: int, seconds: float, **fields: Any) -> Event:
    base = {"event": "progress", "time": seconds, "step": number, "tokens_per_second": 1e4}
    return {**base, "mfu": 0.4, "memory_bytes": 10**9, "data_wait": 0.003, **fields}


def validation(number: int, value: float) -> Event:
    return {"event": "validation", "time": number * 0.1, "step": number, "bits_per_byte": value}


def kinds(events: Iterable[Event], *, start: Event = START) -> list[str]:
    return [alert.kind for alert in find_alerts([start, *events])]


def only(events: Iterable[Event]) -> Alert:
    (alert,) = find_alerts([START, *events])
    return alert


# -- the machine --------------------------------------------------------------------------------


def waiting(share: float, reports: int = 4, apart: float = 6.0) -> list[Event]:
    return [progress(10 * n, apart * n, data_wait=share) for n in range(1, reports + 1)]


def test_waiting_for_data() -> None:
    alert = only(waiting(0.18))
    assert alert.kind == "data_wait"
    assert "18%" in alert.message
    assert "--set datasets.prose.path=" in alert.action
    assert kinds(waiting(0.099)) == []


def test_the_first_batch_of_a_stage_is_no_wait() -> None:
    assert kinds([progress(1, 5.0, data_wait=0.9), *waiting(0.002)]) == []


def test_reports_of_some_seconds_judge_no_machine() -> None:
    assert kinds(waiting(0.5, apart=1.0)) == []


def rates(*values: float) -> list[Event]:
    return [progress(10 * n, 6.0 * n, tokens_per_second=v) for n, v in enumerate(values)]


def test_throughput_that_dropped() -> None:
    alert = only(rates(*[1e4] * 12, *[6.5e3] * 3))
    assert alert.kind == "throughput"
    assert "35% below" in alert.message
    assert kinds(rates(*[1e4] * 12, *[7.2e3] * 3)) == []
    assert kinds(rates(*[1e4] * 12, 5e3, *[1e4] * 4)) == [], "one slow report is no level"


def test_throughput_is_judged_within_a_stage() -> None:
    longer = {"event": "stage", "time": 80.0, "step": 120, "name": "long"}
    slow = [progress(120 + n, 90.0 + 6 * n, tokens_per_second=5e3) for n in range(10)]
    assert kinds([*rates(*[1e4] * 12), longer, *slow]) == []


def test_memory() -> None:
    def used(share: float) -> Event:
        limit = 16 * 10**9
        return progress(9, 9.0, memory_bytes=round(share * limit), memory_limit_bytes=limit)

    alert = only([used(0.93)])
    assert alert.kind == "memory"
    assert "--set runtime.micro_batch_size=4" in alert.action
    assert kinds([used(0.91)]) == []
    assert kinds([used(0.93), used(0.91), used(0.93)]) == ["memory"], "it must not flap"
    assert kinds([used(0.93), used(0.5), used(0.93)]) == ["memory", "memory"]


def test_work_that_is_not_saved() -> None:
    saved = {"event": "checkpoint", "time": 1000.0, "step": 500, "path": "step-500"}
    alert = only([saved, progress(1400, 1000 + 1860.0)])
    assert alert.kind == "unsaved"
    assert "31m00s" in alert.message
    # 900 steps in 1860 seconds: 290 steps in ten minutes.
    assert "--set checkpoints.every_steps=290" in alert.action
    assert kinds([saved, progress(1400, 1000 + 1790.0)]) == []
    assert kinds([progress(1400, 1810.0)]) == ["unsaved"], "counted from the start if never saved"


def test_a_sink_that_failed() -> None:
    failed = {"event": "sink_failed", "time": 1.0, "step": 7, "name": "wandb", "error": "no disk"}
    alert = only([failed])
    assert (alert.kind, alert.step) == ("sink_failed", 7)
    assert "wandb" in alert.message
    assert "no disk" in alert.message


# -- the learning -------------------------------------------------------------------------------


def skipped(*numbers: int, kind: str = "spike", until: int = 400) -> list[Event]:
    return [step(n, **({"skipped": kind} if n in numbers else {})) for n in range(1, until)]


def test_spikes() -> None:
    alert = only(skipped(50, 90, 140))
    assert (alert.kind, alert.step) == ("spikes", 140)
    assert "--set optimizer.learning_rate=0.002" in alert.action
    assert "warmup_tokens" in alert.action
    assert kinds(skipped(50, 90, 151)) == [], "150 steps hold them, 100 do not"


def test_a_branch_goes_from_the_last_checkpoint() -> None:
    saved = {"event": "checkpoint", "time": 1.0, "step": 40, "path": "step-40"}
    assert "--from RUN/step-40 " in only([saved, *skipped(50, 90, 140)]).action


def test_non_finite_steps() -> None:
    events = skipped(60, kind="non_finite")
    events[59]["loss"] = "nan"
    alert = only(events)
    assert (alert.kind, alert.step) == ("non_finite", 60)
    assert "runtime.dtype=float32" in alert.action
    assert kinds(skipped(60, 61, 62, kind="non_finite")) == ["non_finite"], "told once"
    assert kinds(skipped(60, 300, kind="non_finite")) == ["non_finite"] * 2, "and once more later"


def noisy(means: Iterable[float], seed: int = 0, sigma: float = 0.05) -> list[Event]:
    draw = random.Random(seed)
    return [step(n, mean + draw.gauss(0, sigma)) for n, mean in enumerate(means, 1)]


def test_a_loss_that_rises() -> None:
    falling = [3.0 + 3 * math.exp(-n / 200) for n in range(1000)]
    rising = [falling[-1] + n * 2e-4 for n in range(1000)]
    alert = only(noisy([*falling, *rising]))
    assert alert.kind == "rising_loss"
    assert 1200 < alert.step <= 1800
    bump = [falling[-1] + (0.3 if n < 150 else 0.0) for n in range(1000)]
    assert kinds(noisy([*falling, *bump])) == [], "a bump of 150 steps passes"


@pytest.mark.parametrize("seed", range(5))
def test_noise_around_a_level_is_no_rise(seed: int) -> None:
    assert kinds(noisy([3.0] * 20_000, seed, sigma=0.3)) == []


def test_the_next_stage_may_begin_higher() -> None:
    second = {"event": "stage", "time": 0.0, "step": 500, "name": "decay"}
    assert kinds([*noisy([3.0] * 500), second, *noisy([4.0] * 600)]) == []


def test_gradients_that_are_always_clipped() -> None:
    alert = only(step(n, grad_norm=4.2) for n in range(1, 600))
    assert (alert.kind, alert.step) == ("clipped", 500)
    assert "--set optimizer.clip_grad_norm=8" in alert.action
    assert kinds(step(n, grad_norm=4.2 if n % 20 else 0.9) for n in range(1, 600)) == []
    unclipped = {"optimizer": {"learning_rate": 4e-3, "clip_grad_norm": None}}
    events = [step(n, grad_norm=4.2) for n in range(1, 600)]
    assert kinds(events, start={**START, "recipe": unclipped}) == []


def learned(*points: tuple[float, float]) -> list[Event]:
    """100 steps at a loss and then a validation, each time."""
    events = []
    for number, (loss, value) in enumerate(points):
        events += [step(100 * number + n, loss) for n in range(1, 101)]
        events.append(validation(100 * (number + 1), value))
    return events


def test_overfitting() -> None:
    alert = only(learned((3.0, 1.50), (2.8, 1.40), (2.5, 1.43), (2.2, 1.46)))
    assert (alert.kind, alert.step) == ("overfitting", 400)
    assert "1.4000 at step 200" in alert.message
    assert "checkpoints.final=best" in alert.action
    once = learned((3.0, 1.50), (2.8, 1.40), (2.5, 1.43), (2.2, 1.39))
    assert kinds(once) == [], "one bad validation"
    both = learned((3.0, 1.50), (2.8, 1.40), (2.9, 1.43), (2.95, 1.46))
    assert kinds(both) == [], "training gets worse too: that is not overfitting"


def test_a_learning_rate_that_vanished() -> None:
    halving = [step(n, learning_rate=4e-3 * 0.5 ** (n / 20)) for n in range(1, 600)]
    alert = only(halving)
    assert alert.kind == "learning_rate"
    assert "final_fraction" in alert.action


@pytest.mark.parametrize("length", [50, 1000, 20_000])
def test_a_decay_to_zero_is_no_vanished_rate(length: int) -> None:
    events = [step(n + 1, learning_rate=4e-3 * (1 - n / length)) for n in range(length)]
    assert kinds(events) == []


# -- all of them --------------------------------------------------------------------------------


def test_event_by_event_is_the_same() -> None:
    events = [START, *skipped(50, 90, 140), *waiting(0.3), *rates(*[1e4] * 12, *[5e3] * 3)]
    finder = AlertFinder()
    stepwise = [alert for event in events for alert in finder.observe(event)]
    assert stepwise == find_alerts(events)
    assert {alert.kind for alert in stepwise} == {"spikes", "data_wait", "throughput"}
    assert [alert.kind for alert in finder.active] == ["throughput"], "the others have ended"


def test_events_of_other_kinds_and_older_files() -> None:
    bare = {"event": "start", "time": 0.0, "step": 0}
    others: list[Event] = [{"event": "memory", "time": 1.0}, {"event": "profile", "time": 1.0}]
    assert find_alerts([bare, *others, *skipped(1, 2, 3), *waiting(0.01)]) != []
    assert find_alerts([]) == []


# -- tuning -------------------------------------------------------------------------------------

STAGE: Event = {"event": "stage", "time": 0.0, "step": 0, "name": "tune"}


def pair_step(number: int, loss: float = 0.6, **fields: Any) -> Event:
    of = {"rewards_chosen": -0.1, "rewards_rejected": -0.5, "margin": 0.4, "accuracy": 1.0}
    return step(number, loss, **{**of, "stage": "tune", **fields})


def held_out_pairs(number: int, loss: float) -> Event:
    return {
        "event": "preference",
        "time": number * 0.1,
        "step": number,
        "loss": loss,
        "accuracy": 0.8,
        "datasets": {},
    }


def test_losses_of_pairs_are_no_losses_of_text() -> None:
    """Near 0 a loss doubles for nothing, and held-out text may suffer while pairs are learnt."""
    falling = [pair_step(n, 0.6 if n < 100 else 0.001 if n < 200 else 0.002) for n in range(1, 700)]
    assert kinds([STAGE, *falling]) == []
    texts = [validation(100 * n, 1.0 + n / 10) for n in range(1, 7)]
    events = sorted([*falling, *texts], key=lambda event: event["step"])
    assert kinds([STAGE, *events]) == []


def test_pairs_told_apart_worse_than_by_the_reference() -> None:
    worse = [pair_step(1, 0.693), *[pair_step(n, 0.9 + 0.1 * (n % 2)) for n in range(2, 200)]]
    alert = only([STAGE, *worse])
    assert alert.kind == "preference_loss"
    assert "0.693 then" in alert.message
    # 0.7 ± 0.1: two thousandths of a standard error of 0.01 are no rise.
    noise = [pair_step(1, 0.693), *[pair_step(n, 0.6 + 0.2 * (n % 2)) for n in range(2, 200)]]
    assert kinds([STAGE, *noise]) == []


def test_pairs_learned_by_heart() -> None:
    def run(accuracy: float, *losses: float) -> list[Event]:
        events: list[Event] = [STAGE]
        for place, loss in enumerate(losses):
            first = place * 30
            events += [pair_step(first + n, accuracy=accuracy) for n in range(1, 31)]
            events.append(held_out_pairs(first + 30, loss))
        return events

    alert = only(run(1.0, 0.5, 0.52, 0.54))
    assert alert.kind == "preference_overfitting"
    assert "0.5400, 0.5000 at step 30" in alert.message
    assert "validation.patience" in alert.action
    assert kinds(run(1.0, 0.5, 0.52)) == [], "one validation is noise"
    assert kinds(run(0.9, 0.5, 0.52, 0.54)) == [], "the batches are not all told right"
    assert kinds(run(1.0, 0.5, 0.48, 0.46)) == []


def test_both_answers_become_unlikely() -> None:
    def fallen(reward: float) -> list[Event]:
        return [STAGE, *[pair_step(n, rewards_chosen=reward) for n in range(1, 60)]]

    start = {**START, "recipe": {**RECIPE, "stages": [{"name": "sft"}, {"name": "tune"}]}}
    (alert,) = find_alerts([start, *fallen(-5.1)])
    assert (alert.kind, alert.step) == ("chosen_unlikely", 20)
    assert "-5.1" in alert.message
    assert "--set stages.1.objective.beta" in alert.action
    assert kinds(fallen(-4.9)) == []


def test_answers_learned_by_heart() -> None:
    def run(kind: str, *values: float) -> list[Event]:
        stages = [{"name": "tune", "mixture": {"a": 1.0}}]
        start = {**START, "data_kinds": {"a": kind}, "stages": stages}
        events: list[Event] = [start, STAGE]
        for place, value in enumerate(values):
            first = place * 20
            steps = [step(first + n, 2.0 - place / 10, stage="tune") for n in range(1, 21)]
            events += [*steps, validation(first + 20, value)]
        return events

    # Each of three a thousandth above the one before: less than the 1% that text needs.
    rising = (1.0, 1.001, 1.002, 1.003)
    (alert,) = find_alerts(run("chats", *rising))
    assert alert.kind == "overfitting"
    assert "held-out answers get harder" in alert.message
    assert "fewer epochs" in alert.action
    assert "validation.patience" in alert.action
    assert find_alerts(run("chats", *rising[:3])) == []
    assert find_alerts(run("chats", 1.0, 1.002, 1.001, 1.003)) == [], "not each above the last"
    assert find_alerts(run("text", *rising)) == []
    (text,) = find_alerts(run("text", 1.0, 1.02, 1.03))
    assert "held-out text gets harder" in text.message
