"""Spikes and non-finite numbers, decided from tensors alone."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from llamita.recipes.schema import Guard
from llamita.training.guards import StepGuard

CPU = torch.device("cpu")


def judge(guard: StepGuard, loss: float, norm: float = 1.0) -> tuple[bool, bool]:
    verdict = guard.judge(torch.tensor(loss), torch.tensor(norm))
    return bool(verdict.skip), bool(verdict.non_finite)


def calm(guard: StepGuard, count: int, level: float = 5.0) -> list[float]:
    """Losses that swing by a tenth, none of them a spike."""
    values = [level + 0.1 * math.sin(3 * step) for step in range(count)]
    for value in values:
        assert judge(guard, value) == (False, False)
    return values


@pytest.mark.parametrize("which", ["loss", "norm"])
@pytest.mark.parametrize("steps", [16, 100, 300])
def test_the_line_is_mean_plus_six_sigma_of_the_window(which: str, steps: int) -> None:
    for offset, skipped in ((-1e-3, False), (1e-3, True)):
        guard = StepGuard(Guard(), CPU)
        values = [5.0 + 0.1 * math.sin(3 * step) for step in range(steps)]
        for value in values:
            judge(guard, *((value, 1.0) if which == "loss" else (1.0, value)))
        window = values[-128:]
        line = statistics.fmean(window) + 6 * statistics.pstdev(window)
        at = line + offset
        pair = (at, 1.0) if which == "loss" else (1.0, at)
        assert judge(guard, *pair) == (skipped, False)


def test_no_verdict_before_there_is_a_history() -> None:
    guard = StepGuard(Guard(), CPU)
    calm(guard, 15)
    assert judge(guard, 1000.0) == (False, False)


def test_a_skipped_loss_enters_the_history() -> None:
    guard = StepGuard(Guard(), CPU)
    values = calm(guard, 40)
    assert judge(guard, 9.0)[0]
    window = [*values, 9.0]
    line = statistics.fmean(window) + 6 * statistics.pstdev(window)
    assert line > 8.5  # the spike widened it
    assert judge(guard, line - 1e-3) == (False, False)


def test_consecutive_skips_are_capped() -> None:
    guard = StepGuard(Guard(max_consecutive_skips=3, window=512), CPU)
    calm(guard, 500)
    # Each is above mean + 6σ of a window that holds the ones before it.
    verdicts = [judge(guard, 10.0 * 10**n)[0] for n in range(4)]
    assert verdicts == [True, True, True, False]
    assert judge(guard, 1e7)[0], "the count starts anew after an accepted step"


def test_a_lasting_change_of_level_is_accepted() -> None:
    guard = StepGuard(Guard(), CPU)
    calm(guard, 128)
    skips = sum(judge(guard, 7.0 + 0.1 * math.sin(step))[0] for step in range(200))
    assert 1 <= skips <= 10


def test_off() -> None:
    guard = StepGuard(Guard(spike_sigmas=None), CPU)
    calm(guard, 50)
    assert judge(guard, 1e6) == (False, False)
    assert judge(guard, float("nan")) == (True, True)


@pytest.mark.parametrize(
    ("loss", "norm"),
    [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf), (-math.inf, 1.0)],
)
def test_non_finite_is_skipped_and_forgotten(loss: float, norm: float) -> None:
    guard = StepGuard(Guard(), CPU)
    assert judge(guard, loss, norm) == (True, True)
    calm(guard, 20)
    before = {name: tensor.clone() for name, tensor in guard.state().items()}
    assert judge(guard, loss, norm) == (True, True)
    after = guard.state()
    assert torch.equal(after["history"], before["history"])
    assert torch.equal(after["count"], before["count"])
    assert int(after["consecutive_non_finite"]) == 1
    judge(guard, 5.0)
    assert int(after["consecutive_non_finite"]) == 0


def test_a_stage_change_resets() -> None:
    guard = StepGuard(Guard(), CPU)
    calm(guard, 100)
    judge(guard, math.nan)
    guard.reset()
    fresh = StepGuard(Guard(), CPU).state()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in guard.state().items())
    assert judge(guard, 50.0) == (False, False)


def test_state_round_trips() -> None:
    one, other = StepGuard(Guard(), CPU), StepGuard(Guard(), CPU)
    calm(one, 130)
    judge(one, 9.0)
    other.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    for loss in (5.0, 8.0, 5.1, 5.2, 6.5):
        assert judge(one, loss) == judge(other, loss)
    assert all(torch.equal(t, other.state()[name]) for name, t in one.state().items())


def test_a_window_of_another_length_starts_anew() -> None:
    """Zeros in place of the old values would make every step that follows a spike."""
    one = StepGuard(Guard(window=128), CPU)
    calm(one, 100)
    other = StepGuard(Guard(window=64), CPU)
    other.load_state(one.state())
    calm(other, 40)
    assert judge(other, 9.0) == (True, False)
