"""Plans against published facts: parameters, FLOPs, epochs, schedules' steps."""

from __future__ import annotations

from typing import Any

import pytest

from llamita.architecture.config import ModelConfig
from llamita.architecture.presets import preset
from llamita.errors import UserError
from llamita.planning.plan import SourceSize, TrainingPlan, describe, make_plan
from llamita.planning.quantities import duration, gigabytes, metric, tokens
from llamita.recipes.loading import check_recipe, load_recipe
from llamita.training.schedule import learning_rate_factor

CONFIG = ModelConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
)


def shipped_plan(name: str) -> TrainingPlan:
    recipe = load_recipe(name)
    assert isinstance(recipe.model, str)
    base = preset(recipe.model)
    sizes = {
        key: SourceSize(source.tokens or 0, declared=True)
        for key, source in recipe.datasets.items()
    }
    return make_plan(recipe, base.config, base.parametrization, sizes)


def plan_of(sizes: dict[str, int], stages: list[dict[str, Any]], **changes: Any) -> TrainingPlan:
    values = {
        "name": "p",
        "model": {},
        "sequence_length": 16,
        "batch_tokens": 64,
        "optimizer": {"learning_rate": 1e-3},
        "datasets": {name: name for name in sizes},
        "stages": [
            {"name": str(n), "mixture": {next(iter(sizes)): 1.0}, **stage}
            for n, stage in enumerate(stages)
        ],
    }
    arguments = {key: changes.pop(key) for key in ("consumed", "first_step") if key in changes}
    recipe = check_recipe({**values, **changes}, "p")
    counted = {name: SourceSize(size, declared=False) for name, size in sizes.items()}
    return make_plan(recipe, CONFIG, "llama", counted, **arguments)


def test_tinyllama() -> None:
    plan = shipped_plan("tinyllama-1.1b")
    said = "\n".join(describe(plan))
    assert "1,100,048,384 parameters" in said
    assert "7.314 GFLOP a token" in said
    assert plan.num_steps == -(-3 * 10**12 // 2**21)  # 1,430,512 steps of 2M tokens
    # 3T tokens of 950B are 3.16 epochs, of either source.
    for before, after in plan.stages[0].epochs.values():
        assert before == 0
        assert after == pytest.approx(3000 / 950, rel=2e-3)
    stage = plan.stages[0]
    peak, batch = stage.learning_rate, stage.batch_tokens
    assert peak == 4e-4
    rate = [peak * learning_rate_factor(stage.stage, s, batch) for s in (0, 999, 1999, 2000)]
    assert rate == pytest.approx([2e-7, 2e-4, 4e-4, 4e-4], rel=1e-6)
    last = peak * learning_rate_factor(stage.stage, stage.num_steps - 1, batch)
    assert last == pytest.approx(4e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "without", "total", "rate", "std", "residual", "m"),
    [
        # facts: parameters; oracles 17 and 18: matrices' rate, init std, residual, divisor
        (
            "minicpm-1.2b",
            "1,247,442,432",
            "1,360,246,272",
            "0.00166667",
            "0.0408248",
            "0.194145",
            "6",
        ),
        (
            "minicpm-2.4b",
            "2,442,057,984",
            "2,724,880,896",
            "0.00111111",
            "0.0333333",
            "0.221359",
            "9",
        ),
    ],
)
def test_minicpm(
    name: str, without: str, total: str, rate: str, std: str, residual: str, m: str
) -> None:
    plan = shipped_plan(name)
    said = "\n".join(describe(plan))
    assert f"{total} parameters ({without} without embeddings)" in said
    assert f"0.01/m = {rate} " in said
    assert f"√m = {std};" in said
    assert f"residual ×{residual}, logits ÷{m};" in said
    assert plan.tokens == pytest.approx(1.1e12, rel=1e-4)
    # Ours, because unpublished: the decay is the last tenth, the warm-up the first hundredth.
    assert plan.stages[-1].tokens / plan.tokens == pytest.approx(0.1, rel=1e-3)
    warmup = plan.stages[0].stage.schedule.warmup_tokens  # type: ignore[union-attr]
    assert warmup / plan.tokens == pytest.approx(0.01, rel=1e-3)


