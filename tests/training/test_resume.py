"""N steps = k + kill −9 + going on in a fresh process + (N − k), to the bit."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.data.batch import Cursor
from llamita.errors import UserError
from llamita.reporting.events import read_events
from llamita.training import checkpoint
from llamita.training.checkpoint import step_directories, verify_checkpoint
from llamita.training.objective import LossSum, NextToken
from tests.training.helpers import (
    BATCH,
    DECAY,
    STABLE,
    assert_same_checkpoint,
    assert_same_tensors,
    kill_after_step,
    kill_at_call,
    losses,
    snapshot,
    stage,
    state,
    tiny_recipe,
    train_in_process,
    trained,
    weights,
)

KILLED = -signal.SIGKILL
ONE_EPOCH: dict[str, Any] = {"mixture": {"code": 1.0}, "sequence_length": 32, "batch_tokens": 1600}


def assert_same_run(ours: Path, wanted: Path, step: int) -> None:
    assert_same_checkpoint(ours / f"step-{step}", wanted / f"step-{step}")
    assert_same_tensors(weights(ours / "final"), weights(wanted / "final"))
    assert losses(ours) == losses(wanted)


# 5: between two checkpoints; 8: after the last step of a stage; 9: after the first of the next;
# 12: after the last of all.
@pytest.mark.parametrize("step", [5, 8, 9, 12])
def test_killed_and_gone_on(tiny_data: Path, tmp_path: Path, reference: Path, step: int) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_data)
    assert train_in_process(recipe, run, kill_after_step, step) == KILLED
    assert max(step_directories(run)) < step
    assert train_in_process(recipe, run) == 0
    assert_same_run(run, reference, 12)
    assert state(run / "step-12")["kept"] == state(reference / "step-12")["kept"] == [8, 12]
    kinds = [event["event"] for event in read_events(run)]
    assert kinds.count("resume") == 1
    for kind in ("start", "mixture", "validation", "end"):
        wanted = [event["event"] for event in read_events(reference)].count(kind)
        assert kinds.count(kind) == wanted, kind


def test_killed_before_anything_was_saved(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_data)
    assert train_in_process(recipe, run, kill_after_step, 2) == KILLED
    assert step_directories(run) == {}
    assert train_in_process(recipe, run) == 0
    assert_same_run(run, reference, 12)


def test_killed_again_and_again(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_data, checkpoints={"every_steps": 1})
    for step in (2, 3, 7, 11):
        assert train_in_process(recipe, run, kill_after_step, step) == KILLED
    trained(recipe, run)
    assert_same_run(run, reference, 12)


def test_across_the_end_of_an_epoch(tiny_data: Path, tmp_path: Path) -> None:
    """50 windows a step of a dataset of about 166: killed in the second epoch, and at its edge."""
    recipe = tiny_recipe(
        tiny_data,
        datasets={"code": {"path": str(tiny_data / "code"), "max_epochs": 9}},
        stages=[{**stage("s", 1, STABLE), **ONE_EPOCH, "tokens": 8 * 1600}],
        checkpoints={"every_steps": 2},
    )
    whole, run = tmp_path / "whole", tmp_path / "run"
    trained(recipe, whole)
    last = state(whole / "step-8")["cursor"]["consumed"]["code@32"]
    mixture = [event for event in read_events(whole) if event["event"] == "mixture"]
    assert last == 400
    assert 2 < mixture[0]["epochs"]["code"] < 3
    for step in (3, 7):
        assert train_in_process(recipe, run, kill_after_step, step) == KILLED
    assert train_in_process(recipe, run) == 0
    assert_same_run(run, whole, 8)


def noisy(step: int) -> None:
    """An objective that draws random numbers, as dropout would; and kill after `step`."""
    original = NextToken.loss_sum

    def loss_sum(self: NextToken, model: Any, batch: Any) -> LossSum:
        loss, reported, _ = original(self, model, batch)
        return LossSum(loss * (0.5 + torch.rand(())), reported)

    NextToken.loss_sum = loss_sum  # type: ignore[method-assign]
    kill_after_step(step)


def test_random_numbers_go_on(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    recipe = tiny_recipe(tiny_data)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_in_process(recipe, whole, noisy, 99) == 0
    assert train_in_process(recipe, run, noisy, 5) == KILLED
    assert train_in_process(recipe, run, noisy, 99) == 0
    assert_same_run(run, whole, 12)
    assert losses(whole)[2] != losses(reference)[2], "nothing was random"


def kill_in_save(call: int, name: str) -> None:
    """Count only what checkpoint writing does: from the second save on."""
    original = checkpoint.write_directory
    saves = 0

    def write_directory(*arguments: Any, **named: Any) -> Path:
        nonlocal saves
        saves += 1
        if saves == 2:
            target: Any = os if name == "fsync" else Path
            kill_at_call(target, name, call)
        return original(*arguments, **named)

    checkpoint.write_directory = write_directory


@pytest.mark.parametrize(
    ("name", "call"),
    [("fsync", 1), ("fsync", 4), ("rename", 1), ("replace", 1), ("write_text", 2)],
)
def test_killed_during_a_save(
    tiny_data: Path, tmp_path: Path, reference: Path, name: str, call: int
) -> None:
    """While files are made durable, before the rename, before the pointer moves, while written."""
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_data, checkpoints={"every_steps": 3, "keep_last": 1})
    assert train_in_process(recipe, run, kill_in_save, call, name) == KILLED
    there = step_directories(run)
    assert list(there)[-1] in (3, 6)
    for directory in there.values():
        verify_checkpoint(directory)
    if name != "replace":
        assert list(run.glob("step-6.tmp")), "killed too early or too late to show anything"
    trained(recipe, run)
    assert_same_run(run, reference, 12)
    assert not list(run.glob("*.tmp"))
    assert (run / "latest").read_text() == "step-12\n"


def kill_while_pruning() -> None:
    kill_at_call(shutil, "rmtree", 4)


def test_killed_while_pruning(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_data, checkpoints={"every_steps": 1, "keep_last": 1})
    assert train_in_process(recipe, run, kill_while_pruning) == KILLED
    for directory in step_directories(run).values():
        verify_checkpoint(directory)
    trained(recipe, run)
    assert_same_run(run, reference, 12)


def test_what_a_crash_moved_aside_is_put_back(tmp_path: Path) -> None:
    """A kill between the two renames that replace a directory must not cost both of them."""
    (tmp_path / "step-4.old.tmp").mkdir()
    (tmp_path / "step-4.tmp").mkdir()
    (tmp_path / "final").mkdir()
    (tmp_path / "final.old.tmp").mkdir()
    checkpoint.clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "step-4"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(
    tiny_data: Path, tmp_path: Path, reference: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_data)
    assert train_in_process(recipe, run, kill_after_step, 5, number) == 128 + number
    message = (run / "message").read_text()
    assert f"stopped at step 5; saved as {run / 'step-5'}" in message
    assert "Go on with: " in message
    verify_checkpoint(run / "step-5")
    assert read_events(run)[-1]["event"] == "interrupted"
    assert train_in_process(recipe, run) == 0
    assert_same_run(run, reference, 12)
    assert not (run / "step-5").exists(), "an interruption's checkpoint is pruned like others"


@pytest.mark.parametrize("step", [8, 12])
def test_asked_to_stop_at_a_stages_end(
    tiny_data: Path, tmp_path: Path, reference: Path, step: int
) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_data)
    code = train_in_process(recipe, run, kill_after_step, step, signal.SIGTERM)
    # At the very end there is nothing left to stop.
    assert code == (0 if step == 12 else 128 + signal.SIGTERM)
    saved = state(run / f"step-{step}")
    assert saved["kept"][-1] == step
    assert saved["validation"]["step"] == step
    trained(recipe, run)
    assert_same_run(run, reference, 12)


def test_a_decay_branched_from_a_step_is_the_decay_planned_there(
    tiny_data: Path, tmp_path: Path, reference: Path
) -> None:
    """From step 6 of a longer stable run, and from step 8, where the reference planned it."""
    long = tmp_path / "long"
    stages = [stage("stable", 20, STABLE)]
    keep = {"every_steps": 2, "keep_every_steps": 2}
    trained(tiny_recipe(tiny_data, stages=stages, checkpoints=keep), long)
    for branch_step in (6, 8):
        planned, branch = tmp_path / f"planned-{branch_step}", tmp_path / f"branch-{branch_step}"
        if branch_step == 8:
            planned = reference
        else:
            both = [stage("stable", branch_step, STABLE), stage("decay", 4, DECAY)]
            trained(tiny_recipe(tiny_data, stages=both), planned)
        decay = tiny_recipe(tiny_data, stages=[stage("decay", 4, DECAY)])
        trained(decay, branch, start_from=long / f"step-{branch_step}")
        end = branch_step + 4
        assert_same_checkpoint(branch / f"step-{end}", planned / f"step-{end}")
        told = losses(branch)
        assert told == {step: losses(planned)[step] for step in range(branch_step + 1, end + 1)}


def test_a_branch_goes_on_without_its_origin(tiny_data: Path, tmp_path: Path) -> None:
    origin, whole, cut = tmp_path / "origin", tmp_path / "whole", tmp_path / "cut"
    trained(tiny_recipe(tiny_data, stages=[stage("stable", 4, STABLE)]), origin)
    decay = tiny_recipe(
        tiny_data,
        model=None,
        start_from=str(origin / "step-4"),
        stages=[stage("decay", 6, DECAY)],
        checkpoints={"every_steps": 2},
    )
    trained(decay, whole)
    assert train_in_process(decay, cut, kill_after_step, 7) == KILLED
    shutil.rmtree(origin)
    assert train_in_process(decay, cut) == 0
    assert_same_run(cut, whole, 10)


def test_a_branch_reads_unread_data(tiny_data: Path, tmp_path: Path) -> None:
    origin, branch = tmp_path / "origin", tmp_path / "branch"
    trained(tiny_recipe(tiny_data, stages=[stage("stable", 5, STABLE)]), origin)
    decay = tiny_recipe(tiny_data, stages=[stage("decay", 5, DECAY)])
    trained(decay, branch, start_from=origin)  # of a run: its newest checkpoint
    before = Cursor(**state(origin / "step-5")["cursor"]).consumed
    cursor = state(branch / "step-10")["cursor"]
    assert cursor["stage_start"] == dict(before)
    assert sum(cursor["consumed"].values()) == 2 * sum(before.values()) == 40
    assert state(branch / "step-10")["tokens"] == 10 * BATCH
    start = next(event for event in read_events(branch) if event["event"] == "start")
    assert start["step"] == 5


def test_only_the_weights(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    """fresh_optimizer: as from any Hugging Face directory, the data from the beginning."""
    stages = [stage("more", 2, STABLE)]
    fresh = tiny_recipe(
        tiny_data, model=None, start_from=str(reference), fresh_optimizer=True, stages=stages
    )
    trained(fresh, tmp_path / "fresh")
    plain = tiny_recipe(tiny_data, model=None, start_from=str(reference / "final"), stages=stages)
    trained(plain, tmp_path / "plain")
    assert_same_checkpoint(tmp_path / "fresh" / "step-2", tmp_path / "plain" / "step-2")
    assert losses(tmp_path / "fresh").keys() == {1, 2}
    assert losses(tmp_path / "fresh")[1][0] < 3.6, "the weights were not taken"
    changed = plain.model_copy(update={"fresh_optimizer": True})
    with pytest.raises(UserError, match="fresh_optimizer has no effect"):
        trained(changed, tmp_path / "neither")


def test_a_finished_run_says_so_and_changes_nothing(
    tiny_data: Path, tmp_path: Path, reference: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    before = snapshot(run)
    said: list[str] = []
    result = trained(tiny_recipe(tiny_data), run, say=said.append)
    assert "is done: 12 steps" in "\n".join(said)
    assert (result.step, result.final) == (12, run / "final")
    assert snapshot(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 9])
def test_compiled_and_killed(tiny_data: Path, tmp_path: Path, step: int) -> None:
    runtime = {**tiny_recipe(tiny_data).runtime.model_dump(), "compile": "always"}
    recipe = tiny_recipe(tiny_data, runtime=runtime)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_in_process(recipe, whole) == 0
    assert train_in_process(recipe, run, kill_after_step, step) == KILLED
    assert train_in_process(recipe, run) == 0
    assert_same_run(run, whole, 12)
