"""`final/`: the model that a run was for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.formats.model_card import README, Model, render_card
from llamita.model.adapter_directory import save_adapter
from llamita.model.huggingface import load_state, save_model
from llamita.model.records import PROVENANCE
from llamita.planning.plan import TrainingPlan, steps_to_average
from llamita.recipes.schema import LastCheckpoints, Recipe
from llamita.training.adapting import Adapted
from llamita.training.averaging import mean_of_checkpoints, running_average
from llamita.training.card import card_facts
from llamita.training.checkpoint import (
    TrainingState,
    is_intact,
    load_training_state,
    step_directories,
    write_directory,
)
from llamita.training.preparation import Preparation
from llamita.training.schedule import learning_rate_factor


def write_model(
    directory: Path,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
    *,
    adapted: Adapted | None = None,
) -> None:
    """A whole Hugging Face directory, config, weights and tokenizer; or an adapter's."""
    if adapted is None:
        save_model(directory, weights, config, dtype)
    else:
        save_adapter(directory, weights, adapted.lora, adapted.base(directory), config)
    tokenizer.save(directory)


def write_final(preparation: Preparation, run: Path) -> Path:
    """Make `final/` from the checkpoint that the recipe chooses, unless it is that already.

    Raises:
        UserError: the recipe names a checkpoint, or an average, that the run does not have.
    """
    recipe, target = preparation.recipe, run / "final"
    source = _choose(run, recipe.checkpoints.final)
    averaged = _averaged(preparation, run, source)
    values = load_training_state(source).values
    provenance = {
        "recipe": recipe.name,
        "step": values["step"],
        "tokens": values["tokens"],
        "dtype": recipe.checkpoints.final_dtype,
        "parametrization": values["parametrization"],
        "learning_rate": _rate_at_end(preparation.plan),
        "datasets": values["datasets"],
        # The mean of checkpoints is made after the run, and was not measured.
        "validation": None if len(averaged) > 1 else values["validation"],
    }
    if recipe.checkpoints.final == "average":
        assert recipe.averaging is not None
        steps = [int(path.name.removeprefix("step-")) for path in averaged]
        provenance["average"] = {**recipe.averaging.model_dump(), "steps": steps}
    facts = card_facts(preparation, run, values, provenance["validation"])
    provenance["card"] = facts.model_dump(mode="json")
    record = target / "training" / PROVENANCE
    if record.is_file() and json.loads(record.read_text()) == provenance and is_intact(target):
        return target
    weights = _weights(recipe.checkpoints.final, source, averaged)
    assert preparation.tokenizer is not None
    tokenizer, config, adapted = preparation.tokenizer, preparation.config, preparation.adapted
    # An adapter is kept in float32 whatever a whole model is.
    stored = "float32" if adapted is not None else recipe.checkpoints.final_dtype
    dtype = torch.bfloat16 if stored == "bfloat16" else torch.float32

    def write(directory: Path) -> None:
        write_model(directory, weights, config, tokenizer, dtype, adapted=adapted)
        known = facts
        if adapted is not None and facts.base is not None:
            base = facts.base.model_copy(update={"fingerprint": adapted.fingerprint})
            known = facts.model_copy(update={"base": base})
        card = render_card(known, Model(config, tokenizer, stored))
        (directory / README).write_text(card, encoding="utf-8")

    return write_directory(
        target,
        write,
        TrainingState(provenance, {}),
        record=PROVENANCE,
    )


def final_bits_per_byte(recipe: Recipe, validation: Mapping[str, Any] | None) -> float | None:
    """What the last validation says of `final/`: the average's figure where it is the average.

    The mean of several checkpoints is made when the run is over, and is not measured.
    """
    if validation is None:
        return None
    averaged = recipe.checkpoints.final == "average"
    figure: float | None = validation.get("average" if averaged else "bits_per_byte")
    return figure


def _rate_at_end(plan: TrainingPlan) -> float:
    """The learning rate of the last step: what tuning goes on with (arXiv 2404.06395, 6.3)."""
    last = plan.stages[-1]
    factor = learning_rate_factor(last.stage, last.num_steps - 1, last.batch_tokens)
    return last.learning_rate * factor


def _averaged(preparation: Preparation, run: Path, source: Path) -> list[Path]:
    """The checkpoints whose weights, or whose running average, `final/` is made from."""
    settings = preparation.recipe.averaging
    if preparation.recipe.checkpoints.final != "average" or not isinstance(
        settings, LastCheckpoints
    ):
        return [source]
    directories = step_directories(run)
    steps = steps_to_average(preparation.plan, settings)
    missing = [f"step-{step}" for step in steps if step not in directories]
    if missing:
        raise UserError(
            f"averaging.checkpoints: {settings.checkpoints} asks for {', '.join(missing)}, which "
            f"{run} no longer has; write a smaller number, or checkpoints.final: last"
        )
    return [directories[step] for step in steps]


def _weights(final: str, source: Path, averaged: list[Path]) -> dict[str, Tensor]:
    if len(averaged) > 1:
        return mean_of_checkpoints(averaged)
    return running_average(source) if final == "average" else load_state(source)


def _choose(run: Path, final: str) -> Path:
    directories = step_directories(run)
    newest = max(directories)
    step = newest
    if final == "best":
        best = load_training_state(directories[newest]).values["best"]
        step = newest if best is None else best["step"]
    elif final.startswith("step-"):
        step = int(final.removeprefix("step-"))
    if step not in directories:
        there = ", ".join(path.name for path in directories.values())
        raise UserError(
            f"checkpoints.final: {final}, but {run} has no such checkpoint (there are {there}); "
            "choose one of them with --set checkpoints.final=step-N"
        )
    return directories[step]
