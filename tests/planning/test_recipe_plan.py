"""Recipes planned without torch: the same plan, and the same refusals, as training prepares."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamita.architecture.presets import preset
from llamita.errors import UserError
from llamita.planning.plan import TrainingPlan
from llamita.planning.recipe_plan import plan_recipe
from llamita.recipes.loading import check_recipe, dump_recipe, shipped_recipes
from llamita.recipes.schema import Recipe
from llamita.training.preparation import prepare
from tests.training.helpers import DECAY, STABLE, stage, tiny_recipe, tiny_values, trained


def without_padding(plan: TrainingPlan) -> TrainingPlan:
    """Manifests do not say which token pads."""
    return replace(plan, config=plan.config.replace(pad_token_id=None))


def assert_planned_as_trained(recipe: Recipe) -> TrainingPlan:
    ours = plan_recipe(recipe)
    assert without_padding(ours) == without_padding(prepare(recipe, allow_declared=True).plan)
    return ours


@pytest.mark.parametrize(
    "model",
    [
        None,
        "llamita-5m",
        {"preset": "minicpm-9m", "hidden_size": 128, "num_attention_heads": 5, "head_dim": 32},
        {"preset": "minicpm-9m", "num_hidden_layers": 3, "vocab_size": 5000},
        {"model_type": "llama", "vocab_size": 900, "hidden_size": 64, "intermediate_size": 96}
        | {"num_hidden_layers": 2, "num_attention_heads": 2},
    ],
)
def test_the_plan_is_training_s(tiny_data: Path, model: Any) -> None:
    changes = {} if model is None else {"model": model}
    plan = assert_planned_as_trained(tiny_recipe(tiny_data, **changes))
    manifest = json.loads((tiny_data / "prose" / "manifest.json").read_text())
    assert plan.sizes["prose"].tokens == manifest["splits"]["train"]["tokens"]
    assert not plan.sizes["prose"].declared
    stated = isinstance(model, dict) and "vocab_size" in model
    vocabulary = model["vocab_size"] if stated else manifest["tokenizer"]["vocab_size"]
    assert plan.config.vocab_size == vocabulary
    assert plan.config.eos_token_id == manifest["tokenizer"]["eos_id"]


@pytest.mark.parametrize("name", ["tinyllama-1.1b", "minicpm-2.4b", "quickstart"])
def test_on_declared_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert name in shipped_recipes()
    plan = plan_recipe(name, ["seed=7"])
    assert plan == prepare(plan.recipe, allow_declared=True).plan
    assert plan.recipe.seed == 7
    assert all(size.declared for size in plan.sizes.values())
    if name != "quickstart":
        assert plan.config == preset(name).config


def test_from_a_file_and_one_source_of_two(tiny_data: Path, tmp_path: Path) -> None:
    values = tiny_values(tiny_data)
    values["datasets"]["code"] = {"path": str(tmp_path / "none"), "tokens": 20_000}
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(check_recipe(values, "tiny")))
    plan = plan_recipe(file)
    assert plan == plan_recipe(tmp_path)  # as a run's directory
    assert [size.declared for size in plan.sizes.values()] == [False, True]
    assert plan.sizes["code"].tokens == 20_000


@pytest.fixture(scope="module")
def parent(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with MiniCPM's scaling, whose checkpoints and final/ others start from."""
    run = tmp_path_factory.mktemp("parent") / "run"
    recipe = tiny_recipe(tiny_data, parametrization="minicpm", stages=[stage("stable", 6, STABLE)])
    trained(recipe, run)
    return run


def child(data: Path, start_from: Path, **changes: Any) -> Recipe:
    values = tiny_values(data, start_from=str(start_from), **changes)
    del values["model"]
    return check_recipe({**values, "stages": [stage("decay", 4, DECAY)]}, "child")


def test_a_branch_inherits_what_was_read(tiny_data: Path, parent: Path) -> None:
    plan = assert_planned_as_trained(child(tiny_data, parent / "step-3"))
    assert plan.first_step == 3
    # Three batches of four windows at 7:3.
    assert sum(plan.consumed.values()) == 12
    assert plan.stages[0].epochs["prose"][0] > 0
    assert plan.parametrization == "minicpm"
    newest = assert_planned_as_trained(child(tiny_data, parent))
    assert newest.first_step == 6


