"""Time and memory of plans: TinyLlama's published figures, and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.architecture.counts import (
    flops_per_token,
    inference_flops_per_token,
    num_parameters,
)
from llamita.architecture.memory import training_memory
from llamita.architecture.presets import preset
from llamita.errors import UserError
from llamita.planning.needs import (
    can_share,
    default_micro_batch_size,
    describe_step,
    device_needs,
    step_memory,
    time_of,
)
from llamita.planning.plan import SourceSize, TrainingPlan, describe, make_plan
from llamita.planning.recipe_plan import plan_recipe, source_sizes
from llamita.recipes.loading import check_recipe
from tests.data.packed import write_packed

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


def tuning(
    name: str,
    length: int = 2048,
    sizes: Mapping[str, SourceSize] | None = None,
    changes: Mapping[str, Any] | None = None,
    **adapter: Any,
) -> TrainingPlan:
    """One row a pass, sixteen a step, on chats that are declared."""
    base = preset(name)
    recipe = check_recipe(
        {
            "name": "tuned",
            "start_from": "base",
            "adapter": adapter,
            "sequence_length": length,
            "batch_tokens": 16 * length,
            "optimizer": {"learning_rate": 2e-4},
            "datasets": {"chats": {"path": "nowhere", "tokens": 10_000_000}},
            "stages": [{"name": "tune", "tokens": 160 * length, "mixture": {"chats": 1.0}}],
            "runtime": {"micro_batch_size": 1},
            **(changes or {}),
        },
        "tuned",
    )
    declared = {"chats": SourceSize(10_000_000, declared=True)}
    return make_plan(recipe, base.config, base.parametrization, sizes or declared)


def test_qlora_of_tinyllama_in_6_gb() -> None:
    """Item by item; of 6 GB 4.8 may be filled."""
    plan = tuning("tinyllama-1.1b", rank=16, quantize_base="nf4")
    needs = device_needs(plan, int(6e9))
    memory, blocks = needs.memory, 22 * (2 * 2048 * (2048 + 256) + 3 * 2048 * 5632)
    assert needs.fits
    assert not needs.activation_checkpointing
    # 4.127 bits of each of the blocks' weights, 16 of the vocabulary's and the norms'.
    others = PARAMETERS - blocks
    assert memory.base == pytest.approx(blocks * 4.127 / 8 + 2 * others, rel=1e-3)
    # Float32 adapters, their gradients and two moments: 16 · (inputs + outputs) of seven matrices.
    learns = 16 * 22 * (4 * 2048 + 2 * (2048 + 256) + 3 * (2048 + 5632))
    assert learns == 12_615_680
    states = (memory.weights, memory.gradients, memory.optimizer)
    assert states == (4 * learns, 4 * learns, 8 * learns)
    assert memory.weight_casts == 2 * learns
    # Of 2,048 tokens a block keeps two norms' inputs and outputs, q, k, v, attention's output,
    # gate, up and their product, and seven times A's output, in bfloat16, and some log-sums.
    each = 2 * (4 * 2048 + 2 * 2048 + 2 * 256 + 3 * 5632 + 7 * 16) + 4 * (2 + 32)
    assert memory.activations == pytest.approx(22 * 2048 * each, rel=0.03)
    # One chunk of logits, computed again, and its gradient.
    assert memory.logits == 2 * 2048 * 32_000 * 2
    assert 3.5e9 < memory.total < 4.8e9
    said = describe_step(plan, memory, 1)
    assert "about 4.00 GB at micro-batch 1 × 2,048: base (nf4) 0.76 GB, adapters 0.05 GB" in said


def test_the_shipped_qlora_of_llama2_7b_on_a_24_gb_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where neither base nor data are
    plan = plan_recipe("guanaco-qlora")
    needs = device_needs(plan, int(24e9))
    assert needs.fits
    # By hand: nf4 blocks, the rest in bfloat16; 64 · (inputs + outputs) of 32 blocks' matrices.
    assert needs.memory.base == pytest.approx(6_476_005_376 * 4.127 / 8 + 2 * 262_410_240, rel=1e-3)
    assert needs.memory.weights == 4 * 159_907_840
    assert not device_needs(without_adapter(plan), int(80e9)).fits


def without_adapter(plan: TrainingPlan) -> TrainingPlan:
    recipe = plan.recipe.model_copy(update={"adapter": None})
    return make_plan(recipe, plan.config, plan.parametrization, plan.sizes)


def test_activations_are_computed_again_where_a_base_leaves_no_room() -> None:
    plan = tuning("tinyllama-1.1b", rank=16)
    need = step_memory(plan, 1).total
    for share, again in ((0.79, False), (0.81, True)):
        assert device_needs(plan, int(need / share)).activation_checkpointing == again
    # Frozen weights stand in bfloat16: no casts of them, no gradients, no moments.
    assert step_memory(plan, 1).base == 2 * PARAMETERS


def test_a_plan_knows_what_learns() -> None:
    plan = tuning("smollm2-135m", rank=16)
    said = "\n".join(describe(plan))
    assert (
        "tuning      LoRA r=16 on all linear layers: 4,884,480 of 134,515,008 parameters learn "
        "(3.63%), scale 2\n" in said
    )
    assert "4·matmul parameters + 6·adapters" in said
    each = plan.flops_per_token(2048)
    assert plan.flops == plan.tokens * each
    assert each == flops_per_token(plan.config, 2048, plan.lora)
    # A third less but for attention, which is a third of the whole here, and the adapters' own.
    assert 0.75 < each / flops_per_token(plan.config, 2048) < 0.85
    assert num_parameters(plan.config) == 134_515_008
    some = tuning("smollm2-135m", targets=["q_proj", "v_proj"], quantize_base="int8")
    assert "on q_proj, v_proj" in (said := "\n".join(describe(some)))
    assert "base in int8" in said
    whole = without_adapter(plan)
    assert "tuning" not in "\n".join(describe(whole)[1:6])


def test_what_of_chats_learns_is_in_the_plan(tmp_path: Path) -> None:
    # 40 examples of 33 tokens fill 20 rows of 64 places; of each the last 8 tokens learn.
    example = (np.arange(33), np.arange(33) >= 25)
    manifest = write_packed(tmp_path / "chats", {"train": [example] * 40})
    assert manifest.chats is not None
    record = manifest.chats.model_copy(update={"learning_tokens": {"train": 320, "validation": 0}})
    manifest = manifest.model_copy(update={"chats": record})
    recipe = tuning("smollm2-135m", 64).recipe
    path = str(tmp_path / "chats")
    there = {"chats": recipe.datasets["chats"].model_copy(update={"path": path})}
    recipe = recipe.model_copy(update={"datasets": there})
    (size,) = source_sizes(recipe, {"chats": manifest}, allow_declared=False).values()
    assert size.windows(64) == 20
    assert size.learning_share(64) == 320 / (20 * 64)
    assert size.learning_share(128) == 320 / (10 * 128)
    assert SourceSize(1000, declared=False).learning_share(64) == 1


def chats_and_text(learns: float) -> dict[str, Any]:
    """Arguments of `tuning`: a third of text, and chats of which this share learns."""
    sizes = {
        "chats": SourceSize(10**9, False, lambda length: 10**8 // length, round(10**8 * learns)),
        "text": SourceSize(10**9, declared=False),
    }
    stage = {"name": "tune", "tokens": 160 * 512, "mixture": {"chats": 2 / 3, "text": 1 / 3}}
    datasets = {name: {"path": "nowhere", "tokens": 10**9} for name in sizes}
    return {"sizes": sizes, "changes": {"stages": [stage], "datasets": datasets}}


def test_the_head_works_on_what_learns() -> None:
    all_learn, some_learn = (
        tuning("smollm2-135m", 512, rank=16, **chats_and_text(share)) for share in (1.0, 0.25)
    )
    (whole,), (part,) = all_learn.stages, some_learn.stages
    assert whole.learning_share == 1
    assert part.learning_share == pytest.approx(0.5)
    assert whole.documents
    assert part.documents
    # Half of the head's 4 · 576 · 49,152: 2 forward, 2 to go on backwards.
    saved = all_learn.stage_flops(whole) - some_learn.stage_flops(part)
    assert saved == pytest.approx(2 * 576 * 49_152, rel=1e-6)
    assert all_learn.flops - some_learn.flops == part.tokens * saved
    kept, spared = (step_memory(plan, 8) for plan in (all_learn, some_learn))
    assert spared.total < kept.total
    said = "\n".join(describe(some_learn))
    assert "16 × 512 = 8.19k tokens, 50% of which learn" in said
    assert "; the head where targets learn)" in said
    assert "learn\n" not in "\n".join(describe(all_learn))


@pytest.mark.parametrize("reference", ["live", "precomputed"])
def test_a_live_reference_is_a_pass_forward(reference: str) -> None:
    stage = {
        "name": "align",
        "tokens": 160 * 512,
        "mixture": {"chats": 1.0},
        "objective": {"kind": "preference", "reference": reference},
    }
    plan = tuning("smollm2-135m", 512, changes={"stages": [stage]}, rank=16)
    more = plan.stage_flops(plan.stages[0]) - plan.flops_per_token(512)
    forward = inference_flops_per_token(plan.config, 512)
    assert more == (forward if reference == "live" else 0)
    assert plan.stages[0].documents


def test_passes_of_an_adapter_on_a_cpu_are_short() -> None:
    changes = {"runtime": {}}
    plan = tuning("smollm2-135m", 512, changes=changes, rank=16)
    many, few = (
        device_needs(each, int(64e9), device_type="cpu", compute_bytes=4)
        for each in (without_adapter(plan), plan)
    )
    assert many.micro_batch_size * 512 == 8192
    assert few.micro_batch_size * 512 == 512
    assert few.memory.total < many.memory.total / 3
    # A GPU fills what it has.
    assert device_needs(plan, int(64e9)).micro_batch_size == 16
