"""A tiny recipe, tiny data, and training in fresh processes that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from llamita.data.build import build_data
from llamita.recipes.loading import check_recipe
from llamita.recipes.schema import Recipe
from llamita.reporting.events import read_events
from llamita.training import devices, loop
from llamita.training.run import RunInterrupted, TrainingResult, train
from tests.data.corpus import sentences, small_tokenizer, write_records

WINDOW = 32
BATCH = 4 * WINDOW


def build_tiny_data(folder: Path) -> Path:
    """Two datasets of one tokenizer, `prose` and `code`, of some hundred windows of 32."""
    tokenizer = small_tokenizer()
    for number, (name, documents) in enumerate((("prose", 120), ("code", 60))):
        records = [{"text": sentences(1000 * number + i, 2 + i % 5)} for i in range(documents)]
        source = write_records(folder / f"{name}.jsonl", records)
        build_data([source], folder / name, tokenizer, validation=0.1, num_workers=0)
    return folder


def stage(name: str, steps: int, schedule: dict[str, Any], **changes: Any) -> dict[str, Any]:
    mixture = {"prose": 0.7, "code": 0.3}
    base = {"name": name, "tokens": steps * BATCH, "mixture": mixture, "schedule": schedule}
    return {**base, **changes}


STABLE: dict[str, Any] = {"kind": "constant", "warmup_tokens": 2 * BATCH}
DECAY: dict[str, Any] = {"kind": "decay", "form": "linear"}


def tiny_values(data: Path, **changes: Any) -> dict[str, Any]:
    """A recipe's keys; `changes` replace whole top-level values."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
        },
        "sequence_length": WINDOW,
        "batch_tokens": BATCH,
        "optimizer": {"learning_rate": 1e-2},
        "datasets": {
            name: {"path": str(data / name), "max_epochs": 100} for name in ("prose", "code")
        },
        "stages": [stage("stable", 8, STABLE), stage("decay", 4, DECAY)],
        "checkpoints": {"every_steps": 3},
        "validation": {"tokens": 300},
        "runtime": {
            "device": "cpu",
            "dtype": "float32",
            "micro_batch_size": 2,
            "compile": "never",
            "threads": 1,
            "log_every_steps": 1,
        },
    }
    values.update(changes)
    return values


def tiny_recipe(data: Path, **changes: Any) -> Recipe:
    return check_recipe(tiny_values(data, **changes), "tiny")


def quiet(line: str) -> None:
    """Nobody reads these."""


def trained(recipe: Recipe | Path | str, out: Path, **arguments: Any) -> TrainingResult:
    result = train(recipe, out=out, say=arguments.pop("say", quiet), **arguments)
    assert isinstance(result, TrainingResult)
    return result


def cheap_matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Half a second of measuring that no test needs."""
    return 1e11


# -- what a run left behind ---------------------------------------------------------------------


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def optimizer_tensors(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "training" / "optimizer.safetensors")


def state(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / "training" / "state.json").read_text())
    return values


def losses(run_directory: Path) -> dict[int, tuple[float, float, float]]:
    """Step → loss, gradient norm, learning rate; each step exactly once."""
    steps = [event for event in read_events(run_directory) if event["event"] == "step"]
    found = {
        event["step"]: (event["loss"], event["grad_norm"], event["learning_rate"])
        for event in steps
    }
    assert len(found) == len(steps), "a step is told twice"
    return found


def assert_same_tensors(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    different = [name for name in ours if not torch.equal(ours[name], wanted[name])]
    assert not different, different


def assert_same_checkpoint(ours: Path, wanted: Path) -> None:
    """Weights, moments, guard, RNG and cursor, to the bit."""
    assert_same_tensors(weights(ours), weights(wanted))
    assert_same_tensors(optimizer_tensors(ours), optimizer_tensors(wanted))
    for key in ("step", "tokens", "cursor", "datasets", "validation"):
        assert state(ours)[key] == state(wanted)[key], key


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file but the lock: modification time and contents."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@contextmanager
def no_file_beyond(size: int | None) -> Iterator[None]:
    """Writing past `size` bytes of a file fails, as batch systems have it; akin to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


# -- fresh processes ----------------------------------------------------------------------------


def kill_after_step(step: int, number: int = signal.SIGKILL) -> None:
    """Make this process send itself a signal when `step` has been taken, before it is saved."""
    original = loop.Trainer._after_step

    def after_step(self: Any, plan: Any) -> None:
        if self.position.step == step:
            self.events.flush()
            os.kill(os.getpid(), number)
        original(self, plan)

    loop.Trainer._after_step = after_step  # type: ignore[method-assign]


def kill_at_call(module: Any, name: str, call: int) -> None:
    """Make this process kill itself at the `call`-th (from 1) call of `module.name`."""
    original = getattr(module, name)
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(module, name, counted)


def _child(
    recipe: Recipe, out: Path, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]
) -> None:
    devices.matmul_rate = cheap_matmul_rate
    if prepare is not None:
        prepare(*arguments)
    try:
        trained(recipe, out)
    except RunInterrupted as interrupted:
        (out / "message").write_text(str(interrupted))
        os._exit(128 + interrupted.signal_number)


def train_in_process(
    recipe: Recipe, out: Path, prepare: Callable[..., None] | None = None, *arguments: Any
) -> int:
    """Train in a process that has computed nothing before. Returns its exit code."""
    context = multiprocessing.get_context("forkserver")
    # The server imports and computes nothing; AdamW imports torch._dynamo at its first step.
    preloaded = ["llamita.training.run", "tests.training.helpers", "torch._dynamo"]
    context.set_forkserver_preload(preloaded)
    process = context.Process(target=_child, args=(recipe, out, prepare, arguments))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode
