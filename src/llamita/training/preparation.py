"""From a recipe to everything a run needs to know before it allocates anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llamita.architecture.config import ModelConfig
from llamita.data.build import TOKENIZER_DIRECTORY
from llamita.data.chat_template import chat_template, end_of_turn_ids
from llamita.data.manifest import Manifest
from llamita.data.packed_stream import PackedStream
from llamita.data.shards import Dataset, open_dataset
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from llamita.model.records import (
    has_training_state,
    read_config,
    recorded_parametrization,
    tokenizer_directory,
)
from llamita.planning.plan import TrainingPlan, make_plan
from llamita.planning.recipe_plan import (
    check_declared_shape,
    check_final,
    check_fingerprints,
    common_tokenizer,
    goes_on_from,
    origin_directory,
    refuse_idle_settings,
    settle_model,
    source_sizes,
)
from llamita.recipes.schema import Recipe
from llamita.training.adapting import Adapted, settle_adapted
from llamita.training.checkpoint import TrainingState, load_training_state, verify_checkpoint


@dataclass(frozen=True)
class Origin:
    """Where weights come from, and what goes on besides: None for a fresh optimizer."""

    directory: Path
    state: TrainingState | None


@dataclass(frozen=True)
class Preparation:
    """datasets and tokenizer are absent in a dry run on declared token counts alone.

    resumed: the run's own newest checkpoint. origin: what the run started from, if it has no
    checkpoint of its own yet. adapted: what an adapter is learnt to, where one is.
    """

    recipe: Recipe
    plan: TrainingPlan
    datasets: Mapping[str, Dataset]
    tokenizer: Tokenizer | None
    resumed: Origin | None
    origin: Origin | None
    adapted: Adapted | None = None
    warnings: tuple[str, ...] = ()

    @property
    def config(self) -> ModelConfig:
        return self.plan.config

    @property
    def recorded(self) -> TrainingState | None:
        """The state that this run goes on from, its own or the one it branches from."""
        source = self.resumed or self.origin
        return None if source is None else source.state


def prepare(
    recipe: Recipe, *, resume: Path | None = None, allow_declared: bool = False
) -> Preparation:
    """Open the data, settle the model's shape, and plan.

    Args:
        resume: the run's own newest checkpoint; then `start_from` is history and is not opened.
        allow_declared: take declared token counts where a dataset is absent.

    Raises:
        UserError: data, tokenizer, model and recipe do not fit together; a damaged checkpoint.
    """
    if recipe.evaluation is not None and find_spec("lm_eval") is None:
        raise UserError("evaluation: tasks need lm-eval: pip install 'llamita[eval]'")
    there = {name: Path(source.path) for name, source in recipe.datasets.items()}
    datasets = {name: open_dataset(path) for name, path in there.items() if path.exists()}
    manifests = {name: dataset.manifest for name, dataset in datasets.items()}
    sizes = source_sizes(recipe, manifests, allow_declared=allow_declared)
    tokenizer = None
    if common_tokenizer(recipe, manifests) is not None:
        tokenizer = load_tokenizer(_with_template(datasets).path / TOKENIZER_DIRECTORY)
    resumed = _open_checkpoint(resume) if resume is not None else None
    origin = None if resumed is not None else _open_origin(recipe, allow_declared)
    source = resumed or origin
    adapted = None
    if source is None:
        config, parametrization = settle_model(recipe, tokenizer)
    else:
        config = read_config(source.directory)
        adapted = settle_adapted(recipe, source.directory)
        if origin is not None and adapted is not None and adapted.adapter is not None:
            _refuse_live_reference(recipe, adapted.adapter)
        if source.state is not None:
            recorded = source.state.values["datasets"]
            check_fingerprints(recipe, recorded, manifests, source.directory)
        parametrization = recipe.parametrization or recorded_parametrization(source.directory)
        if tokenizer is not None:
            _check_tokenizer(source.directory, config, tokenizer)
    config = _with_turn_ends(config, tokenizer, manifests)
    refuse_idle_settings(recipe, parametrization)
    branch = _branch_point(resumed, origin)
    plan = make_plan(
        recipe,
        config,
        parametrization,
        sizes,
        consumed=branch["consumed"],
        first_step=branch["step"],
    )
    check_final(recipe, plan, manifests)
    warnings = () if origin is None else _warnings(recipe, plan, origin)
    warnings += _cut_examples(plan, datasets) + _unknown_base(adapted)
    return Preparation(recipe, plan, datasets, tokenizer, resumed, origin, adapted, warnings)


def _refuse_live_reference(recipe: Recipe, adapter: Path) -> None:
    """The base alone is not the model that such a run begins with."""
    for index, stage in enumerate(recipe.stages):
        if getattr(stage.objective, "reference", None) == "live":
            raise UserError(
                f"stages.{index}.objective.reference: live is the base without its adapter, but "
                f"this run begins with the trained adapter {adapter}; write precomputed"
            )


def _with_template(datasets: Mapping[str, Dataset]) -> Dataset:
    """The dataset whose tokenizer the model gets: all are one, but only chats have its template."""
    return next(
        (dataset for dataset in datasets.values() if dataset.manifest.kind != "text"),
        next(iter(datasets.values())),
    )


def _with_turn_ends(
    config: ModelConfig, tokenizer: Tokenizer | None, manifests: Mapping[str, Manifest]
) -> ModelConfig:
    """What ends a turn ends a text, in models that learn to converse: whoever writes with them
    stops there."""
    if tokenizer is None or all(manifest.kind == "text" for manifest in manifests.values()):
        return config
    ends = end_of_turn_ids(tokenizer, chat_template(tokenizer))
    ids = list(dict.fromkeys((*config.eos_token_ids, *ends)))
    return config.replace(eos_token_id=ids[0] if len(ids) == 1 else ids)


def _cut_examples(plan: TrainingPlan, datasets: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Examples that rows are too short for."""
    warnings: dict[str, None] = {}
    for stage in plan.stages:
        for name in stage.stage.mixture:
            stream = datasets[name].train if name in datasets else None
            if not isinstance(stream, PackedStream):
                continue
            facts = stream.facts(stage.sequence_length)
            if facts.truncated or facts.left_out:
                warnings[
                    f"{name}: of {facts.examples + facts.left_out:,} examples {facts.truncated:,} "
                    f"were cut to fit into {stage.sequence_length:,} tokens and {facts.left_out:,} "
                    "left out, as nothing that learns would have stayed; raise sequence_length to "
                    "keep them whole"
                ] = None
    return tuple(warnings)


def _unknown_base(adapted: Adapted | None) -> tuple[str, ...]:
    if adapted is None or adapted.adapter is None or adapted.is_recorded:
        return ()
    return (
        f"{adapted.adapter} records no fingerprint of its base: whether {adapted.directory} is the "
        "model it was trained on is not known",
    )


def _warnings(recipe: Recipe, plan: TrainingPlan, origin: Origin) -> tuple[str, ...]:
    """Scaling that a foreign checkpoint may have meant, and text that a branch would meet again."""
    warnings = []
    if origin.state is None:
        if plan.config.logits_scaling != 1 and plan.parametrization != "minicpm":
            warnings.append(
                f"{origin.directory} has MiniCPM's multipliers, but all its tensors learn at one "
                "rate; parametrization: minicpm would divide that of the block matrices by "
                f"{plan.config.logits_scaling:g}"
            )
        return tuple(warnings)
    other = {"adamw": "momentum_buffer.", "muon": "exp_avg.model.layers.0.mlp.up_proj."}
    if any(key.startswith(other[recipe.optimizer.kind]) for key in origin.state.tensors):
        warnings.append(
            f"the matrices of {origin.directory} were trained by another optimizer than "
            f"{recipe.optimizer.kind}: their moments begin afresh, all else goes on"
        )
    seed = origin.state.values["seed"]
    if seed != recipe.seed:
        warnings.append(
            f"seed is {recipe.seed}, {origin.directory} had {seed}: this branch reads the data in "
            "another order, and meets again what was read before"
        )
    lengths = {key.rpartition("@")[0]: key.rpartition("@")[2] for key in plan.consumed}
    for stage in plan.stages:
        for name in stage.stage.mixture:
            if name in lengths and f"{name}@{stage.sequence_length}" not in plan.consumed:
                warnings.append(
                    f"{name} was read in windows of {lengths[name]}, stage {stage.stage.name} "
                    f"reads windows of {stage.sequence_length}: it begins anew, and meets again "
                    "what was read before"
                )
    return tuple(warnings)


def _branch_point(resumed: Origin | None, origin: Origin | None) -> dict[str, Any]:
    """Step and windows consumed when the recipe's first stage began."""
    if resumed is not None and resumed.state is not None:
        return dict(resumed.state.values["branch_point"])
    if origin is not None and origin.state is not None:
        values = origin.state.values
        return {"step": values["step"], "consumed": values["cursor"]["consumed"]}
    return {"step": 0, "consumed": {}}


def fingerprints(datasets: Mapping[str, Dataset]) -> dict[str, str]:
    return {name: dataset.fingerprint for name, dataset in datasets.items()}


def _open_checkpoint(directory: Path) -> Origin:
    verify_checkpoint(directory)
    return Origin(directory, load_training_state(directory))


def _open_origin(recipe: Recipe, allow_declared: bool) -> Origin | None:
    """What `start_from` names."""
    directory = origin_directory(recipe, allow_declared=allow_declared)
    if directory is None:
        return None
    check_declared_shape(recipe, read_config(directory), directory)
    goes_on = goes_on_from(recipe, directory)
    if not has_training_state(directory):
        return Origin(directory, None)
    if not goes_on:
        verify_checkpoint(directory)
        return Origin(directory, None)
    return _open_checkpoint(directory)


def _check_tokenizer(directory: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """The data must have been encoded with the model's own tokenizer."""
    if load_tokenizer(tokenizer_directory(directory)).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the data were built with another tokenizer than that of {directory}; build them "
            f"again with --tokenizer {directory}"
        )
    if config.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"{directory} has {config.vocab_size:,} embeddings for a tokenizer of "
            f"{tokenizer.vocab_size:,} tokens; its config.json and tokenizer.json do not match"
        )
