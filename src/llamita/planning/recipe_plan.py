"""A recipe's plan from files alone: its model's shape, its data's sizes, and what must hold.

`training/preparation.py` settles the same by the same functions, with data and weights open. Only
`plan_recipe` reads files, and no more than manifests and JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.architecture.presets import Parametrization, Preset, preset
from llamita.errors import UserError
from llamita.planning.plan import SourceSize, TrainingPlan, make_plan, steps_to_average
from llamita.recipes.loading import load_recipe, override_recipe
from llamita.recipes.schema import LastCheckpoints, Preference, Recipe

if TYPE_CHECKING:
    from llamita.data.manifest import Manifest, TokenizerRecord


class Vocabulary(Protocol):
    """What of a tokenizer enters a model's config."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...


@dataclass(frozen=True)
class _Recorded:
    """A vocabulary as a manifest records it, which says nothing of padding."""

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None = None


def plan_recipe(recipe: str | Path | Recipe, overrides: Iterable[str] = ()) -> TrainingPlan:
    """The plan of `llamita train RECIPE --dry-run`, worked out without torch.

    Data that are there count as their manifests say, absent ones as declared. What only opening
    them can tell (a truncated shard, weights that do not fit their config.json, a model's tokenizer
    that is not the data's) is found when training is prepared. `pad_token_id` is left out.

    Args:
        recipe: a recipe, its file, a run's directory, or a shipped recipe's name.
        overrides: `key.path=value`, applied to the recipe.

    Raises:
        UserError: the recipe is at fault, or does not fit its data or the model it starts from.
    """
    if isinstance(recipe, Recipe):
        resolved = override_recipe(recipe, overrides)
    else:
        resolved = load_recipe(recipe, overrides)
    manifests = _read_manifests(resolved)
    sizes = source_sizes(resolved, manifests, allow_declared=True)
    record = common_tokenizer(resolved, manifests)
    step, consumed = 0, {}
    directory = origin_directory(resolved, allow_declared=True)
    if directory is None:
        config, parametrization = settle_model(resolved, _vocabulary(record))
    else:
        from llamita.model.records import read_config, recorded_parametrization, training_values

        config = read_config(directory)
        check_declared_shape(resolved, config, directory)
        parametrization = resolved.parametrization or recorded_parametrization(directory)
        if goes_on_from(resolved, directory):
            values = training_values(directory)
            check_fingerprints(resolved, values["datasets"], manifests, directory)
            step, consumed = values["step"], values["cursor"]["consumed"]
    refuse_idle_settings(resolved, parametrization)
    plan = make_plan(resolved, config, parametrization, sizes, consumed=consumed, first_step=step)
    check_final(resolved, plan, manifests)
    return plan


def _vocabulary(record: TokenizerRecord | None) -> Vocabulary | None:
    return None if record is None else _Recorded(record.vocab_size, record.bos_id, record.eos_id)


def _read_manifests(recipe: Recipe) -> dict[str, Manifest]:
    there = {
        name: path
        for name, source in recipe.datasets.items()
        if (path := Path(source.path)).exists()
    }
    if not there:
        return {}
    from llamita.data.manifest import read_manifest

    return {name: read_manifest(path) for name, path in there.items()}


# -- data -----------------------------------------------------------------------------------------


def source_sizes(
    recipe: Recipe, manifests: Mapping[str, Manifest], *, allow_declared: bool
) -> dict[str, SourceSize]:
    """Training tokens of every dataset: its manifest's, else the declared ones if allowed.

    Raises:
        UserError: a dataset is absent, and its declared tokens too or not allowed.
    """
    check_kinds(recipe, manifests)
    sizes = {}
    for name, source in recipe.datasets.items():
        if name in manifests:
            sizes[name] = _size(Path(source.path), manifests[name])
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
    return sizes


def _size(path: Path, manifest: Manifest) -> SourceSize:
    rows = None
    if manifest.kind != "text":
        from llamita.data.packed_stream import packed_rows

        rows = cache(partial(packed_rows, path, manifest, "train"))
    learns = None if manifest.chats is None else manifest.chats.learning_tokens.get("train")
    return SourceSize(manifest.splits["train"].tokens, False, rows, learns)


def check_kinds(recipe: Recipe, manifests: Mapping[str, Manifest]) -> None:
    """Raises:
    UserError: a stage reads data that its objective cannot learn from.
    """
    for index, stage in enumerate(recipe.stages):
        wants_pairs = isinstance(stage.objective, Preference)
        for name in stage.mixture:
            if name not in manifests or (manifests[name].kind == "preferences") == wants_pairs:
                continue
            kind = manifests[name].kind
            raise UserError(
                f"stages.{index}.objective: {stage.objective.kind}, but datasets.{name} "
                f"({recipe.datasets[name].path}) holds {kind}; "
                + (
                    "preferences are learnt from pairs alone (llamita data build --preferences)"
                    if wants_pairs
                    else "pairs are learnt with objective: {kind: preference}"
                )
            )


