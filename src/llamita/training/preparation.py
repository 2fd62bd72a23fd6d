"""From a recipe to everything a run needs to know before it allocates anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.architecture.presets import Parametrization, Preset, preset
from llamita.data.build import TOKENIZER_DIRECTORY
from llamita.data.shards import Dataset, open_dataset
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from llamita.model.huggingface import read_config
from llamita.model.locate import locate
from llamita.planning.plan import SourceSize, TrainingPlan, make_plan
from llamita.recipes.schema import LastCheckpoints, Recipe
from llamita.training.averaging import steps_to_average
from llamita.training.checkpoint import (
    TrainingState,
    has_training_state,
    load_training_state,
    recorded_parametrization,
    step_directories,
    verify_checkpoint,
)


@dataclass(frozen=True)
class Origin:
    """Where weights come from, and what goes on besides: None for a fresh optimizer."""

    directory: Path
    state: TrainingState | None


@dataclass(frozen=True)
class Preparation:
    """datasets and tokenizer are absent in a dry run on declared token counts alone.

    resumed: the run's own newest checkpoint. origin: what the run started from, if it has no
    checkpoint of its own yet.
    """

    recipe: Recipe
    plan: TrainingPlan
    datasets: Mapping[str, Dataset]
    tokenizer: Tokenizer | None
    resumed: Origin | None
    origin: Origin | None
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
    datasets, sizes = _open_datasets(recipe, allow_declared)
    tokenizer = _common_tokenizer(datasets)
    resumed = _open_checkpoint(resume) if resume is not None else None
    origin = _open_origin(recipe) if resumed is None else None
    source = resumed or origin
    if source is None:
        config, parametrization = _model_from_scratch(recipe, tokenizer)
    else:
        config = read_config(source.directory)
        if source.state is not None:
            check_fingerprints(source.state, datasets, source.directory)
        parametrization = recipe.parametrization or recorded_parametrization(source.directory)
        if tokenizer is not None:
            _check_tokenizer(source.directory, config, tokenizer)
    _refuse_idle_settings(recipe, parametrization)
    branch = _branch_point(resumed, origin)
    plan = make_plan(
        recipe,
        config,
        parametrization,
        sizes,
        consumed=branch["consumed"],
        first_step=branch["step"],
    )
    _check_final(recipe, plan, datasets)
    warnings = () if origin is None else _warnings(recipe, plan, origin)
    return Preparation(recipe, plan, datasets, tokenizer, resumed, origin, warnings)


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


def _check_final(recipe: Recipe, plan: TrainingPlan, datasets: Mapping[str, Dataset]) -> None:
    """What `final/` is to be made from must come about, or days of training end in an error."""
    final = recipe.checkpoints.final
    first, last = plan.first_step, plan.first_step + plan.num_steps
    if final.startswith("step-") and not first < int(final.removeprefix("step-")) <= last:
        raise UserError(
            f"checkpoints.final: {final} is not among the steps that this recipe takes "
            f"({first + 1:,} to {last:,}); name one of them, or write last or best"
        )
    if isinstance(recipe.averaging, LastCheckpoints):
        steps = steps_to_average(plan, recipe.averaging)
        if len(steps) < recipe.averaging.checkpoints:
            raise UserError(
                f"averaging.checkpoints: {recipe.averaging.checkpoints}, but this recipe writes "
                f"only {len(steps)} to average (at steps {', '.join(map(str, steps))}); lower it, "
                "or checkpoints.every_steps"
            )
    if final == "best" and datasets and not any(d.validation.num_tokens for d in datasets.values()):
        raise UserError(
            "checkpoints.final: best needs held-out text to choose by, and no dataset has any; "
            "write last, or build the data with a --validation share"
        )


def _refuse_idle_settings(recipe: Recipe, parametrization: Parametrization) -> None:
    coupling = recipe.optimizer.weight_decay_follows
    if coupling == "base_learning_rate" and parametrization != "minicpm":
        raise UserError(
            "optimizer.weight_decay_follows: base_learning_rate has no effect where all tensors "
            f"learn at one rate, as under parametrization {parametrization}; leave it out"
        )


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


def check_fingerprints(state: TrainingState, datasets: Mapping[str, Dataset], where: Path) -> None:
    """A cursor counts windows of one dataset; in another it would point anywhere."""
    for name, recorded in state.values["datasets"].items():
        if name in datasets and datasets[name].fingerprint != recorded:
            raise UserError(
                f"datasets.{name}: {datasets[name].path} is not the data that {where} was trained "
                "on (its fingerprint differs); give the new data another name under datasets, and "
                "it is read from its beginning"
            )


def _open_datasets(
    recipe: Recipe, allow_declared: bool
) -> tuple[dict[str, Dataset], dict[str, SourceSize]]:
    datasets: dict[str, Dataset] = {}
    sizes: dict[str, SourceSize] = {}
    for name, source in recipe.datasets.items():
        path = Path(source.path)
        if path.exists():
            datasets[name] = open_dataset(path)
            sizes[name] = SourceSize(datasets[name].train.num_tokens, declared=False)
        elif not allow_declared:
            raise UserError(
                f"datasets.{name}: there is no data at {source.path}; make it with `llamita data "
                f"build SOURCE… --out {source.path} --tokenizer DIR`, or point elsewhere with "
                f"--set datasets.{name}.path=DIR"
            )
        elif source.tokens is None:
            raise UserError(
                f"datasets.{name}: there is no data at {source.path}, and the recipe declares no "
                f"token count to plan with; add --set datasets.{name}.tokens=1e9"
            )
        else:
            sizes[name] = SourceSize(source.tokens, declared=True)
    return datasets, sizes


def _common_tokenizer(datasets: Mapping[str, Dataset]) -> Tokenizer | None:
    first: str | None = None
    for name, dataset in datasets.items():
        if first is None:
            first = name
        elif (
            dataset.manifest.tokenizer.fingerprint != datasets[first].manifest.tokenizer.fingerprint
        ):
            raise UserError(
                f"datasets.{name} ({dataset.path}) and datasets.{first} ({datasets[first].path}) "
                "were built with different tokenizers; build them again with the same --tokenizer"
            )
    return None if first is None else load_tokenizer(datasets[first].path / TOKENIZER_DIRECTORY)


def _model_from_scratch(
    recipe: Recipe, tokenizer: Tokenizer | None
) -> tuple[ModelConfig, Parametrization]:
    assert recipe.model is not None
    parametrization: Parametrization = "llama"
    changes: dict[str, Any] = {}
    if isinstance(recipe.model, str):
        base = preset(recipe.model)
        config, parametrization = base.config, base.parametrization
    else:
        changes = dict(recipe.model)
        named = changes.pop("preset", None)
        if named is not None:
            base = preset(named)
            parametrization = base.parametrization
            config = _vary(base, changes)
        elif "model_type" in changes:
            config = ModelConfig.from_huggingface(changes)
        else:
            if "vocab_size" not in changes and tokenizer is not None:
                changes["vocab_size"] = tokenizer.vocab_size
            config = ModelConfig(**changes)
    if tokenizer is not None:
        stated = "vocab_size" in recipe.model if isinstance(recipe.model, dict) else False
        if stated and config.vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"model.vocab_size {config.vocab_size:,} is smaller than the data's vocabulary of "
                f"{tokenizer.vocab_size:,} tokens; leave it out and it follows the tokenizer"
            )
        config = config.replace(
            vocab_size=config.vocab_size if stated else tokenizer.vocab_size,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
    return config, recipe.parametrization or parametrization


def _vary(base: Preset, changes: dict[str, Any]) -> ModelConfig:
    """A preset with some keys changed, and what follows from them changed too."""
    if "hidden_size" in changes or "num_attention_heads" in changes:
        changes.setdefault("head_dim", None)
    config = base.config.replace(**changes)
    if base.parametrization == "minicpm":
        multipliers = minicpm_multipliers(config.hidden_size, config.num_hidden_layers)
        config = config.replace(**{k: v for k, v in multipliers.items() if k not in changes})
    return config


def _open_checkpoint(directory: Path) -> Origin:
    verify_checkpoint(directory)
    return Origin(directory, load_training_state(directory))


def _open_origin(recipe: Recipe) -> Origin | None:
    """What `start_from` names; of a whole run, its newest checkpoint."""
    if recipe.start_from is None:
        return None
    directories = step_directories(Path(recipe.start_from))
    directory = directories[max(directories)] if directories else locate(recipe.start_from)
    if has_training_state(directory):
        origin = _open_checkpoint(directory)
        return Origin(directory, None) if recipe.fresh_optimizer else origin
    if recipe.fresh_optimizer:
        raise UserError(
            f"fresh_optimizer has no effect: {directory} carries no optimizer state anyway"
        )
    return Origin(directory, None)


def _check_tokenizer(directory: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """The data must have been encoded with the model's own tokenizer."""
    if load_tokenizer(directory).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the data were built with another tokenizer than that of {directory}; build them "
            f"again with --tokenizer {directory}"
        )
    if config.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"{directory} has {config.vocab_size:,} embeddings for a tokenizer of "
            f"{tokenizer.vocab_size:,} tokens; its config.json and tokenizer.json do not match"
        )
