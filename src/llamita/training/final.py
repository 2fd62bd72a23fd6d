"""`final/`: the model that a run was for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.model.huggingface import load_state, save_model
from llamita.training.checkpoint import (
    PROVENANCE,
    TrainingState,
    is_intact,
    load_training_state,
    step_directories,
    write_directory,
)
from llamita.training.preparation import Preparation


def write_model(
    directory: Path,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
) -> None:
    """A whole Hugging Face directory: config, weights, tokenizer."""
    save_model(directory, weights, config, dtype)
    tokenizer.save(directory)


def write_final(preparation: Preparation, run: Path) -> Path:
    """Make `final/` from the checkpoint that the recipe chooses, unless it is that already.

    Raises:
        UserError: the recipe names a checkpoint that the run does not have.
    """
    recipe, target = preparation.recipe, run / "final"
    source = _choose(run, recipe.checkpoints.final)
    values = load_training_state(source).values
    provenance = {
        "recipe": recipe.name,
        "step": values["step"],
        "tokens": values["tokens"],
        "dtype": recipe.checkpoints.final_dtype,
        "parametrization": values["parametrization"],
        "datasets": values["datasets"],
        "validation": values["validation"],
    }
    record = target / "training" / PROVENANCE
    if record.is_file() and json.loads(record.read_text()) == provenance and is_intact(target):
        return target
    weights = load_state(source)
    assert preparation.tokenizer is not None
    tokenizer = preparation.tokenizer
    dtype = torch.bfloat16 if recipe.checkpoints.final_dtype == "bfloat16" else torch.float32
    return write_directory(
        target,
        lambda directory: write_model(directory, weights, preparation.config, tokenizer, dtype),
        TrainingState(provenance, {}),
        record=PROVENANCE,
    )


def _choose(run: Path, final: str) -> Path:
    directories = step_directories(run)
    newest = max(directories)
    step = newest
    if final == "best":
        best = load_training_state(directories[newest]).values["best"]
        step = newest if best is None else best["step"]
    elif final != "last":
        step = int(final.removeprefix("step-"))
    if step not in directories:
        there = ", ".join(path.name for path in directories.values())
        raise UserError(
            f"checkpoints.final: {final}, but {run} has no such checkpoint (there are {there}); "
            "choose one of them with --set checkpoints.final=step-N"
        )
    return directories[step]