def common_tokenizer(recipe: Recipe, manifests: Mapping[str, Manifest]) -> TokenizerRecord | None:
    """The tokenizer that all datasets were built with; None where there is none of them.

    Raises:
        UserError: they were built with several.
    """
    first: str | None = None
    for name, manifest in manifests.items():
        if first is None:
            first = name
        elif manifest.tokenizer.fingerprint != manifests[first].tokenizer.fingerprint:
            paths = [recipe.datasets[key].path for key in (name, first)]
            raise UserError(
                f"datasets.{name} ({paths[0]}) and datasets.{first} ({paths[1]}) "
                "were built with different tokenizers; build them again with the same --tokenizer"
            )
    return None if first is None else manifests[first].tokenizer


def check_fingerprints(
    recipe: Recipe, recorded: Mapping[str, str], manifests: Mapping[str, Manifest], where: Path
) -> None:
    """A cursor counts windows of one dataset; in another it would point anywhere.

    Raises:
        UserError: a dataset is not the one that the checkpoint at `where` was trained on.
    """
    for name, fingerprint in recorded.items():
        if name in manifests and manifests[name].fingerprint != fingerprint:
            raise UserError(
                f"datasets.{name}: {recipe.datasets[name].path} is not the data that {where} was "
                "trained on (its fingerprint differs); give the new data another name under "
                "datasets, and it is read from its beginning"
            )


# -- the model ------------------------------------------------------------------------------------


def settle_model(
    recipe: Recipe, vocabulary: Vocabulary | None
) -> tuple[ModelConfig, Parametrization]:
    """The shape of a recipe that names a `model`, with the data's vocabulary where it is known.

    Raises:
        UserError: an unknown preset or key, an impossible shape, too small a vocabulary.
    """
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
            if "vocab_size" not in changes and vocabulary is not None:
                changes["vocab_size"] = vocabulary.vocab_size
            config = ModelConfig(**changes)
    if vocabulary is not None:
        stated = "vocab_size" in recipe.model if isinstance(recipe.model, dict) else False
        if stated and config.vocab_size < vocabulary.vocab_size:
            raise UserError(
                f"model.vocab_size {config.vocab_size:,} is smaller than the data's vocabulary of "
                f"{vocabulary.vocab_size:,} tokens; leave it out and it follows the tokenizer"
            )
        config = config.replace(
            vocab_size=config.vocab_size if stated else vocabulary.vocab_size,
            bos_token_id=vocabulary.bos_id,
            eos_token_id=vocabulary.eos_id,
            pad_token_id=vocabulary.pad_id,
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


def origin_directory(recipe: Recipe, *, allow_declared: bool = False) -> Path | None:
    """What a recipe's `start_from` names, of a whole run its newest checkpoint; None without one.

    Args:
        allow_declared: None too where it is not there, and `model` declares what it is.

    Raises:
        UserError: no such model.
    """
    from llamita.model.locate import locate
    from llamita.model.records import step_directories

    if recipe.start_from is None:
        return None
    directories = step_directories(Path(recipe.start_from))
    if directories:
        return directories[max(directories)]
    try:
        return locate(recipe.start_from)
    except UserError:
        if allow_declared and recipe.model is not None:
            return None
        raise


def check_declared_shape(recipe: Recipe, config: ModelConfig, directory: Path) -> None:
    """Raises:
    UserError: `model` declares another shape than that of the checkpoint in `start_from`.
    """
    if recipe.model is None:
        return
    declared, _ = settle_model(recipe, None)
    apart = {"bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"}
    ours, theirs = (shape.model_dump(exclude=apart) for shape in (declared, config))
    differing = [
        f"{key} {value} instead of {theirs[key]}"
        for key, value in ours.items()
        if value != theirs[key]
    ]
    if differing:
        raise UserError(
            f"model declares another shape than start_from's, {directory}: {', '.join(differing)}; "
            "leave model out, or correct one of them"
        )


def goes_on_from(recipe: Recipe, directory: Path) -> bool:
    """Whether optimizer, schedule and cursor go on from there, and not the weights alone.

    Raises:
        UserError: `fresh_optimizer`, and there is no optimizer to leave out.
    """
    from llamita.model.adapter_directory import is_adapter
    from llamita.model.records import has_training_state

    if has_training_state(directory):
        # An adapter's moments go on; those of a whole model are none of an adapter that begins.
        adapts = recipe.adapter is None or is_adapter(directory)
        return adapts and not recipe.fresh_optimizer
    if recipe.fresh_optimizer:
        raise UserError(
            f"fresh_optimizer has no effect: {directory} carries no optimizer state anyway"
        )
    return False


# -- what must hold -------------------------------------------------------------------------------


def refuse_idle_settings(recipe: Recipe, parametrization: Parametrization) -> None:
    """Raises:
    UserError: a setting that would have no effect under the model's parametrization.
    """
    coupling = recipe.optimizer.weight_decay_follows
    if coupling == "base_learning_rate" and parametrization != "minicpm":
        raise UserError(
            "optimizer.weight_decay_follows: base_learning_rate has no effect where all tensors "
            f"learn at one rate, as under parametrization {parametrization}; leave it out"
        )


def check_final(recipe: Recipe, plan: TrainingPlan, manifests: Mapping[str, Manifest]) -> None:
    """What `final/` is to be made from must come about, or days of training end in an error.

    Raises:
        UserError: it will not.
    """
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
    held_out = [manifest.splits["validation"].tokens for manifest in manifests.values()]
    if final == "best" and manifests and not any(held_out):
        raise UserError(
            "checkpoints.final: best needs held-out text to choose by, and no dataset has any; "
            "write last, or build the data with a --validation share"
        )
