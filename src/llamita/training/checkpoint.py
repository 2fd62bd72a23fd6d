"""Checkpoints: a Hugging Face directory, and what resuming needs in `training/` inside it.

    step-N/  config.json  model.safetensors  tokenizer.json  …        the model, float32 masters
             training/optimizer.safetensors  training/state.json      what resuming needs
             training/complete.json                                   written last: sizes and hashes

A save writes `step-N.tmp/`, makes every file durable, renames, makes the rename durable, moves the
`latest` pointer, and only then prunes. Whatever a crash leaves behind either is whole or is
named `.tmp`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llamita import durable
from llamita.errors import UserError
from llamita.model.records import COMPLETE, STATE, training_values
from llamita.model.records import step_directories as step_directories


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint knows beside the weights.

    values: JSON (step, stage, cursor, …). tensors: optimizer moments, guard window, RNG.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]


def save_checkpoint(
    run: Path, step: int, write_model: Callable[[Path], None], state: TrainingState
) -> Path:
    """Write `run/step-N` as the module's text says and move `latest` to it.

    Args:
        write_model: writes the Hugging Face directory's files into the path it is given.

    Raises:
        UserError: the disk is full. The half-written directory is gone by then.
    """
    return write_directory(run / f"step-{step}", write_model, state, pointer=run / "latest")


def write_directory(
    target: Path,
    write_model: Callable[[Path], None],
    state: TrainingState,
    *,
    pointer: Path | None = None,
    record: str = STATE,
) -> Path:
    """The durable part of `save_checkpoint`, for any target; an existing target is replaced.

    Args:
        pointer: a file that is made to name the directory once it is whole.
        record: file in `training/` that holds the state's values. Only under the default name is
            the directory one that training can go on from.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "training").mkdir(parents=True)
        write_model(temporary)
        if state.tensors:
            save_file(
                {name: tensor.contiguous() for name, tensor in state.tensors.items()},
                temporary / "training" / "optimizer.safetensors",
            )
        _write_json(temporary / "training" / record, state.values)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        complete = {
            str(path.relative_to(temporary)): [path.stat().st_size, file_hash(path)]
            for path in files
        }
        _write_json(temporary / COMPLETE, {"format": 1, "files": complete})
        for path in [*files, temporary / COMPLETE]:
            durable.sync(path)
        durable.sync(temporary / "training")
        durable.sync(temporary)
    except (OSError, SafetensorError) as error:  # safetensors tells a full disk in its own way
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"could not write the checkpoint {target}: {error}. Earlier "
            "checkpoints are untouched; free some space and run the same command again"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.exists():
        aside = target.with_name(target.name + ".old.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        temporary.rename(target)
        shutil.rmtree(aside)
    else:
        temporary.rename(target)
    durable.sync(target.parent)
    if pointer is not None:
        durable.replace_synced(pointer, f"{target.name}\n")
    return target


def verify_checkpoint(directory: Path) -> None:
    """Compare every file with what `complete.json` recorded.

    Raises:
        UserError: unfinished, truncated, altered or missing files, by name.
    """
    try:
        recorded = json.loads((directory / COMPLETE).read_text())["files"]
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} has no {COMPLETE}: it is not a finished checkpoint of a run"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(f"{directory / COMPLETE} is damaged: {error}") from error
    for name, (size, digest) in recorded.items():
        path = directory / name
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != size:
            problem = f"has {path.stat().st_size:,} bytes instead of {size:,}"
        elif file_hash(path) != digest:
            problem = "has been altered since it was written"
        else:
            continue
        others = [d.name for d in step_directories(directory.parent).values() if d != directory]
        instead = (
            f"go on from {', '.join(others)} by removing {directory.name}"
            if others
            else "there is no other checkpoint in this run"
        )
        raise UserError(f"checkpoint {directory}: {name} {problem}; {instead}")


def is_intact(directory: Path) -> bool:
    """Whether `verify_checkpoint` has nothing to say against it."""
    try:
        verify_checkpoint(directory)
    except UserError:
        return False
    return True


def load_training_state(directory: Path) -> TrainingState:
    """What `save_checkpoint` was given as state. Verify first."""
    from safetensors.torch import load_file

    values = training_values(directory)
    tensors = directory / "training" / "optimizer.safetensors"
    return TrainingState(values, load_file(tensors) if tensors.is_file() else {})


def clean_up(run: Path) -> None:
    """Remove what a crash during a save left half-written; put back what it had moved aside."""
    for path in run.glob("*.old.tmp"):
        target = path.with_name(path.name.removesuffix(".old.tmp"))
        if not target.exists():
            path.rename(target)
    for path in [*run.glob("step-*.tmp"), *run.glob("final*.tmp")]:
        shutil.rmtree(path)


def prune(run: Path, keep_last: int, kept: Iterable[int]) -> list[int]:
    """Delete all but the newest `keep_last` checkpoints and those in `kept`. Returns the deleted.

    A checkpoint is renamed before it is deleted, so that half a directory never looks whole.
    """
    directories = step_directories(run)
    spared = set(list(directories)[-keep_last:]) | set(kept)
    removed = [step for step in directories if step not in spared]
    for step in removed:
        aside = directories[step].with_name(f"step-{step}.tmp")
        directories[step].rename(aside)
        shutil.rmtree(aside)
    return removed


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
