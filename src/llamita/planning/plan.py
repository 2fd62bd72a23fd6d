"""What a recipe will do, worked out before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import flops_per_token, num_parameters
from llamita.architecture.lora import ALL_LINEAR, Lora, lora_parameters, lora_targets
from llamita.architecture.presets import Parametrization
from llamita.errors import UserError
from llamita.planning.quantities import tokens
from llamita.recipes.schema import Cosine, Decay, LastCheckpoints, Preference, Recipe, Stage


@dataclass(frozen=True)
class SourceSize:
    """Training tokens of a dataset. `declared`: taken from the recipe, the data being absent.

    rows: of packed examples, how many rows of a given length hold them; None for text, which is cut
    into windows. learning_tokens: of packed examples, how many tokens are learnt; None: all.
    """

    tokens: int
    declared: bool
    rows: Callable[[int], int] | None = None
    learning_tokens: int | None = None

    def windows(self, sequence_length: int) -> int:
        """What an epoch has of rows of `sequence_length`."""
        if self.rows is not None:
            return self.rows(sequence_length)
        return (self.tokens - 1) // sequence_length

    def learning_share(self, sequence_length: int) -> float:
        """Of the places in rows of `sequence_length`, padding among them, those that learn."""
        if self.learning_tokens is None:
            return 1.0
        places = max(1, self.windows(sequence_length)) * sequence_length
        return min(1.0, self.learning_tokens / places)


@dataclass(frozen=True)
class StagePlan:
    stage: Stage
    sequence_length: int
    batch_tokens: int
    learning_rate: float
    num_steps: int
    epochs: Mapping[str, tuple[float, float]]
    """Dataset → times read before and after this stage."""
    learning_share: float = 1.0
    """Of the tokens, those whose targets learn, on average: chats' questions and padding do not."""
    documents: bool = False
    """Whether attention stays inside documents."""

    @property
    def live_reference(self) -> bool:
        """Whether each step scores its pairs by the reference model too: one more pass forward."""
        objective = self.stage.objective
        return isinstance(objective, Preference) and objective.reference == "live"

    @property
    def tokens(self) -> int:
        """Tokens trained on, whole batches."""
        return self.num_steps * self.batch_tokens

    @property
    def windows_per_step(self) -> int:
        return self.batch_tokens // self.sequence_length


@dataclass(frozen=True)
class TrainingPlan:
    recipe: Recipe
    config: ModelConfig
    parametrization: Parametrization
    stages: tuple[StagePlan, ...]
    sizes: Mapping[str, SourceSize]
    first_step: int = 0
    """Steps that a branch inherits from the checkpoint it starts from."""
    consumed: Mapping[str, int] = field(default_factory=dict)
    """Windows that it inherits as read, by `name@sequence_length`."""

    @property
    def lora(self) -> Lora | None:
        """The adapter that learns; None where every parameter does."""
        return None if self.recipe.adapter is None else self.recipe.adapter.lora

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    def flops_per_token(self, sequence_length: int) -> int:
        """Of training, forward and backward, where all targets learn."""
        return flops_per_token(self.config, sequence_length, self.lora)

    def stage_flops(self, stage: StagePlan) -> int:
        """FLOPs a token of a stage, whose head works on the targets that learn."""
        return flops_per_token(
            self.config,
            stage.sequence_length,
            self.lora,
            learning_share=stage.learning_share,
            live_reference=stage.live_reference,
        )

    @property
    def flops(self) -> int:
        return sum(stage.tokens * self.stage_flops(stage) for stage in self.stages)

    @property
    def longest_sequence(self) -> int:
        return max(stage.sequence_length for stage in self.stages)


