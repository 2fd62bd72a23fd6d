"""Adapters, conversations and preferences through the one loop."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llamita.data.tokenizer import load_tokenizer
from llamita.errors import UserError
from llamita.inference.answering import answer_tokens
from llamita.inference.sampling import Sampling
from llamita.model.adapter_directory import is_adapter, read_adapter
from llamita.model.huggingface import load_model
from llamita.planning.recipe_plan import plan_recipe
from llamita.reporting.events import read_events
from llamita.training.checkpoint import step_directories
from tests.training.helpers import (
    assert_same_tensors,
    kill_after_step,
    losses,
    optimizer_tensors,
    stage,
    state,
    tiny_recipe,
    train_in_process,
    trained,
    weights,
)
from tests.training.tuned import LORA, build_tiny_chats, tuning_recipe

KILLED = -signal.SIGKILL
SLOW = pytest.mark.slow
QLORA = {**LORA, "quantize_base": "nf4"}


@pytest.fixture(scope="module")
def base(reference: Path) -> Path:
    """What is tuned: the tiny run's model."""
    return reference / "final"


@pytest.fixture(scope="module")
def data(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chats(tmp_path_factory.mktemp("chats"), base)


def learnt(directory: Path) -> dict[str, Tensor]:
    if is_adapter(directory):
        return load_file(directory / "adapter_model.safetensors")
    return weights(directory)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == kind]


