"""Checkpoints on disk: whole or not there, damage named, pruning, pointers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from llamita import durable
from llamita.durable import replace_synced
from llamita.errors import UserError
from llamita.model.records import recorded_parametrization
from llamita.training import checkpoint
from llamita.training.checkpoint import (
    TrainingState,
    clean_up,
    load_training_state,
    prune,
    save_checkpoint,
    step_directories,
    verify_checkpoint,
)
from tests.training.helpers import no_file_beyond

STATE = TrainingState({"step": 1, "x": [1, "é"]}, {"a": torch.arange(4.0)})


def save(run: Path, step: int, text: str = "weights", size: int = 1000) -> Path:
    def write_model(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(text.encode() * size)

    return save_checkpoint(run, step, write_model, STATE)


def test_round_trip(tmp_path: Path) -> None:
    directory = save(tmp_path, 7)
    assert directory == tmp_path / "step-7"
    verify_checkpoint(directory)
    state = load_training_state(directory)
    assert state.values == STATE.values
    assert torch.equal(state.tensors["a"], STATE.tensors["a"])
    assert (tmp_path / "latest").read_text() == "step-7\n"
    assert not list(tmp_path.glob("*.tmp"))


def test_no_optimizer_tensors(tmp_path: Path) -> None:
    directory = save_checkpoint(tmp_path, 1, lambda path: None, TrainingState({"step": 1}, {}))
    verify_checkpoint(directory)
    assert load_training_state(directory).tensors == {}


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", "cut", "has 6,999 bytes instead of 7,000"),
        ("model.safetensors", "alter", "has been altered"),
        ("model.safetensors", "remove", "is missing"),
        ("training/optimizer.safetensors", "alter", "has been altered"),
        ("training/state.json", "alter", "has been altered"),
        ("training/complete.json", "remove", "is not a finished checkpoint"),
        ("training/complete.json", "cut", "is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, damage: str, words: str) -> None:
    save(tmp_path, 4)
    directory = save(tmp_path, 6)
    file = directory / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1] if name != checkpoint.COMPLETE else content[:-9])
    else:
        file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(UserError) as caught:
        verify_checkpoint(directory)
    message = str(caught.value)
    assert words in message
    assert str(directory) in message
    assert Path(name).name in message
    if "complete" not in name:
        assert "go on from step-4 by removing step-6" in message


def test_the_only_checkpoint_damaged(tmp_path: Path) -> None:
    (save(tmp_path, 6) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no other checkpoint"):
        verify_checkpoint(tmp_path / "step-6")


def test_steps_are_sorted_as_numbers_and_unfinished_ones_left_out(tmp_path: Path) -> None:
    for step in (1000, 20, 3):
        save(tmp_path, step)
    (tmp_path / "step-9999.tmp").mkdir()
    (tmp_path / "step-8888").mkdir()
    (tmp_path / "step-best").mkdir()
    assert list(step_directories(tmp_path)) == [3, 20, 1000]


def test_pruning(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 100):
        save(tmp_path, step)
    assert prune(tmp_path, keep_last=2, kept=[10]) == [5, 15]
    assert list(step_directories(tmp_path)) == [10, 20, 100]
    assert prune(tmp_path, keep_last=1, kept=[10, 7]) == [20]
    assert not list(tmp_path.glob("*.tmp"))


def test_cleaning_up_leaves_whole_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "step-6.tmp" / "training").mkdir(parents=True)
    (tmp_path / "final.tmp").mkdir()
    clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-5"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, "old")
    save(tmp_path, 5, "new")
    verify_checkpoint(tmp_path / "step-5")
    assert (tmp_path / "step-5" / "model.safetensors").read_bytes().startswith(b"new")
    assert not list(tmp_path.glob("*.tmp"))


def test_everything_is_durable_before_it_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file and directory is fsynced before the rename, the rename before the pointer."""
    happened: list[tuple[str, str]] = []
    sync, rename, replace = durable.sync, Path.rename, Path.replace
    monkeypatch.setattr(
        durable, "sync", lambda path: (happened.append(("sync", path.name)), sync(path))
    )
    monkeypatch.setattr(
        Path, "rename", lambda a, b: (happened.append(("rename", b.name)), rename(a, b))[1]
    )
    monkeypatch.setattr(
        Path, "replace", lambda a, b: (happened.append(("replace", b.name)), replace(a, b))[1]
    )
    directory = save(tmp_path, 5)
    at = happened.index(("rename", "step-5"))
    before = [name for kind, name in happened[:at] if kind == "sync"]
    files = {path.name for path in directory.rglob("*") if path.is_file()}
    assert files | {"training", "step-5.tmp"} <= set(before)
    after = happened[at + 1 :]
    assert after.index(("sync", tmp_path.name)) < after.index(("replace", "latest"))


def _full(path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


@pytest.mark.parametrize("call", [1, 3, 5])
def test_a_full_disk_leaves_earlier_checkpoints_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    save(tmp_path, 4)
    original, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"step-5: .*No space left on device.*Earlier"):
        save(tmp_path, 5)
    verify_checkpoint(tmp_path / "step-4")
    assert list(step_directories(tmp_path)) == [4]
    assert (tmp_path / "latest").read_text() == "step-4\n"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("tensors", [True, False])
def test_a_real_failure_to_write(tmp_path: Path, tensors: bool) -> None:
    """Through Python's files, and through safetensors, which has errors of its own."""
    save(tmp_path, 4)
    big = TrainingState({}, {"a": torch.zeros(50_000)})
    write: Callable[[], Path] = partial(save, tmp_path, 5, size=100_000)
    if tensors:
        write = partial(save_checkpoint, tmp_path, 5, lambda path: None, big)
    with no_file_beyond(20_000), pytest.raises(UserError, match=r"could not write .*step-5"):
        write()
    verify_checkpoint(tmp_path / "step-4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-4"]


def test_any_other_failure_leaves_nothing_half_written(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 5, fails, STATE)
    assert not list(tmp_path.iterdir())


def test_small_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_synced(tmp_path / "f", "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: _full(tmp_path))
    with pytest.raises(UserError, match="No space left"):
        replace_synced(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"


def test_whose_scaling_a_model_was_trained_with(tmp_path: Path) -> None:
    assert recorded_parametrization(tmp_path) == "llama"
    for record in ("provenance.json", "state.json"):
        directory = tmp_path / record
        (directory / "training").mkdir(parents=True)
        (directory / "training" / record).write_text(json.dumps({"parametrization": "minicpm"}))
        assert recorded_parametrization(directory) == "minicpm"