def make_plan(
    recipe: Recipe,
    config: ModelConfig,
    parametrization: Parametrization,
    sizes: Mapping[str, SourceSize],
    *,
    consumed: Mapping[str, int] | None = None,
    first_step: int = 0,
    limit_epochs: bool = True,
) -> TrainingPlan:
    """Steps, tokens and epochs of every stage.

    Args:
        sizes: dataset name → its training tokens.
        consumed: windows already read, by `name@sequence_length`, where the run branches.
        first_step: steps already taken there.
        limit_epochs: whether to hold the recipe to its max_epochs.

    Raises:
        UserError: a dataset too small for one window, or read more often than its max_epochs.
    """
    read = dict(consumed or {})
    stages = []
    for index, stage in enumerate(recipe.stages):
        length = stage.sequence_length or recipe.sequence_length
        batch = stage.batch_tokens or recipe.batch_tokens
        if length > config.max_position_embeddings:
            raise UserError(
                f"stages.{index}: sequence_length {length:,} exceeds the model's"
                f" max_position_embeddings {config.max_position_embeddings:,}; raise it under"
                " model, or shorten the sequence"
            )
        num_steps = -(-stage.tokens // batch)
        epochs = {}
        for name, share in stage.mixture.items():
            if sizes[name].windows(length) < 1:
                raise UserError(f"datasets.{name}: {_too_short(sizes[name], length)}")
            before = _epochs(read, name, sizes[name])
            key = f"{name}@{length}"
            read[key] = read.get(key, 0) + round(num_steps * (batch // length) * share)
            epochs[name] = (before, _epochs(read, name, sizes[name]))
            if limit_epochs:
                _refuse_repetition(recipe, index, name, epochs[name][1])
        rate = stage.learning_rate or recipe.optimizer.learning_rate
        # From 1 downwards, so that text alone is 1 and not nearly so.
        learns = 1 - sum(
            share * (1 - sizes[name].learning_share(length))
            for name, share in stage.mixture.items()
        )
        packed = any(sizes[name].rows is not None for name in stage.mixture)
        masked = isinstance(stage.objective, Preference) or stage.objective.document_masking
        stages.append(
            StagePlan(stage, length, batch, rate, num_steps, epochs, learns, packed or masked)
        )
    return TrainingPlan(
        recipe, config, parametrization, tuple(stages), sizes, first_step, dict(consumed or {})
    )


def _too_short(size: SourceSize, length: int) -> str:
    if size.rows is not None:
        return (
            f"no example fits into {length:,} tokens with anything that learns; raise "
            "sequence_length"
        )
    return (
        f"{size.tokens:,} training tokens are too few for one window of {length:,} + 1; add text, "
        "or shorten sequence_length"
    )


def _epochs(read: Mapping[str, int], name: str, size: SourceSize) -> float:
    """How often a dataset has been read, by windows of whatever lengths."""
    epochs = 0.0
    for key, count in read.items():
        source, _, length = key.rpartition("@")
        if source == name:
            epochs += count / max(1, size.windows(int(length)))
    return epochs


def _refuse_repetition(recipe: Recipe, index: int, name: str, epochs: float) -> None:
    limit = recipe.datasets[name].max_epochs
    if epochs > limit + 1e-9:
        raise UserError(
            f"stages.{index}.mixture.{name}: by the end of this stage the data would have been "
            f"read {epochs:.2f} times, more than datasets.{name}.max_epochs {limit:g}; train on "
            "fewer tokens, add text, or allow it with "
            f"--set datasets.{name}.max_epochs={epochs + 0.05:.1f}"
        )


def steps_to_average(plan: TrainingPlan, settings: LastCheckpoints) -> list[int]:
    """The run's last step and multiples of `every_steps` before it, ascending, `checkpoints` in all
    if the run is long enough.

    Steps at which an interruption saved are not among them: the mean does not depend on those.
    """
    every = plan.recipe.checkpoints.every_steps
    assert every is not None, "the recipe was checked"
    last = plan.first_step + plan.num_steps
    before = range((last - 1) // every * every, plan.first_step, -every)
    return sorted([last, *before[: settings.checkpoints - 1]])


def describe(plan: TrainingPlan) -> list[str]:
    """The plan in lines of plain text."""
    config = plan.config
    total = num_parameters(config)
    lines = [
        (
            f"{plan.recipe.name}: {total:,} parameters "
            f"({num_parameters(config, embedding=False):,} without embeddings)"
        ),
        (
            f"  shape       {config.num_hidden_layers} layers, hidden {config.hidden_size}, "
            f"ffn {config.intermediate_size}, {config.num_attention_heads} heads / "
            f"{config.num_key_value_heads} KV of {config.head_dim}, vocabulary "
            f"{config.vocab_size:,}, {'tied' if config.tie_word_embeddings else 'untied'} head"
        ),
        (
            f"  training    {tokens(plan.tokens)} tokens in {plan.num_steps:,} steps, "
            f"{plan.tokens / total:.3g} tokens per parameter, {plan.flops:.3g} FLOP in all"
        ),
    ]
    kinds = sorted({(stage.sequence_length, plan.stage_flops(stage)) for stage in plan.stages})
    each = ", ".join(
        f"{flops / 1e9:.4g} GFLOP a token at T = {length:,}" for length, flops in kinds
    )
    lines.append(f"  arithmetic  {each} ({_formula(plan)})")
    lines += _describe_tuning(plan)
    lines += _describe_parametrization(plan)
    for number, stage in enumerate(plan.stages):
        lines += _describe_stage(number, stage)
    sizes = ", ".join(
        f"{name} {tokens(size.tokens)}{' (declared)' if size.declared else ''}"
        for name, size in plan.sizes.items()
    )
    lines.append(f"  data        unique training tokens: {sizes}")
    if (asked := plan.recipe.evaluation) is not None:
        when = "" if asked.every_steps is None else f"every {asked.every_steps:,} steps and "
        lines.append(
            f"  evaluation  {', '.join(asked.tasks)}, {asked.limit:,} items of each task, {when}at "
            f"stages' ends; at most {asked.max_share:.1%} of the time"
        )
    return lines


def _formula(plan: TrainingPlan) -> str:
    products = "6·matmul parameters" if plan.lora is None else "4·matmul parameters + 6·adapters"
    formula = f"{products} + 12·L·heads·head_dim·T"
    if any(stage.live_reference for stage in plan.stages):
        formula += ", a third more of attention and 2·matmul parameters for the reference"
    if any(stage.learning_share < 1 for stage in plan.stages):
        formula += "; the head where targets learn"
    return formula


def _describe_tuning(plan: TrainingPlan) -> list[str]:
    lora = plan.lora
    if lora is None:
        return []
    total, learn = num_parameters(plan.config), lora_parameters(plan.config, lora)
    every = lora.targets == lora_targets(ALL_LINEAR)
    where = "all linear layers" if every else ", ".join(lora.targets)
    base = "" if lora.quantization is None else f", base in {lora.quantization}"
    return [
        (
            f"  tuning      LoRA r={lora.rank} on {where}: {learn:,} of {total:,} parameters learn "
            f"({learn / total:.2%}), scale {lora.scaling:g}{base}"
        )
    ]


def _describe_parametrization(plan: TrainingPlan) -> list[str]:
    config, rate = plan.config, plan.recipe.optimizer.learning_rate
    if plan.parametrization != "minicpm":
        return [f"  scaling     {plan.parametrization} initialisation, one learning rate {rate:g}"]
    m = config.logits_scaling
    std = plan.recipe.initializer_std or 0.1
    return [
        (
            f"  scaling     minicpm, m = {m:g}: matrices learn at {rate:g}/m = {rate / m:.6g} and "
            f"start at std {std:g}/√m = {std / m**0.5:.6g};"
        ),
        (
            f"              embedding ×{config.embedding_multiplier:g}, residual"
            f" ×{config.residual_multiplier:.6g}, logits ÷{config.logits_scaling:g}; embedding,"
            f" head and norms learn at {rate:g}"
        ),
    ]


def _describe_stage(number: int, plan: StagePlan) -> list[str]:
    learns = "" if plan.learning_share == 1 else f", {plan.learning_share:.0%} of which learn"
    mixture = " + ".join(f"{share:.4g} {name}" for name, share in plan.stage.mixture.items())
    epochs = ", ".join(
        f"{name} {before:.2f}→{after:.2f}" for name, (before, after) in plan.epochs.items()
    )
    return [
        (
            f"  stage {number} {plan.stage.name}: {tokens(plan.tokens)} tokens, "
            f"{plan.num_steps:,} steps of {plan.windows_per_step} × {plan.sequence_length:,} = "
            f"{tokens(plan.batch_tokens)} tokens{learns}"
        ),
        f"              {mixture}; epochs {epochs}",
        f"              learning rate {plan.learning_rate:g}, {_describe_schedule(plan.stage)}",
    ]


def _describe_schedule(stage: Stage) -> str:
    schedule = stage.schedule
    warmup = getattr(schedule, "warmup_tokens", 0)
    prefix = f"warm-up {tokens(warmup)}, then " if warmup else ""
    if schedule.kind == "constant":
        return f"{prefix}constant"
    if isinstance(schedule, Cosine):
        return f"{prefix}cosine to {schedule.final_fraction:g} of it"
    if schedule.half_life_tokens is not None:
        form = f"halving every {tokens(schedule.half_life_tokens)}"
    else:
        form = f"{schedule.form} to {schedule.end:g} of it"
    if isinstance(schedule, Decay):
        return f"decay: {form}"
    return f"{prefix}stable, then over the last {tokens(schedule.decay_tokens)} {form}"
