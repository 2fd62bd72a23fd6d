"""Recipes: numbers, faults and their explanations, overrides, round trips."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamita.errors import UserError
from llamita.recipes.loading import (
    apply_override,
    check_recipe,
    dump_recipe,
    load_recipe,
    override_recipe,
    parse_yaml,
    shipped_recipes,
)
from llamita.recipes.schema import WSD, Decay

TEXT = """
name: example
model: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 128}
sequence_length: 64
batch_tokens: 1_024
optimizer: {learning_rate: 1e-4}
datasets:
  prose: {path: data/prose, tokens: 2e9}
  code: data/code
stages:
  - name: stable
    tokens: 2e9
    mixture: {prose: 0.7, code: 0.3}
    schedule: {kind: constant, warmup_tokens: 1e6}
  - name: decay
    tokens: "2e8"
    mixture: {prose: 1}
    schedule: {kind: decay}
"""


def values() -> dict[str, Any]:
    data = parse_yaml(TEXT, "example")
    assert isinstance(data, dict)
    return data


def refusal(changes: dict[str, Any]) -> str:
    """What is said of the example with some dotted keys set."""
    data = values()
    for key, value in changes.items():
        target: Any = data
        *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in path:
            target = target[part]
        target[last] = value
    with pytest.raises(UserError) as caught:
        check_recipe(data, "example.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1e-4", 1e-4),
        ("2e9", 2e9),
        ("1E+3", 1e3),
        ("-1e-2", -0.01),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("1_0.5", 10.5),
        ("7", 7),
    ],
)
def test_numbers_are_numbers(written: str, number: float) -> None:
    found = parse_yaml(f"x: {written}", "text")["x"]
    assert found == number
    assert isinstance(found, type(number))


@pytest.mark.parametrize("written", ["1e-4x", "step-100", "e9", "1-2", "runs/1e5", "'1e5'"])
def test_words_stay_words(written: str) -> None:
    assert parse_yaml(f"x: {written}", "text")["x"] == written.strip("'")


def test_counts_are_whole_numbers_however_written() -> None:
    recipe = check_recipe(values(), "example")
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.batch_tokens == 1024
    assert recipe.datasets["prose"].tokens == 2_000_000_000
    assert [stage.tokens for stage in recipe.stages] == [2_000_000_000, 200_000_000]
    assert all(type(stage.tokens) is int for stage in recipe.stages)
    assert recipe.datasets["code"].path == "data/code"


@pytest.mark.parametrize("wrong", [1.5, "many", True, -1, 0, "1e-3", float("inf"), float("nan")])
def test_a_count_that_is_none(wrong: object) -> None:
    assert "stages.0.tokens" in refusal({"stages.0.tokens": wrong})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optimiser", "optimizer"),
        ("optimizer.learning_rates", "learning_rate"),
        ("stages.0.mixtures", "mixture"),
        ("stages.0.schedule.warm_up_tokens", "warmup_tokens"),
        ("stages.1.schedule.final_fractions", "final_fraction"),
        ("runtime", None),
        ("datasets.prose.max_epoch", "max_epochs"),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, nearest: str | None) -> None:
    if nearest is None:
        message = refusal({"runtime": {"compiles": "never"}})
        key, nearest = "runtime.compiles", "compile"
    else:
        message = refusal({key: 1})
    assert key in message
    assert f"Did you mean {nearest!r}?" in message


def test_a_schedule_lists_its_own_keys_only() -> None:
    message = refusal({"stages.0.schedule.half_life": 1})
    assert "warmup_tokens" in message
    assert "decay_tokens" not in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages.0.mixture": {"prose": 0.7, "code": 0.2}}, ["sum to 1", "0.9"]),
        ({"stages.0.mixture": {"prose": 1.2, "code": -0.2}}, ["stages.0.mixture", "share"]),
        ({"stages.0.mixture": {}}, ["stages.0.mixture", "no dataset"]),
        ({"stages.0.mixture": {"prose": 0.7, "cod": 0.3}}, ["'cod'", "datasets"]),
        ({"datasets.more": "data/more"}, ["no stage reads more"]),
        ({"stages.1.name": "stable"}, ["one name"]),
        ({"stages.0.name": "a/b"}, ["stages.0.name"]),
        ({"stages": []}, ["stages"]),
        ({"batch_tokens": 1000}, ["1,000", "not a multiple", "1,024"]),
        ({"adapter": {"rank": 8}}, ["nothing to adapt", "start_from"]),
        ({"adapter": {"targets": ["q_prj"]}}, ["Did you mean 'q_proj'"]),
        ({"validation": {"patience": 2}}, ["several stages"]),
        ({"stages.0.objective": {"kind": "preference", "reference": "live"}}, ["adapter"]),
        (
            {"stages.0.objective": {"kind": "preference", "loss": "ipo", "label_smoothing": 0.1}},
            ["label_smoothing", "sigmoid only"],
        ),
        ({"model": None}, ["name a model"]),
        ({"fresh_optimizer": True}, ["fresh_optimizer"]),
        ({"samples": {"every_steps": 5}}, ["samples.prompts"]),
        ({"stages.0.schedule.warmup_tokens": 3e9}, ["3,000,000,000", "more than the stage's"]),
        ({"optimizer.betas": [0.9]}, ["optimizer.betas"]),
        ({"optimizer.learning_rate": "fast"}, ["optimizer.learning_rate", "'fast'"]),
        ({"optimizer.learning_rate": float("nan")}, ["optimizer.learning_rate"]),
        ({"checkpoints": {"final": "first"}}, ["checkpoints.final"]),
        ({"stages.1.schedule": {"kind": "wsd"}}, ["decay_tokens", "missing"]),
        (
            {"stages.1.schedule": {"kind": "decay", "form": "linear", "half_life_tokens": 5}},
            ["half_life_tokens", "exponential"],
        ),
        (
            {"stages.1.schedule": {"kind": "decay", "half_life_tokens": 5, "final_fraction": 0.1}},
            ["not both"],
        ),
        ({"stages.1.schedule": {"kind": "decay", "final_fraction": 0}}, ["never reaches 0"]),
        ({"stages.1.schedule": {"kind": "cosin"}}, ["cosine"]),
    ],
)
def test_contradictions(changes: dict[str, Any], words: list[str]) -> None:
    message = refusal(changes)
    for word in words:
        assert word in message, message


def test_shares_that_sum_in_decimal_but_not_in_binary() -> None:
    data = values()
    data["datasets"]["third"] = "data/third"
    data["stages"][0]["mixture"] = {"prose": 0.1, "code": 0.2, "third": 0.7}
    check_recipe(data, "example")


def test_several_faults_are_told_together() -> None:
    message = refusal({"optimiser": 1, "batch_tokens": "x", "stages.0.schedule.kindness": 2})
    assert len(message.splitlines()) == 4


def test_a_key_given_twice() -> None:
    with pytest.raises(UserError, match=r"example:3: key 'tokens' is given twice"):
        parse_yaml("stage:\n  tokens: 1\n  tokens: 2\n", "example")


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\x07", "{[a]: b}", "a: !!python/name:os"])
def test_not_yaml(text: str) -> None:
    with pytest.raises(UserError, match="example"):
        parse_yaml(text, "example")


@pytest.mark.parametrize("content", [b"- 1\n", b"\xff\xfe\x00", b"", b"just words"])
def test_not_a_recipe(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_recipe(file)


def test_no_such_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        load_recipe("tinylama-1.1b")
    for name in shipped_recipes():
        assert name in str(caught.value)


def test_overrides() -> None:
    data = values()
    for override in (
        "optimizer.learning_rate=3e-4",
        "stages.1.schedule.form=1-sqrt",
        "stages.1.mixture={code: 0.5, prose: 0.5}",
        "runtime.compile=never",
        "samples.prompts=[a, 'b: c']",
        "datasets.code.max_epochs=9",
        "description=a = b",
    ):
        apply_override(data, override)
    recipe = check_recipe(data, "example")
    assert recipe.optimizer.learning_rate == 3e-4
    schedule = recipe.stages[1].schedule
    assert isinstance(schedule, Decay)
    assert schedule.form == "1-sqrt"
    assert recipe.stages[1].mixture == {"code": 0.5, "prose": 0.5}
    assert recipe.runtime.compile == "never"
    assert recipe.samples.prompts == ["a", "b: c"]
    assert (recipe.datasets["code"].path, recipe.datasets["code"].max_epochs) == ("data/code", 9)
    assert recipe.description == "a = b"


def test_an_override_below_a_presets_name() -> None:
    data = values()
    data["model"] = "tinyllama-1.1b"
    apply_override(data, "model.max_position_embeddings=4096")
    assert data["model"] == {"preset": "tinyllama-1.1b", "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tokens", "KEY=VALUE"),
        ("=1", "KEY=VALUE"),
        ("stages.2.tokens=1", "2 entries"),
        ("stages.first.tokens=1", "'first'"),
        ("stages.-1.tokens=1", "'-1'"),
        ("name.x=1", "name has no keys below it"),
        ("stages.0.tokens=[1", "not valid YAML"),
        ("optimizer.learning_rat=1", "Did you mean 'learning_rate'"),
    ],
)
def test_overrides_that_fail(tmp_path: Path, override: str, words: str) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(TEXT)
    with pytest.raises(UserError) as caught:
        load_recipe(file, [override])
    assert words in str(caught.value)


def test_a_typed_recipe_is_overridden_too() -> None:
    recipe = check_recipe(values(), "example")
    changed = override_recipe(recipe, ["seed=7", "stages.0.tokens=1e9"])
    assert (changed.seed, changed.stages[0].tokens) == (7, 10**9)
    assert recipe.seed == 42
    with pytest.raises(UserError, match="Did you mean 'seed'"):
        override_recipe(recipe, ["sed=7"])


def test_the_resolved_recipe_round_trips(tmp_path: Path) -> None:
    data = values()
    data["name"] = "1e5"  # strings that look like numbers
    data["samples"] = {"prompts": ["2e9", "1e-4", "yes", "null", "ñ: #x"]}
    data["optimizer"] |= {"learning_rate": 0.1 + 0.2, "eps": 1e-8, "betas": [0.9, 0.999]}
    data["stages"][1]["schedule"] = {
        "kind": "wsd",
        "decay_tokens": 100,
        "warmup_tokens": 5,
        "half_life_tokens": 17,
    }
    recipe = check_recipe(data, "example")
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(file)
    assert again == recipe
    assert isinstance(again.stages[1].schedule, WSD)
    assert dump_recipe(again) == file.read_text(encoding="utf-8")
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert written["guard"]["spike_sigmas"] == 6.0  # defaults are written out
    assert load_recipe(tmp_path) == recipe  # a run's directory stands for its recipe


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert check_recipe(deepcopy(recipe.model_dump()), name) == recipe


def test_there_are_shipped_recipes() -> None:
    assert {"tinyllama-1.1b", "minicpm-1.2b", "minicpm-2.4b", "quickstart"} <= set(
        shipped_recipes()
    )