def test_flops_of_a_run() -> None:
    """6·N·D and attention, by hand."""
    plan = plan_of({"a": 10_000}, [{"tokens": 640}])
    matmul = 2 * (4 * 32 * 32 + 3 * 32 * 64) + 100 * 32
    attention = 12 * 2 * 32 * 16
    assert plan.flops == 640 * (6 * matmul + attention)


def test_steps_are_whole_batches_rounded_up() -> None:
    plan = plan_of({"a": 10_000}, [{"tokens": 640}, {"tokens": 641}, {"tokens": 1}])
    assert [stage.num_steps for stage in plan.stages] == [10, 11, 1]
    assert plan.tokens == 22 * 64


def test_epochs_add_up_over_stages_and_lengths() -> None:
    """A dataset of 1601 tokens: 100 windows of 16, or 50 of 32."""
    plan = plan_of(
        {"a": 1601, "b": 1601},
        [
            {"tokens": 3200, "mixture": {"a": 0.5, "b": 0.5}},
            {"tokens": 640, "mixture": {"a": 1.0}, "sequence_length": 32},
        ],
    )
    assert plan.stages[0].epochs == {"a": (0, 1.0), "b": (0, 1.0)}
    assert plan.stages[1].epochs == {"a": (1.0, pytest.approx(1.4))}


def test_a_branch_counts_what_was_read_before() -> None:
    plan = plan_of({"a": 1601}, [{"tokens": 1600}], consumed={"a@16": 200}, first_step=50)
    assert plan.stages[0].epochs == {"a": (2.0, 3.0)}
    assert plan.first_step == 50


def test_too_many_epochs_are_refused_with_the_key_that_allows_them() -> None:
    with pytest.raises(UserError) as caught:
        plan_of({"a": 1601}, [{"tokens": 6400}, {"tokens": 640}])
    message = str(caught.value)
    assert message.startswith("stages.1.mixture.a")
    assert "read 4.40 times" in message
    allowed = message.split("--set datasets.a.max_epochs=")[1]
    plan_of(
        {"a": 1601},
        [{"tokens": 6400}, {"tokens": 640}],
        datasets={"a": {"path": "a", "max_epochs": float(allowed)}},
    )


def test_epochs_over_several_lengths_count_together() -> None:
    stages = [{"tokens": 4800}, {"tokens": 3200, "sequence_length": 32}]
    with pytest.raises(UserError, match=r"read 5\.00 times"):
        plan_of({"a": 1601}, stages)


def test_too_small_for_one_window() -> None:
    plan_of({"a": 17}, [{"tokens": 64}])
    with pytest.raises(UserError, match=r"datasets\.a: 16 training tokens are too few .* 16 \+ 1"):
        plan_of({"a": 16}, [{"tokens": 64}])


def test_longer_than_the_models_context() -> None:
    with pytest.raises(UserError, match=r"sequence_length 128 exceeds .* 64"):
        plan_of({"a": 10_000}, [{"tokens": 640, "sequence_length": 128, "batch_tokens": 128}])


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (metric(1.1e9), "1.1 G"),
        (metric(999.6), "1 k"),
        (metric(512), "512"),
        (tokens(3e12), "3T"),
        (tokens(52.4e6), "52.4M"),
        (tokens(999_999), "1M"),
        (tokens(12), "12"),
        (gigabytes(17.6e9), "17.6 GB"),
        (gigabytes(5.5e8), "0.55 GB"),
        (duration(59), "59s"),
        (duration(245), "4m05s"),
        (duration(12_000), "3h20m"),
        (duration(86400 * 12.5), "12.5 days"),
    ],
)
def test_numbers_as_people_read_them(said: str, wanted: str) -> None:
    assert said == wanted