# -- going on, to the bit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("chats", {}, id="lora"),
        pytest.param("pairs", {}, id="dpo"),
        pytest.param("chats", {"adapter": {**LORA, "dropout": 0.5}}, id="dropout", marks=SLOW),
        pytest.param("chats", {"adapter": QLORA}, id="qlora", marks=SLOW),
        pytest.param("chats", {"adapter": None}, id="all", marks=SLOW),
        pytest.param("pairs", {"adapter": None}, id="dpo-all", marks=SLOW),
    ],
)
def test_killed_and_gone_on(
    data: Path, base: Path, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    recipe = tuning_recipe(data, base, kind, **changes)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_in_process(recipe, whole) == 0
    assert train_in_process(recipe, run, kill_after_step, 5) == KILLED
    assert max(step_directories(run)) == 3
    assert train_in_process(recipe, run) == 0
    for step in ("step-6", "final"):
        assert_same_tensors(learnt(run / step), learnt(whole / step))
    assert_same_tensors(optimizer_tensors(run / "step-6"), optimizer_tensors(whole / "step-6"))
    assert losses(run) == losses(whole)
    for key in ("cursor", "validation", "best"):
        assert state(run / "step-6")[key] == state(whole / "step-6")[key]


# -- what is learnt -------------------------------------------------------------------------------


def test_an_adapter_learns_and_its_base_does_not(data: Path, base: Path, tmp_path: Path) -> None:
    before = learnt(base)
    run = trained(tuning_recipe(data, base, steps=30), tmp_path / "run").run
    lora, record = read_adapter(run / "final")
    assert (lora.rank, lora.targets) == (4, ("down_proj", "q_proj", "v_proj"))
    assert (run / "final" / record.path).resolve() == base.resolve()
    assert_same_tensors(learnt(base), before)
    scores = [event["bits_per_byte"] for event in events(run, "validation")]
    assert scores[-1] < 0.97 * scores[0]
    assert not (run / "final" / "model.safetensors").exists()
    folded = load_model(run / "final", merge=True)
    assert_same_tensors(
        {n: t for n, t in before.items() if "k_proj" in n},
        {n: t for n, t in folded.state_dict().items() if "k_proj" in n},
    )


def test_a_tuned_model_answers_and_stops(data: Path, base: Path, tmp_path: Path) -> None:
    """Its config says what ends a turn, so that everyone who writes with it stops there."""
    recipe = tuning_recipe(data, base, steps=60, adapter=None)
    run = trained(recipe, tmp_path / "run").run
    model, tokenizer = load_model(run / "final"), load_tokenizer(run / "final")
    assert tokenizer.chat_template
    assert tokenizer.eos_id in model.config.eos_token_ids
    ids = list(
        answer_tokens(
            model, tokenizer, "what is 3?", max_tokens=60, sampling=Sampling(temperature=0)
        )
    )
    assert 0 < len(ids) < 60


def test_preferences_are_learnt(data: Path, base: Path, tmp_path: Path) -> None:
    recipe = tuning_recipe(data, base, "pairs", steps=40)
    run = trained(recipe, tmp_path / "run").run
    steps = events(run, "step")
    # At the first step the policy is the reference: ln 2, and neither answer has a reward.
    assert steps[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["loss"] < 0.6
    first, last = events(run, "preference")[0], events(run, "preference")[-1]
    assert first["accuracy"] == 0.5
    assert last["accuracy"] > 0.7
    assert last["datasets"]["pairs"]["has_effect"]
    assert not events(run, "validation")
    assert state(run / "step-40")["best"].keys() == {"step", "preference_loss"}


@pytest.mark.parametrize("kind", ["live", "precomputed"])
def test_references_agree(data: Path, base: Path, tmp_path: Path, kind: str) -> None:
    """Live or from the table, the base is the same model."""
    stages = tuning_recipe(data, base, "pairs").model_dump()["stages"]
    stages[0]["objective"]["reference"] = kind
    run = trained(tuning_recipe(data, base, "pairs", stages=stages), tmp_path / "run").run
    automatic = trained(tuning_recipe(data, base, "pairs"), tmp_path / "auto").run
    for step, (loss, _, _) in losses(run).items():
        assert loss == pytest.approx(losses(automatic)[step][0], abs=1e-5)
    assert (automatic / "reference" / "pairs.safetensors").is_file()


def test_conversations_in_the_decay(data: Path, tiny_data: Path, tmp_path: Path) -> None:
    """MiniCPM's order: text, text and conversations, conversations, pairs; one run."""
    values = tiny_recipe(tiny_data).model_dump()
    datasets = values["datasets"] | {
        name: {"path": str(data / name), "max_epochs": 100} for name in ("chats", "pairs")
    }
    decay = {"kind": "decay", "form": "linear", "final_fraction": 0.1}
    stages = [
        stage("stable", 3, {"kind": "constant"}),
        stage("decay", 4, decay, mixture={"prose": 0.5, "code": 0.25, "chats": 0.25}),
        stage("sft", 2, {"kind": "constant"}, mixture={"chats": 1.0}, learning_rate=1e-3),
        stage(
            "dpo",
            2,
            {"kind": "cosine"},
            mixture={"pairs": 1.0},
            learning_rate=1e-4,
            objective={"kind": "preference"},
        ),
    ]
    recipe = tiny_recipe(tiny_data, datasets=datasets, stages=stages, sequence_length=64)
    run = trained(recipe, tmp_path / "run").run
    realised = next(e for e in events(run, "mixture") if e["stage"] == "decay")["realised"]
    assert realised == pytest.approx({"prose": 0.5, "code": 0.25, "chats": 0.25}, abs=1 / 16)
    assert set(events(run, "validation")[-1]["datasets"]) == {"prose", "code", "chats"}
    # The reference of the pairs is the model as it was tuned, not as it began.
    assert next(e for e in events(run, "step") if e["stage"] == "dpo")["loss"] == pytest.approx(
        0.6931472, abs=1e-6
    )
    provenance = json.loads((run / "final" / "training" / "provenance.json").read_text())
    assert 0 < provenance["learning_rate"] <= 1e-4


def test_answers_before_and_after(data: Path, base: Path, tmp_path: Path) -> None:
    samples = {"prompts": ["what is 3?"], "chat": True, "max_tokens": 8, "temperature": 0}
    run = trained(tuning_recipe(data, base, samples=samples), tmp_path / "run").run
    assert [event["step"] for event in events(run, "sample")] == [0, 6]


def test_patience_ends_a_run(data: Path, base: Path, tmp_path: Path) -> None:
    """A rate at which nothing gets better."""
    recipe = tuning_recipe(
        data,
        base,
        steps=30,
        optimizer={"learning_rate": 3.0, "clip_grad_norm": None},
        validation={"every_steps": 2, "patience": 2},
        checkpoints={"final": "best"},
        guard={"spike_sigmas": None},
    )
    result = trained(recipe, tmp_path / "run")
    stopped = events(result.run, "early_stop")
    assert len(stopped) == 1
    assert result.step == stopped[0]["step"] < 30
    said: list[str] = []
    again = trained(recipe, tmp_path / "run", say=said.append)
    assert again.step == result.step
    assert "is done" in said[-1]


# -- an adapter as a MODEL ------------------------------------------------------------------------


def test_an_adapter_goes_on_learning(data: Path, base: Path, tmp_path: Path) -> None:
    """Preferences after conversations: the same adapter, with the tuned model as reference."""
    tuned = trained(tuning_recipe(data, base), tmp_path / "tuned").run
    run = trained(tuning_recipe(data, tuned / "final", "pairs"), tmp_path / "run").run
    assert losses(run)[1][0] == pytest.approx(0.6931472, abs=1e-6)
    _, record = read_adapter(run / "final")
    assert (run / "final" / record.path).resolve() == base.resolve()
    stages = tuning_recipe(data, base, "pairs").model_dump()["stages"]
    stages[0]["objective"]["reference"] = "live"
    with pytest.raises(UserError, match="begins with the trained adapter"):
        trained(tuning_recipe(data, tuned / "final", "pairs", stages=stages), tmp_path / "live")


def test_a_moved_or_changed_base_is_found_out(data: Path, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    recipe = tuning_recipe(data, copy, steps=6)
    run = trained(recipe, tmp_path / "run").run
    shutil.rmtree(run / "step-6")
    shutil.rmtree(run / "final")
    (run / "latest").write_text("step-3\n")
    state_file = copy / "model.safetensors"
    changed = {name: tensor + 1 for name, tensor in load_file(state_file).items()}
    from safetensors.torch import save_file

    save_file(changed, state_file)
    with pytest.raises(UserError, match="trained on other weights"):
        trained(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {**LORA, "rank": 8}}, "rank 4 where the recipe has 8"),
        ({"adapter": None}, "is an adapter, and the recipe names none"),
    ],
)
def test_another_adapter_than_there_is(
    data: Path, base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    tuned = trained(tuning_recipe(data, base, steps=1), tmp_path / "tuned").run
    with pytest.raises(UserError, match=message):
        plan_and_train(tuning_recipe(data, tuned / "final", **changes), tmp_path / "run")


def plan_and_train(recipe: Any, run: Path) -> None:
    plan_recipe(recipe)
    trained(recipe, run)


# -- recipes that contradict themselves -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("chats", {"adapter": {"targets": ["q_prj"]}}, "there is no projection 'q_prj'"),
        ("chats", {"adapter": {"quantize_base": "int3"}}, "quantize_base"),
        (
            "pairs",
            {"stages": [stage("s", 1, {"kind": "constant"}, mixture={"pairs": 1.0})]},
            "pairs are learnt with objective",
        ),
        (
            "chats",
            {
                "stages": [
                    stage(
                        "s",
                        1,
                        {"kind": "constant"},
                        mixture={"chats": 1.0},
                        objective={"kind": "preference"},
                    )
                ]
            },
            "preferences are learnt from pairs alone",
        ),
    ],
)
def test_contradictions(
    data: Path, base: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_recipe(tuning_recipe(data, base, kind, **changes))


def test_nothing_to_adapt(tiny_data: Path) -> None:
    with pytest.raises(UserError, match="nothing to adapt"):
        tiny_recipe(tiny_data, adapter=LORA)


def test_declared_shape(data: Path, base: Path) -> None:
    """`model` beside `start_from` plans before it is there, and is held against what is there."""
    absent = tuning_recipe(data, Path("nobody/nothing"), model={"preset": "llamita-15m"})
    assert plan_recipe(absent).config.hidden_size == 384
    with pytest.raises(UserError, match="hidden_size 384 instead of 32"):
        plan_recipe(tuning_recipe(data, base, model={"preset": "llamita-15m"}))


def test_long_examples_are_said(data: Path, base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = tuning_recipe(data, base, steps=1, sequence_length=40, batch_tokens=80)
    trained(recipe, tmp_path / "run", say=said.append)
    assert any("were cut to fit into 40 tokens" in line for line in said)


def test_losses_are_those_of_examples_alone(data: Path, base: Path, tmp_path: Path) -> None:
    """A packed validation equals Σ over conversations scored one by one."""
    from llamita.data.shards import open_dataset

    recipe = tuning_recipe(data, base, steps=1, validation={"tokens": 10**6})
    run = trained(recipe, tmp_path / "run").run
    told = events(run, "validation")[0]
    model = load_model(base).requires_grad_(False)
    stream = open_dataset(data / "chats").validation
    nats = count = 0.0
    for number in range(stream.num_documents):
        tokens = torch.from_numpy(stream.document(number).astype("int64"))[None]
        learns = torch.from_numpy(stream.learns(number))[None]
        log_probs = model(tokens[:, :-1]).log_softmax(-1)
        picked = log_probs.gather(2, tokens[:, 1:, None])[..., 0][learns[:, 1:]]
        nats -= float(picked.sum())
        count += int(learns[:, 1:].sum())
    assert told["tokens"] == count
    assert told["loss"]["chats"] == pytest.approx(nats / count, abs=1e-5)
