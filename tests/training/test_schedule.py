"""Learning rates against Transformers' schedules and MiniCPM's formula."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

from llamita.recipes.loading import check_recipe
from llamita.recipes.schema import Stage
from llamita.training.schedule import learning_rate_factor

BATCH = 100


def stage(schedule: dict[str, Any], steps: int) -> Stage:
    recipe = {
        "name": "s",
        "model": {},
        "sequence_length": 10,
        "batch_tokens": BATCH,
        "optimizer": {"learning_rate": 1.0},
        "datasets": {"a": "a"},
        "stages": [
            {"name": "s", "tokens": steps * BATCH, "mixture": {"a": 1}, "schedule": schedule}
        ],
    }
    return check_recipe(recipe, "s").stages[0]


def ours(schedule: dict[str, Any], steps: int, upto: int | None = None) -> list[float]:
    one = stage(schedule, steps)
    return [learning_rate_factor(one, step, BATCH) for step in range(upto or steps)]


def transformers_rates(make: Any, steps: int, **arguments: Any) -> list[float]:
    """Factors of a Transformers schedule at steps 0, 1, …"""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def with_our_warmup(theirs: list[float], warmup: int) -> list[float]:
    """Transformers' warm-up starts from 0, so that its first step learns nothing; ours is one
    step ahead of it. From the end of the warm-up on they are the same."""
    return theirs[1 : warmup + 1] + theirs[warmup:]


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_cosine(final: float, warmup: int) -> None:
    theirs = transformers_rates(
        get_cosine_with_min_lr_schedule_with_warmup,
        60,
        num_warmup_steps=warmup,
        num_training_steps=60,
        min_lr_rate=final,
    )
    schedule = {"kind": "cosine", "warmup_tokens": warmup * BATCH, "final_fraction": final}
    assert ours(schedule, 60) == pytest.approx(with_our_warmup(theirs, warmup)[:60], abs=1e-12)


@pytest.mark.parametrize("form", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_wsd(form: str, final: float) -> None:
    theirs = transformers_rates(
        get_wsd_schedule,
        101,
        num_warmup_steps=10,
        num_stable_steps=60,
        num_decay_steps=30,
        min_lr_ratio=final,
        decay_type=form,
    )
    schedule = {
        "kind": "wsd",
        "form": form,
        "warmup_tokens": 10 * BATCH,
        "decay_tokens": 30 * BATCH,
        "final_fraction": final,
    }
    rates = ours(schedule, 100, upto=101)
    assert rates[10:] == pytest.approx(theirs[10:], abs=1e-12)
    # Their warm-up starts from the decay's end and a step later; ours from 0.
    assert [final + (1 - final) * rate for rate in rates[:10]] == pytest.approx(theirs[1:11])
    assert theirs[-1] == pytest.approx(final)


def test_warmup_counts_its_own_step() -> None:
    assert ours({"kind": "constant", "warmup_tokens": 400}, 6) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_warmup_of_less_than_a_batch_and_of_no_whole_number_of_them() -> None:
    assert ours({"kind": "constant", "warmup_tokens": 30}, 2) == [1, 1]
    assert ours({"kind": "constant", "warmup_tokens": 250}, 4) == [0.4, 0.8, 1, 1]


def test_minicpms_half_life() -> None:
    """Oracle 19: LR .01 with a half-life of 5000 steps, at +0, 2500, 5000 and 10000 steps."""
    schedule = {"kind": "decay", "half_life_tokens": 5000 * BATCH}
    one = stage(schedule, 20_000)
    rates = [0.01 * learning_rate_factor(one, s, BATCH) for s in (0, 2500, 5000, 10_000)]
    assert rates == pytest.approx([0.01, 0.00707107, 0.005, 0.0025], abs=4e-9)
    assert rates == pytest.approx([0.01 * 0.5 ** (s / 2) for s in (0, 1, 2, 4)], abs=1e-15)
    # "LR falls to 10% after 16,610 steps"
    assert learning_rate_factor(one, 16_610, BATCH) == pytest.approx(0.1, rel=1e-4)
    # The length of the decay plays no part.
    assert learning_rate_factor(stage(schedule, 6000), 5000, BATCH) == 0.5


def test_minicpms_half_life_inside_wsd() -> None:
    schedule = {"kind": "wsd", "decay_tokens": 50 * BATCH, "half_life_tokens": 10 * BATCH}
    rates = ours(schedule, 100)
    assert rates[:51] == [1.0] * 51
    assert rates[60] == pytest.approx(0.5, abs=1e-15)
    assert rates[99] == pytest.approx(0.5**4.9, abs=1e-15)


@pytest.mark.parametrize("final", [0.026, 0.1, 0.5])
def test_exponential_ends_at_its_final_fraction(final: float) -> None:
    rates = ours({"kind": "decay", "final_fraction": final}, 40, upto=41)
    assert rates[0] == 1
    assert rates[40] == pytest.approx(final, rel=1e-12)
    ratios = [later / earlier for earlier, later in itertools.pairwise(rates)]
    assert ratios == pytest.approx([final ** (1 / 40)] * 40, rel=1e-9)


def test_defaults_of_the_end() -> None:
    for form, end in (("exponential", 0.1), ("cosine", 0.1), ("linear", 0.0), ("1-sqrt", 0.0)):
        rates = ours({"kind": "decay", "form": form}, 10, upto=11)
        assert rates[10] == pytest.approx(end, abs=1e-12)


def test_a_decay_stage_is_the_tail_of_wsd() -> None:
    """A stage that decays whole, after one that does not, is one stage of WSD."""
    for form in ("linear", "cosine", "1-sqrt", "exponential"):
        together = ours({"kind": "wsd", "form": form, "decay_tokens": 30 * BATCH}, 100)
        assert ours({"kind": "decay", "form": form}, 30) == together[70:]


def test_the_factor_depends_on_tokens_and_not_on_the_batch() -> None:
    one = stage({"kind": "cosine", "warmup_tokens": 1000}, 60)
    for step in range(10, 30):
        twice = learning_rate_factor(one, step, 2 * BATCH)
        assert twice == learning_rate_factor(one, 2 * step, BATCH)
