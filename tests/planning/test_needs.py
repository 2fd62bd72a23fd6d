"""Time and memory of plans: TinyLlama's published figures, and arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamita.architecture.memory import training_memory
from llamita.errors import UserError
from llamita.planning.needs import (
    can_share,
    default_micro_batch_size,
    device_needs,
    step_memory,
    time_of,
)
from llamita.planning.plan import TrainingPlan
from llamita.planning.recipe_plan import plan_recipe

A100 = 312e12
PARAMETERS = 1_100_048_384


@pytest.fixture
def tinyllama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingPlan:
    monkeypatch.chdir(tmp_path)  # where no data are
    return plan_recipe("tinyllama-1.1b", ["runtime.micro_batch_size=null"])


def test_tinyllama_s_ninety_days(tinyllama: TrainingPlan) -> None:
    """3T tokens at 24k tokens a second on each of 16 A100: 90.4 days (the article says 90)."""
    mfu = 24_000 * 7.314e9 / A100
    assert mfu == pytest.approx(0.563, abs=1e-3)
    found = time_of(tinyllama, A100, mfu, ranks=16)
    assert found.tokens_per_second == pytest.approx(16 * 24_000, rel=1e-3)
    assert found.seconds / 86400 == pytest.approx(90.4, rel=0.01)
    one = time_of(tinyllama, A100, mfu)
    assert one.seconds == pytest.approx(16 * found.seconds)


def test_fsdp_shares_states_and_nothing_else(tinyllama: TrainingPlan) -> None:
    # 1,024 windows a step: powers of two share them.
    sharing = [ranks for ranks in range(1, 17) if can_share(tinyllama, ranks)]
    assert sharing == [1, 2, 4, 8, 16]
    found = [device_needs(tinyllama, int(40e9), ranks=ranks) for ranks in sharing]
    for needs in found:
        # Master weights and two moments, four bytes each.
        states = needs.memory.weights + needs.memory.optimizer
        assert states == pytest.approx(12 * PARAMETERS / needs.ranks, rel=1e-6)
        assert needs.fits
    # Their 40 GB cards trained at 8 rows, which 80% of one holds once 16 share the states.
    rows = [needs.micro_batch_size for needs in found]
    assert rows == sorted(rows)
    assert rows[-1] == 8
    assert rows[0] < 8


def test_the_largest_rows_that_fit(tinyllama: TrainingPlan) -> None:
    for ranks, gigabytes in ((1, 30), (1, 80), (8, 24), (16, 80)):
        needs = device_needs(tinyllama, int(gigabytes * 1e9), ranks=ranks)
        fitting = [
            rows
            for rows in range(1, 1024 // ranks + 1)
            if (1024 // ranks) % rows == 0
            and training_memory(
                tinyllama.config, rows, 2048, ranks=ranks, device_type="cuda", accumulates=True
            ).total
            <= 0.8 * gigabytes * 1e9
        ]
        assert needs.activation_checkpointing == (not fitting)
        if fitting:
            assert needs.micro_batch_size == max(fitting)
        assert needs.memory == step_memory(
            tinyllama,
            needs.micro_batch_size,
            ranks=ranks,
            activation_checkpointing=needs.activation_checkpointing,
        )


def test_what_the_recipe_says_counts(tinyllama: TrainingPlan) -> None:
    fixed = plan_recipe("tinyllama-1.1b")
    assert fixed.recipe.runtime.micro_batch_size == 8
    needs = device_needs(fixed, int(40e9), ranks=1)
    # 18 GB of states beside 8 rows are more than 80% of 40 GB: activations are computed again.
    assert (needs.micro_batch_size, needs.activation_checkpointing) == (8, True)
    assert needs.fits
    need = step_memory(fixed, 8).total
    for share, again in ((0.79, False), (0.81, True)):
        assert device_needs(fixed, int(need / share)).activation_checkpointing == again
    never = plan_recipe("tinyllama-1.1b", ["runtime.activation_checkpointing=never"])
    assert not device_needs(never, int(40e9)).fits
    assert not device_needs(tinyllama, int(16e9)).fits  # not even one row


def test_muon_and_an_average_are_counted(tinyllama: TrainingPlan) -> None:
    muon = plan_recipe("tinyllama-1.1b", ["optimizer.kind=muon"])
    saved = step_memory(tinyllama, 1).optimizer - step_memory(muon, 1).optimizer
    vocabulary = 2 * 32_000 * 2048
    assert saved == 4 * (PARAMETERS - vocabulary - 45 * 2048)
    averaged = plan_recipe("tinyllama-1.1b", ["averaging={kind: ema, half_life_tokens: 1e9}"])
    assert step_memory(averaged, 1, ranks=4).average == PARAMETERS


def test_ranks_that_cannot_share(tinyllama: TrainingPlan) -> None:
    with pytest.raises(UserError, match="1024 sequences a step, which 3 processes cannot share"):
        device_needs(tinyllama, int(80e9), ranks=3)
    assert default_micro_batch_size(tinyllama, 1, ranks=1024) == 1
