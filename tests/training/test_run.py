"""What `train` says, writes, refuses and survives."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamita.data.batch import Cursor, StageData
from llamita.data.build import build_data
from llamita.data.shards import open_dataset
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.huggingface import read_config
from llamita.model.initialization import initialize
from llamita.planning.plan import TrainingPlan
from llamita.recipes.loading import dump_recipe, load_recipe
from llamita.reporting.events import read_events
from llamita.training import loop
from llamita.training.checkpoint import step_directories, verify_checkpoint
from llamita.training.objective import LossSum, NextToken
from llamita.training.run import train
from tests.data.corpus import sentences, small_tokenizer, write_records
from tests.training.helpers import (
    BATCH,
    DECAY,
    STABLE,
    assert_same_tensors,
    losses,
    no_file_beyond,
    optimizer_tensors,
    quiet,
    snapshot,
    stage,
    state,
    tiny_recipe,
    tiny_values,
    trained,
    weights,
)


def copy_of(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "run"))


# -- a whole run ----------------------------------------------------------------------------------


def test_a_whole_run(reference: Path) -> None:
    events = read_events(reference)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert list(losses(reference)) == list(range(1, 13))
    rates = [values[2] for values in losses(reference).values()]
    assert rates == pytest.approx([0.005] + [0.01] * 8 + [0.0075, 0.005, 0.0025])
    assert [e["tokens"] for e in events if e["event"] == "step"] == [
        BATCH * step for step in range(1, 13)
    ]
    validations = {e["step"]: e["bits_per_byte"] for e in events if e["event"] == "validation"}
    assert validations.keys() == {0, 8, 12}
    assert validations[12] < validations[8] < validations[0]
    assert losses(reference)[12][0] < losses(reference)[1][0] - 1
    assert list(step_directories(reference)) == [8, 9, 12]
    saved = [event["step"] for event in events if event["event"] == "checkpoint"]
    assert saved == [3, 6, 8, 9, 12]
    # The guard forgot the stable stage: it remembers the four steps of the decay.
    assert int(optimizer_tensors(reference / "step-12")["guard.count"]) == 4


def test_the_first_step_is_cross_entropys(reference: Path, tiny_data: Path) -> None:
    """Loss and gradient norm of the global batch at once, by torch's own cross-entropy."""
    config = read_config(reference / "final")
    model = Decoder(config)
    initialize(model, "llama", seed=42)
    streams = {name: open_dataset(tiny_data / name).train for name in ("prose", "code")}
    data = StageData(
        streams, {"prose": 0.7, "code": 0.3}, sequence_length=32, windows_per_step=4, seed=42
    )
    batch, _ = data.batch(Cursor.beginning())
    logits = model(batch.tokens)
    assert isinstance(logits, torch.Tensor)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    loss.backward()
    gradients = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    wanted = (float(loss.detach()), float(torch.cat(gradients).norm()), 0.005)
    assert losses(reference)[1] == pytest.approx(wanted, rel=1e-5)


def test_the_mixture_told_is_the_mixture_read(reference: Path) -> None:
    for event in read_events(reference):
        if event["event"] == "mixture":
            windows = 32 if event["stage"] == "stable" else 16
            for name, asked in event["asked"].items():
                assert abs(event["realised"][name] - asked) < 1 / windows