def test_weights_alone(tiny_data: Path, parent: Path) -> None:
    for recipe in (
        child(tiny_data, parent / "final"),
        child(tiny_data, parent / "step-3", fresh_optimizer=True),
        child(tiny_data, parent / "final", parametrization="llama"),
    ):
        plan = assert_planned_as_trained(recipe)
        assert (plan.first_step, dict(plan.consumed)) == (0, {})
        assert plan.parametrization == (recipe.parametrization or "minicpm")


def _without_held_out_text(data: Path) -> None:
    for file in data.glob("*/manifest.json"):
        manifest = json.loads(file.read_text())
        manifest["splits"]["validation"] |= {"tokens": 0, "documents": 0, "shards": []}
        file.write_text(json.dumps(manifest))


def _with_another_tokenizer(data: Path) -> None:
    file = data / "code" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["tokenizer"]["fingerprint"] = "other"
    file.write_text(json.dumps(manifest))


BASE = {"learning_rate": 1, "weight_decay_follows": "base_learning_rate"}
LAST = {
    "checkpoints": {"final": "average", "every_steps": 3},
    "averaging": {"kind": "last", "checkpoints": 9},
}


@pytest.mark.parametrize(
    ("changes", "damage", "said"),
    [
        ({"model": {"preset": "minicpm-9"}}, None, "Did you mean 'minicpm-9m'"),
        ({"model": {"preset": "minicpm-9m", "vocab_size": 9}}, None, "model.vocab_size 9 is sm"),
        ({"sequence_length": 128, "batch_tokens": 128}, None, "exceeds the model's"),
        ({"optimizer": BASE}, None, "has no effect where all tensors"),
        ({"checkpoints": {"final": "step-77"}}, None, "step-77 is not among the steps"),
        (LAST, None, "writes only 4 to average"),
        ({"checkpoints": {"final": "best"}}, _without_held_out_text, "best needs held-out text"),
        ({}, _with_another_tokenizer, "were built with different tokenizers"),
        ({}, lambda data: (data / "code" / "manifest.json").unlink(), "has no manifest.json"),
        ({"datasets": {"prose": "nowhere", "code": "nowhere"}}, None, "declares no token count"),
        ({"stages": [stage("a", 10**6, STABLE)]}, None, "max_epochs 100; train on fewer"),
    ],
)
def test_refused_in_training_s_words(
    tiny_data: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    damage: Callable[[Path], object] | None,
    said: str,
) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    if damage is not None:
        damage(data)
    recipe = tiny_recipe(data, **changes)
    with pytest.raises(UserError) as ours:
        plan_recipe(recipe)
    with pytest.raises(UserError) as theirs:
        prepare(recipe, allow_declared=True)
    assert str(ours.value) == str(theirs.value)
    assert said in str(ours.value)


def test_origins_are_refused_in_training_s_words(
    tiny_data: Path, tmp_path: Path, parent: Path
) -> None:
    file = Path(shutil.copytree(tiny_data, tmp_path / "data")) / "code" / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "fingerprint": "other"}))
    for recipe, said in (
        (child(tiny_data, parent / "final", fresh_optimizer=True), "carries no optimizer state"),
        (child(tmp_path / "data", parent / "step-3"), "is not the data that"),
        (child(tiny_data, tmp_path / "nothing"), "there is no directory"),
    ):
        with pytest.raises(UserError, match=said) as ours:
            plan_recipe(recipe)
        with pytest.raises(UserError) as theirs:
            prepare(recipe, allow_declared=True)
        assert str(ours.value) == str(theirs.value)


def test_nothing_heavy_is_imported(tiny_data: Path, parent: Path, tmp_path: Path) -> None:
    """Not even where data are there, or where the run starts from a checkpoint."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(child(tiny_data, parent / "step-3")))
    code = (
        "import sys; import llamita.planning.needs; import llamita.planning.recipe_writing;"
        "from llamita.planning.recipe_plan import plan_recipe;"
        "assert 'llamita.data.manifest' not in sys.modules;"
        f"plan_recipe('tinyllama-1.1b'); plan_recipe({str(file)!r});"
        "heavy = {'torch', 'tokenizers', 'numpy', 'safetensors', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
