"""Recipes for a chosen shape and D: published rules, and what training accepts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llamita.architecture.counts import num_parameters
from llamita.architecture.presets import PRESETS, preset
from llamita.architecture.shapes import FAMILIES, shapes_near
from llamita.errors import UserError
from llamita.planning.laws import Law, find_law
from llamita.planning.plan import TrainingPlan
from llamita.planning.recipe_plan import plan_recipe
from llamita.planning.recipe_writing import (
    Draft,
    minicpm_batch,
    model_keys,
    recipe_for,
    step_law,
    tuning,
    write_recipe,
)
from llamita.recipes.loading import check_recipe, load_recipe
from llamita.recipes.schema import Constant, Decay, Predicted, Recipe
from llamita.training.run import TrainingResult, train
from llamita.training.schedule import learning_rate_factor


def draft(name: str = "tinyllama-1.1b", tokens: float = 30e9, **given: Any) -> Draft:
    base = preset(name)
    return recipe_for(base.config, base.parametrization, tokens, name="planned", **given)


@pytest.fixture(autouse=True)
def _no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def law(name: str) -> Law:
    found = find_law(name)
    assert isinstance(found, Law)
    return found


# -- the rules ------------------------------------------------------------------------------------


def test_minicpm_s_batch() -> None:
    assert minicpm_batch(3.0) == pytest.approx(1.275e6, rel=1e-3)
    assert minicpm_batch(2.5) == pytest.approx(3.978e6, rel=1e-3)


def test_step_law_is_in_their_range_of_values() -> None:
    """Logarithms, computed apart: ln 1.79 = 0.58222, ln 0.58 = -0.54473."""
    rate, batch = step_law(1e9, 1e11)
    assert math.log(rate) == pytest.approx(0.58222 - 0.713 * 20.72327 + 0.307 * 25.32844, abs=1e-4)
    assert math.log(batch) == pytest.approx(-0.54473 + 0.571 * 25.32844, abs=1e-4)


def test_step_law_counts_without_embeddings() -> None:
    base = preset("tinyllama-1.1b")
    found = tuning(base.config, "tinyllama", 30e9)
    inner = 1_100_048_384 - 2 * 32000 * 2048
    assert (found.learning_rate, found.batch_tokens) == step_law(inner, 30e9)
    assert "2503.04715" in found.rate_rule
    assert "2503.04715" in found.batch_rule


def test_minicpm_s_rate_is_one_for_all_sizes() -> None:
    for name in ("minicpm-9m", "minicpm-2.4b"):
        base = preset(name)
        found = tuning(base.config, "minicpm", 100e9)
        assert found.learning_rate == 0.01
        loss = law("beyond-chinchilla").at(num_parameters(base.config), 100e9)
        assert found.batch_tokens == minicpm_batch(loss)
        assert f"L = {loss:.3f}" in found.batch_rule
        assert "2404.06395" in found.batch_rule


def test_a_loss_that_is_none_of_c4_s_is_not_taken() -> None:
    config = preset("minicpm-0.1b").config
    default = tuning(config, "minicpm", 10e9)
    # Bytes, and text and tokenizer of one's own: neither is nats per token of C4.
    assert tuning(config, "minicpm", 10e9, law=law("minicpm-average")) == default
    shipped = law("chinchilla")
    own = Law(**{**shipped.__dict__, "name": "own", "data": "my text"})
    assert tuning(config, "minicpm", 10e9, law=own) == default
    other = tuning(config, "minicpm", 10e9, law=shipped)
    assert other.batch_tokens != default.batch_tokens
    assert "chinchilla" in other.batch_rule
    # Repeated tokens are worth less, so that the loss is higher and the batch smaller.
    repeated = tuning(config, "minicpm", 10e9, unique_tokens=1e9)
    assert repeated.batch_tokens < default.batch_tokens


# -- the recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("tinyllama-1.1b", 30e9),
        ("tinyllama-1.1b", 3e12),
        ("minicpm-2.4b", 1.1e12),
        ("minicpm-30m", 1e9),
        ("llamita-5m", 30e6),
        ("llamita-15m", 2e6),
        ("smollm2-135m", 5e9),
    ],
)
def test_training_accepts_it(name: str, tokens: float, tmp_path: Path) -> None:
    found = draft(name, tokens)
    file = write_recipe(found.recipe, tmp_path / "r.yaml", found.comments)
    assert load_recipe(file) == found.recipe
    plan = plan_recipe(file)
    assert plan.config == preset(name).config
    assert plan.parametrization == preset(name).parametrization
    assert plan.recipe.model == name
    assert_sane(plan, tokens)
    said: list[str] = []
    assert train(file, dry_run=True, say=said.append) == plan
    assert "planned: " in said[0]


def assert_sane(plan: TrainingPlan, tokens: float) -> None:
    recipe, config = plan.recipe, plan.config
    batch, length = recipe.batch_tokens, recipe.sequence_length
    # Within a batch of what was asked, at the rule's batch to a sixteenth.
    assert tokens <= plan.tokens < tokens + batch
    rule = tuning(config, plan.parametrization, tokens)
    assert batch == pytest.approx(rule.batch_tokens, rel=1 / 16 + 1e-3)
    assert recipe.optimizer.learning_rate == pytest.approx(rule.learning_rate, rel=5e-3)
    # The context, unless a batch would have fewer than sixteen windows.
    longest = min(config.max_position_embeddings, 4096)
    assert length == longest or 32 * length > batch
    assert batch >= 15 * length
    windows = batch // length
    assert windows % 2 ** (windows.bit_length() - 4) == 0, "devices can share it"
    stable, decay = plan.stages
    assert decay.num_steps == pytest.approx(plan.num_steps / 10, abs=0.5)
    assert isinstance(stable.stage.schedule, Constant)
    assert isinstance(decay.stage.schedule, Decay)
    warmup = stable.stage.schedule.warmup_tokens // batch
    assert warmup == pytest.approx(plan.num_steps / 100, abs=0.5)
    assert learning_rate_factor(stable.stage, warmup - 1, batch) == 1
    last = learning_rate_factor(decay.stage, decay.num_steps - 1, batch)
    assert last < 1 / math.sqrt(decay.num_steps)
    for _, after in decay.epochs.values():
        assert after == pytest.approx(1, rel=1e-2)
    saves = plan.num_steps / (recipe.checkpoints.every_steps or 1)
    assert saves >= 20
    assert saves <= 50 or recipe.checkpoints.every_steps == 5000
    assert recipe.validation.every_steps == recipe.checkpoints.every_steps
    scored = recipe.validation.tokens * len(recipe.datasets) * math.ceil(saves)
    assert scored / 3 <= 0.02 * plan.tokens or recipe.validation.tokens == 2**14


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vocab_size", [None, 5000])
@pytest.mark.parametrize("size", [9.2e6, 52e6, 260e6])
def test_the_shape_that_was_chosen_is_trained(
    family: str, vocab_size: int | None, size: float
) -> None:
    for shape in shapes_near(size, FAMILIES[family], counts="non-embedding", vocab_size=vocab_size):
        recipe, _ = recipe_for(shape.config, shape.parametrization, 20 * size, name="p")
        plan = plan_recipe(recipe)
        assert plan.config == shape.config
        assert plan.parametrization == shape.parametrization
        # A vocabulary that is no preset's is written down, or a run without data would forget it.
        stated = isinstance(recipe.model, dict) and "vocab_size" in recipe.model
        assert stated <= (vocab_size is not None)


def test_a_model_is_told_by_what_differs() -> None:
    config = PRESETS["minicpm-1.2b"].config
    assert model_keys(config, "minicpm") == "minicpm-1.2b"
    deeper = FAMILIES["minicpm"].build(1536, 54, 8, 73440)
    assert model_keys(deeper, "minicpm") == {"preset": "minicpm-1.2b", "num_hidden_layers": 54}
    foreign = deeper.replace(residual_multiplier=0.5, head_dim=32, rope_theta=5e5)
    written = model_keys(foreign, "minicpm")
    assert isinstance(written, dict)
    assert written == {
        "preset": "minicpm-1.2b",
        "num_hidden_layers": 54,
        "residual_multiplier": 0.5,
        "head_dim": 32,
        "rope_theta": 5e5,
    }


def test_a_head_dim_that_does_not_follow_is_told() -> None:
    # With other heads a recipe's head_dim is hidden_size / heads unless it is written.
    config = PRESETS["minicpm-1.2b"].config.replace(num_attention_heads=16)
    written = model_keys(config, "minicpm")
    assert written == {"preset": "minicpm-1.2b", "num_attention_heads": 16, "head_dim": 64}
    recipe, _ = recipe_for(config, "minicpm", 20e9, name="p")
    assert plan_recipe(recipe).config == config


def test_unique_tokens_and_repetition(tmp_path: Path) -> None:
    ample = draft("llamita-5m", 30e6, unique_tokens=100e6).recipe
    assert {name: source.tokens for name, source in ample.datasets.items()} == {
        "prose": 70_000_000,
        "code": 30_000_000,
    }
    # Four epochs are allowed anyway; what asks for more says so, and training goes along.
    modest = draft("llamita-5m", 30e6, unique_tokens=10e6).recipe
    assert [source.max_epochs for source in modest.datasets.values()] == [4, 4]
    scarce = draft("llamita-5m", 30e6, unique_tokens=3e6)
    for source in scarce.recipe.datasets.values():
        assert 10 < source.max_epochs < 11.5
    plan = plan_recipe(write_recipe(scarce.recipe, tmp_path / "r.yaml"))
    assert plan.stages[1].epochs["prose"][1] == pytest.approx(10, rel=0.02)
    assert any("3M unique" in line for line in scarce.comments)
    untold = draft("llamita-5m", 30e6).recipe
    assert [source.max_epochs for source in untold.datasets.values()] == [4, 4]


def test_shares(tmp_path: Path) -> None:
    shares = {"web": 0.5, "books": 0.25, "code": 0.25}
    found = draft("llamita-5m", 30e6, shares=shares).recipe
    assert [stage.mixture for stage in found.stages] == [shares, shares]
    assert found.datasets["web"].path == "data/web"
    tokens = [source.tokens or 0 for source in found.datasets.values()]
    assert tokens[0] == pytest.approx(2 * tokens[1])
    assert sum(tokens) == pytest.approx(30e6, rel=1e-3)
    with pytest.raises(UserError, match="shares must sum to 1"):
        draft("llamita-5m", 30e6, shares={"web": 0.5, "code": 0.4})
    with pytest.raises(UserError, match="fewer than two batches"):
        draft("llamita-5m", 50)


# -- the file -------------------------------------------------------------------------------------

PREDICTED = Predicted(
    law="beyond-chinchilla",
    loss=2.5,
    loss_unit="nats per token",
    interval=(2.4, 2.6),
    tokens=30_000_000_000,
    parameters=1_100_048_384,
)


def test_the_file_says_where_its_numbers_are_from(tmp_path: Path) -> None:
    found = draft("tinyllama-1.1b", 30e9, predicted=PREDICTED)
    text = write_recipe(found.recipe, tmp_path / "r.yaml", found.comments).read_text()
    assert max(map(len, text.splitlines())) <= 100
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for word in ("Step law (arXiv 2503.04715)", "ours", "2.5000 nats per token by beyond-chin"):
        assert word in head
    assert "guard" not in text  # a default is not spelt out
    again = load_recipe(tmp_path / "r.yaml")
    assert again == found.recipe
    assert again.predicted == PREDICTED
    assert not PREDICTED.comparable


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    found = draft("llamita-5m", 30e6)
    file = tmp_path / "r.yaml"
    file.write_text("mine")
    with pytest.raises(UserError, match="is there already and is not overwritten; name another"):
        write_recipe(found.recipe, file)
    assert file.read_text() == "mine"
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        write_recipe(found.recipe, tmp_path / "nowhere" / "r.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": 0}, "predicted.loss"),
        ({"loss_unit": "nats"}, "predicted.loss_unit"),
        ({"interval": [3, 2]}, "the lower bound first"),
        ({"tokenz": 1}, "Did you mean 'tokens'"),
    ],
)
def test_faults_in_what_was_predicted(changes: dict[str, Any], said: str) -> None:
    values = draft("llamita-5m", 30e6).recipe.model_dump()
    wrong = {**PREDICTED.model_dump(), **changes}
    with pytest.raises(UserError, match=said):
        check_recipe({**values, "predicted": wrong}, "r")
    recipe: Recipe = check_recipe({**values, "predicted": PREDICTED.model_dump()}, "r")
    assert recipe.predicted == PREDICTED


@pytest.mark.slow
def test_it_trains(tiny_data: Path, tmp_path: Path) -> None:
    """On data whose tokenizer has another vocabulary than the plan's default."""
    (tmp_path / "data").symlink_to(tiny_data)
    first, *_ = shapes_near(400e3, FAMILIES["llamita"], counts="non-embedding")
    found = recipe_for(first.config, first.parametrization, 1000, name="small", unique_tokens=500)
    file = write_recipe(found.recipe, tmp_path / "r.yaml", found.comments)
    quick = [f"runtime.{key}" for key in ("compile=never", "threads=1", "dtype=float32")]
    quick += [f"{key}.every_steps=null" for key in ("checkpoints", "validation")]
    result = train(file, overrides=quick, device="cpu", say=lambda line: None)
    assert isinstance(result, TrainingResult)
    assert result.run == Path("runs/small")
    assert result.step * found.recipe.batch_tokens == pytest.approx(1000, abs=64)
    assert result.bits_per_byte is not None