def test_final_loads_in_transformers(reference: Path, tiny_data: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(reference / "final")
    tokenizer = AutoTokenizer.from_pretrained(reference / "final")
    assert tokenizer("the model")["input_ids"] == small_tokenizer().encode_prompt("the model")
    assert_same_tensors(weights(reference / "final"), dict(model.state_dict()))
    assert_same_tensors(weights(reference / "final"), weights(reference / "step-12"))


def test_the_resolved_recipe_is_kept(reference: Path, tiny_data: Path) -> None:
    assert load_recipe(reference) == tiny_recipe(tiny_data)


def test_a_line_a_step(tiny_data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    stages = [stage("s", 4, STABLE)]
    trained(tiny_recipe(tiny_data, stages=stages), tmp_path / "run", say=said.append)
    (line,) = [line for line in said if line.startswith("step 4/4")]
    for part in ("loss", "b/B", "lr 1.00e-02", "norm", "tok/s", "MFU", "GB", "wait", "ETA"):
        assert part in line
    assert "saved step-3" in line
    assert said.index(next(x for x in said if "parameters" in x)) < said.index(line)


def test_samples(tiny_data: Path, tmp_path: Path) -> None:
    samples = {"every_steps": 2, "prompts": ["the ", "a"], "max_tokens": 5}
    recipe = tiny_recipe(tiny_data, samples=samples, stages=[stage("s", 4, STABLE)])
    trained(recipe, tmp_path / "a")
    found = [
        (e["step"], e["prompt"]) for e in read_events(tmp_path / "a") if e["event"] == "sample"
    ]
    assert found == [(2, "the "), (2, "a"), (4, "the "), (4, "a")]
    # Sampling leaves the run's random numbers, weights and data alone.
    trained(tiny_recipe(tiny_data, stages=[stage("s", 4, STABLE)]), tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.parametrize("micro", [1, 4])
def test_accumulation_changes_rounding_alone(
    tiny_data: Path, tmp_path: Path, reference: Path, micro: int
) -> None:
    runtime = {**tiny_values(tiny_data)["runtime"], "micro_batch_size": micro}
    trained(tiny_recipe(tiny_data, runtime=runtime), tmp_path / "run")
    for step, values in losses(tmp_path / "run").items():
        assert values == pytest.approx(losses(reference)[step], rel=2e-4)


def test_overrides_of_a_typed_recipe_take_effect(tiny_data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_data, stages=[stage("s", 4, STABLE)])
    result = trained(recipe, tmp_path / "run", overrides=[f"stages.0.tokens={2 * BATCH}"])
    assert result.step == 2


def test_the_same_recipe_from_a_file(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(tiny_recipe(tiny_data)))
    trained(file, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(reference)


def test_document_masking_trains(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    objective = {"document_masking": True, "z_loss": 1e-3}
    stages = [stage("s", 8, STABLE, objective=objective)]
    trained(tiny_recipe(tiny_data, stages=stages), tmp_path / "run")
    masked = losses(tmp_path / "run")
    assert masked[8][0] < masked[1][0] - 1
    assert masked[1][0] != losses(reference)[1][0]
    assert masked[1][0] == pytest.approx(losses(reference)[1][0], abs=0.1)


# -- nothing is written ---------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(tiny_data: Path, tmp_path: Path) -> None:
    before = snapshot(tiny_data)
    said: list[str] = []
    plan = train(tiny_recipe(tiny_data), out=tmp_path / "run", dry_run=True, say=said.append)
    assert isinstance(plan, TrainingPlan)
    assert plan.num_steps == 12
    assert "37,792 parameters" in said[0]
    assert not list(tmp_path.iterdir())
    assert snapshot(tiny_data) == before


def test_a_dry_run_on_declared_tokens(tmp_path: Path) -> None:
    values = tiny_values(tmp_path, datasets={"a": {"path": str(tmp_path / "a"), "tokens": "2e9"}})
    values["stages"] = [stage("s", 4, STABLE, mixture={"a": 1.0})]
    values["model"]["vocab_size"] = 300
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))
    said: list[str] = []
    train(file, dry_run=True, say=said.append)
    assert "a 2B (declared)" in said[-2]
    with pytest.raises(UserError, match=r"datasets\.a: there is no data at"):
        trained(file, tmp_path / "run")
    del values["datasets"]["a"]["tokens"]
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"--set datasets\.a\.tokens=1e9"):
        train(file, dry_run=True, say=quiet)


@pytest.mark.parametrize("name", ["tinyllama-1.1b", "minicpm-1.2b", "minicpm-2.4b"])
def test_dry_runs_of_the_shipped_recipes(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    train(name, out=tmp_path / "run", dry_run=True, say=said.append)
    (memory,) = [line for line in said if line.startswith("  memory")]
    if name == "tinyllama-1.1b":
        assert "micro-batch 8 × 2,048" in memory
        assert "AdamW 8.80 GB" in memory  # two moments of 1.1B parameters
    assert not list(tmp_path.iterdir())


# -- what may not be ------------------------------------------------------------------------------


def test_changed_data_are_refused(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    run = copy_of(reference, tmp_path)
    records = [{"text": sentences(100 + n, 20)} for n in range(30)]
    source = write_records(tmp_path / "other.jsonl", records)
    build_data([source], tmp_path / "code", small_tokenizer(), validation=0.1, num_workers=0)
    datasets = tiny_values(tiny_data)["datasets"]
    datasets["code"]["path"] = str(tmp_path / "code")
    stages = [stage("stable", 8, STABLE), stage("decay", 5, {**DECAY})]
    with pytest.raises(UserError, match=r"datasets\.code: .*fingerprint differs"):
        trained(tiny_recipe(tiny_data, datasets=datasets, stages=stages), run)
    branch = {"model": None, "start_from": str(run), "datasets": datasets}
    with pytest.raises(UserError, match=r"datasets\.code: .*another name"):
        trained(tiny_recipe(tiny_data, **branch), tmp_path / "branch")
    # Under another name they are read from their beginning.
    branch["datasets"] = {"prose": datasets["prose"], "new": datasets["code"]}
    branch["stages"] = [stage("s", 2, DECAY, mixture={"prose": 0.5, "new": 0.5})]
    trained(tiny_recipe(tiny_data, **branch), tmp_path / "branch")
    consumed = state(tmp_path / "branch" / "step-14")["cursor"]["consumed"]
    assert consumed["new@32"] == 4


def other_tokenizer_data(tmp_path: Path) -> str:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    from llamita.data.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=262,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([sentences(3, 50)], trainer=trainer)
    source = write_records(tmp_path / "x.jsonl", [{"text": sentences(n, 20)} for n in range(30)])
    tokenizer = Tokenizer(backend.to_str(), bos_id=0, eos_id=1, pad_id=2)
    build_data([source], tmp_path / "x", tokenizer, validation=0.1, num_workers=0)
    return str(tmp_path / "x")


def test_tokenizers_must_match(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    datasets = tiny_values(tiny_data)["datasets"]
    other = {"path": other_tokenizer_data(tmp_path), "max_epochs": 100}
    mixed = tiny_recipe(tiny_data, datasets={**datasets, "code": other})
    with pytest.raises(UserError, match="built with different tokenizers"):
        trained(mixed, tmp_path / "run")
    alone = tiny_recipe(
        tiny_data,
        model=None,
        start_from=str(reference / "final"),
        datasets={"x": other},
        stages=[stage("s", 2, STABLE, mixture={"x": 1.0})],
    )
    with pytest.raises(UserError, match="another tokenizer than that of"):
        trained(alone, tmp_path / "run")
    small = {**tiny_values(tiny_data)["model"], "vocab_size": 100}
    with pytest.raises(UserError, match=r"model\.vocab_size 100 is smaller"):
        trained(tiny_recipe(tiny_data, model=small), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": {"learning_rate": 2e-2}}, "optimizer.learning_rate"),
        ({"seed": 43}, "seed"),
        ({"batch_tokens": 2 * BATCH}, "batch_tokens"),
        ({"model": {"hidden_size": 64}}, "model.hidden_size"),
        ({"stages": [stage("stable", 9, STABLE), stage("decay", 5, DECAY)]}, "stages.0.tokens"),
        ({"stages": [stage("stable", 8, STABLE), stage("other", 5, DECAY)]}, "stages.1.name"),
        ({"stages": [stage("stable", 8, STABLE), stage("decay", 3, DECAY)]}, "stages.1.tokens"),
        (
            {"stages": [stage("stable", 8, STABLE), stage("decay", 5, DECAY)]},
            "learning rates so far",
        ),
        (
            {
                "stages": [
                    stage("stable", 8, STABLE),
                    stage("decay", 5, DECAY, mixture={"prose": 0.6, "code": 0.4}),
                ]
            },
            "stages.1.mixture",
        ),
        ({"stages": [stage("stable", 8, STABLE)]}, "stages"),
    ],
)
def test_changes_that_contradict_the_past(
    tiny_data: Path, tmp_path: Path, reference: Path, changes: dict[str, Any], named: str
) -> None:
    run = copy_of(reference, tmp_path)
    before = snapshot(run)
    values = tiny_values(tiny_data)
    if "model" in changes:
        changes = {"model": {**values["model"], **changes["model"]}}
    with pytest.raises(UserError, match="with other settings") as caught:
        trained(tiny_recipe(tiny_data, **changes), run)
    assert named in str(caught.value).split("What may change")[0]
    assert snapshot(run) == before


def test_free_changes_go_on(tiny_data: Path, tmp_path: Path) -> None:
    """Where data lie, how often is saved, a stage added; the guard's window too."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    recipe = tiny_recipe(tiny_data, stages=[stage("stable", 20, STABLE)])
    trained(recipe, run)
    moved = Path(shutil.copytree(tiny_data, tmp_path / "moved"))
    changed = tiny_values(
        moved,
        stages=[stage("stable", 20, STABLE), stage("decay", 3, DECAY)],
        checkpoints={"every_steps": 5},
        guard={"window": 32},
        description="another",
        predicted={
            "law": "l",
            "loss": 3,
            "loss_unit": "nats per token",
            "tokens": 1e3,
            "parameters": 1e4,
        },
    )
    trained(tiny_recipe(moved, **{k: v for k, v in changed.items() if k != "name"}), run)
    resumed = next(event for event in read_events(run) if event["event"] == "resume")
    free = {"description", "guard.window", "checkpoints.every_steps", "stages.1", "predicted"}
    assert free <= set(resumed["changed"])
    stages = [stage("stable", 20, STABLE), stage("decay", 3, DECAY)]
    trained(tiny_recipe(tiny_data, stages=stages), whole)
    assert losses(run) == losses(whole)


def test_a_constant_stage_is_extended(tiny_data: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    for steps in (4, 9):
        trained(tiny_recipe(tiny_data, stages=[stage("s", steps, STABLE)]), run)
    trained(tiny_recipe(tiny_data, stages=[stage("s", 9, STABLE)]), whole)
    assert losses(run) == losses(whole)
    assert_same_tensors(weights(run / "final"), weights(whole / "final"))
    assert_same_tensors(optimizer_tensors(run / "step-9"), optimizer_tensors(whole / "step-9"))


def test_a_damaged_checkpoint_is_not_gone_on_from(
    tiny_data: Path, tmp_path: Path, reference: Path
) -> None:
    run = copy_of(reference, tmp_path)
    file = run / "step-12" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"step-12: model\.safetensors has .* removing step-12"):
        trained(tiny_recipe(tiny_data), run)
    shutil.rmtree(run / "step-12")  # as the message says
    trained(tiny_recipe(tiny_data), run)
    assert losses(run) == losses(reference)


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0); file.write("pid 4711 on elsewhere"); file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    run = copy_of(reference, tmp_path)
    before = snapshot(run)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"another process \(pid 4711 on elsewhere"):
            trained(tiny_recipe(tiny_data), run)
        assert snapshot(run) == before
        holder.communicate()
    trained(tiny_recipe(tiny_data), run)


def test_two_real_processes(tiny_data: Path, tmp_path: Path) -> None:
    """The first holds the run while it trains; the second is refused and disturbs nothing."""
    from tests.training.helpers import _child

    run = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    with context.Manager() as manager:
        reached, go_on = manager.Event(), manager.Event()
        process = context.Process(
            target=_child, args=(tiny_recipe(tiny_data), run, wait_at_first_step, (reached, go_on))
        )
        process.start()
        assert reached.wait(60)
        with pytest.raises(UserError, match=rf"another process \(pid {process.pid} on"):
            trained(tiny_recipe(tiny_data), run)
        go_on.set()
        process.join(60)
    assert process.exitcode == 0
    assert len(losses(run)) == 12


def wait_at_first_step(reached: Any, go_on: Any) -> None:
    original = loop.Trainer._after_step

    def after_step(self: Any, plan: Any) -> None:
        reached.set()
        go_on.wait(60)
        original(self, plan)

    loop.Trainer._after_step = after_step  # type: ignore[method-assign]


def test_a_full_disk_while_training(
    tiny_data: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = tmp_path / "run", tiny_recipe(tiny_data)
    original = loop.save_checkpoint

    def save_checkpoint(run: Path, step: int, *arguments: Any) -> Path:
        with no_file_beyond(50_000 if step == 6 else None):
            return original(run, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_checkpoint)
        with pytest.raises(UserError, match=r"could not write .*step-6.*same command again"):
            trained(recipe, run)
    assert list(step_directories(run)) == [3]
    verify_checkpoint(run / "step-3")
    assert not list(run.glob("*.tmp"))
    trained(recipe, run)
    assert losses(run) == losses(reference)


# -- numbers that are none ------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float = math.nan) -> None:
    """Multiply loss and gradients of some steps of training."""
    loss_sum, take_step = NextToken.loss_sum, loop.Trainer._step
    taking = 0

    def step(self: loop.Trainer, *arguments: Any) -> None:
        nonlocal taking
        taking = self.position.step + 1
        take_step(self, *arguments)
        taking = 0

    def poisoned(self: NextToken, model: Any, batch: Any) -> Any:
        loss, reported, _ = loss_sum(self, model, batch)
        if taking in steps:
            return LossSum(loss * value, reported * value)
        return LossSum(loss, reported)

    monkeypatch.setattr(loop.Trainer, "_step", step)
    monkeypatch.setattr(NextToken, "loss_sum", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_steps_never_reach_the_weights(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    run = tmp_path / "run"
    poison(monkeypatch, {1, 3, 4}, value)
    recipe = tiny_recipe(
        tiny_data, stages=[stage("s", 5, STABLE)], checkpoints={"every_steps": 1, "keep_last": 9}
    )
    said: list[str] = []
    trained(recipe, run, say=said.append)
    skipped = [e["step"] for e in read_events(run) if e.get("skipped") == "non_finite"]
    assert skipped == [1, 3, 4]
    assert sum("skipped, non_finite" in line for line in said) == 3
    for step in range(1, 6):
        tensors = {**weights(run / f"step-{step}"), **optimizer_tensors(run / f"step-{step}")}
        floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
        assert all(bool(tensor.isfinite().all()) for tensor in floats)
    moments = optimizer_tensors(run / "step-5")
    assert {float(t) for name, t in moments.items() if name.startswith("step.")} == {2.0}
    assert_same_tensors(weights(run / "step-4"), weights(run / "step-2"))
    told = losses(run)
    assert told[3][0] == str(value)  # the truth, in JSON's means
    assert told[5][0] < told[2][0]


def test_a_run_that_is_lost_stops_with_what_to_do(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    poison(monkeypatch, set(range(5, 100)))
    recipe = tiny_recipe(tiny_data, guard={"max_consecutive_skips": 3})
    with pytest.raises(UserError) as caught:
        trained(recipe, run)
    message = str(caught.value)
    assert "not finite for 3 steps running, at step 7" in message
    assert f"{run / 'step-6'} is the last checkpoint" in message
    assert "--from" in message
    assert all(bool(t.isfinite().all()) for t in weights(run / "step-6").values())


def test_a_spike_is_skipped_and_told(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    poison(monkeypatch, {19}, 50.0)
    recipe = tiny_recipe(
        tiny_data,
        stages=[stage("s", 20, {"kind": "constant"})],
        optimizer={"learning_rate": 1e-6, "clip_grad_norm": None},
        checkpoints={"every_steps": 1, "keep_last": 20},
    )
    trained(recipe, run)
    skipped = {e["step"]: e["skipped"] for e in read_events(run) if "skipped" in e}
    assert skipped == {19: "spike"}
    assert_same_tensors(weights(run / "step-19"), weights(run / "step-18"))
    history = optimizer_tensors(run / "step-19")["guard.history"]
    assert float(history[0, 18]) == pytest.approx(losses(run)[19][0])


def test_clipping_bounds_the_update(tiny_data: Path, tmp_path: Path) -> None:
    """Under a clip of 1e-9, far below AdamW's eps, nothing moves to speak of."""
    settings = {"learning_rate": 1e-2, "clip_grad_norm": 1e-9, "weight_decay": 0.0, "eps": 1.0}
    recipe = tiny_recipe(
        tiny_data, stages=[stage("s", 2, {"kind": "constant"})], optimizer=settings
    )
    trained(recipe, tmp_path / "run")
    free = tiny_recipe(
        tiny_data,
        stages=[stage("s", 2, {"kind": "constant"})],
        optimizer={**settings, "clip_grad_norm": None},
    )
    trained(free, tmp_path / "free")
    clipped, unclipped = losses(tmp_path / "run"), losses(tmp_path / "free")
    assert clipped[1] == unclipped[1]
    norms = {
        name: sum(
            float(t.double().square().sum())
            for key, t in optimizer_tensors(tmp_path / name / "step-2").items()
            if key.startswith("exp_avg.")
        )
        for name in ("run", "free")
    }
    assert math.sqrt(norms["run"]) <= 1e-9
    assert math.sqrt(norms["free"]) > 1e-2


# -- final ----------------------------------------------------------------------------------------


def test_final_from_the_best(tiny_data: Path, tmp_path: Path) -> None:
    """A learning rate that wrecks the end, so that the best is not the last."""
    recipe = tiny_recipe(
        tiny_data,
        stages=[stage("good", 6, STABLE), stage("bad", 4, {"kind": "constant"}, learning_rate=3.0)],
        guard={"spike_sigmas": None},
        checkpoints={"every_steps": 2, "keep_last": 1, "final": "best"},
    )
    run = tmp_path / "run"
    trained(recipe, run)
    told = {e["step"]: e["bits_per_byte"] for e in read_events(run) if e["event"] == "validation"}
    best = min((step for step in told if step), key=told.__getitem__)
    assert best < 10
    assert_same_tensors(weights(run / "final"), weights(run / f"step-{best}"))
    provenance = json.loads((run / "final" / "training" / "provenance.json").read_text())
    assert provenance["step"] == best
    assert provenance["validation"]["bits_per_byte"] == told[best]


def test_final_from_a_named_step(tiny_data: Path, tmp_path: Path) -> None:
    checkpoints = {"every_steps": 5, "keep_last": 1, "final": "step-7", "final_dtype": "bfloat16"}
    run = tmp_path / "run"
    trained(tiny_recipe(tiny_data, checkpoints=checkpoints), run)
    named = weights(run / "step-7")
    final = weights(run / "final")
    assert {tensor.dtype for tensor in final.values()} == {torch.bfloat16}
    assert all(torch.equal(final[name], named[name].bfloat16()) for name in named)
    # Another choice later changes final alone.
    checkpoints["final"] = "last"
    trained(tiny_recipe(tiny_data, checkpoints=checkpoints), run)
    assert not torch.equal(
        weights(run / "final")["model.norm.weight"].float(), final["model.norm.weight"].float()
    )


@pytest.mark.parametrize("final", ["step-0", "step-13"])
def test_final_from_a_step_that_will_not_be(tiny_data: Path, tmp_path: Path, final: str) -> None:
    """Said before training, not after."""
    recipe = tiny_recipe(tiny_data, checkpoints={"final": final})
    with pytest.raises(UserError, match=r"checkpoints\.final: .* \(1 to 12\)"):
        trained(recipe, tmp_path / "run")


def test_final_from_a_step_that_was_pruned(
    tiny_data: Path, tmp_path: Path, reference: Path
) -> None:
    run = copy_of(reference, tmp_path)
    recipe = tiny_recipe(tiny_data, checkpoints={"every_steps": 3, "final": "step-6"})
    with pytest.raises(UserError, match="there are step-8, step-9, step-12"):
        trained(recipe, run)


def test_best_without_held_out_text(tmp_path: Path) -> None:
    source = write_records(tmp_path / "x.jsonl", [{"text": sentences(n, 20)} for n in range(9)])
    build_data([source], tmp_path / "x", small_tokenizer(), validation=0, num_workers=0)
    values = {
        "datasets": {"x": {"path": str(tmp_path / "x"), "max_epochs": 99}},
        "stages": [stage("s", 2, STABLE, mixture={"x": 1.0})],
    }
    with pytest.raises(UserError, match="held-out"):
        trained(tiny_recipe(tmp_path, checkpoints={"final": "best"}, **values), tmp_path / "run")
    result = trained(tiny_recipe(tmp_path, **values), tmp_path / "run")
    assert result.bits_per_byte is None


def test_minicpms_scaling_survives_a_fresh_optimizer(tiny_data: Path, tmp_path: Path) -> None:
    """Matrices would learn m times too fast otherwise."""
    model = {
        **tiny_values(tiny_data)["model"],
        "embedding_multiplier": 12.0,
        "logits_scaling": 4.0,
        "tie_word_embeddings": True,
    }
    stages = [stage("s", 1, {"kind": "constant"})]
    optimizer = {"learning_rate": 1e-3, "weight_decay": 0.0, "eps": 1e-16}
    base = {"stages": stages, "optimizer": optimizer}
    first = tiny_recipe(tiny_data, model=model, parametrization="minicpm", **base)
    trained(first, tmp_path / "first")
    for number, origin in enumerate((tmp_path / "first" / "step-1", tmp_path / "first" / "final")):
        run = tmp_path / f"second-{number}"
        fresh = number == 0
        recipe = tiny_recipe(
            tiny_data, model=None, start_from=str(origin), fresh_optimizer=fresh, **base
        )
        trained(recipe, run)
        name = "model.layers.0.mlp.up_proj.weight"
        moved = (weights(run / "step-1")[name] - weights(origin)[name]).abs()
        assert float(moved.median()) == pytest.approx(1e-3 / 4, rel=1e-3)
