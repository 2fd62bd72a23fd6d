"""The recipe: everything that decides what a training run computes, typed.

A recipe is a list of *stages* over one model. A stage is an objective × a mixture × a schedule.
Amounts are counted in tokens throughout (`2e9` reads as a number), so that a recipe says the same
thing at any batch size; steps follow from them and are rounded up to whole batches.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llamita.architecture.lora import ALL_LINEAR, Lora, lora_targets
from llamita.architecture.presets import Parametrization
from llamita.errors import did_you_mean
from llamita.recipes.card import Card as Card
from llamita.recipes.objectives import LanguageModelling as LanguageModelling
from llamita.recipes.objectives import Objective as Objective
from llamita.recipes.objectives import Preference as Preference
from llamita.recipes.quick_evaluation import QuickEvaluation as QuickEvaluation
from llamita.recipes.schedules import WSD as WSD
from llamita.recipes.schedules import Constant as Constant
from llamita.recipes.schedules import Cosine as Cosine
from llamita.recipes.schedules import Decay as Decay
from llamita.recipes.schedules import Schedule as Schedule
from llamita.recipes.settings import Count
from llamita.recipes.settings import Settings as Settings


class DatasetSource(Settings):
    """One directory made by `llamita data build`. A recipe may write just its path."""

    path: str
    tokens: Count | None = None
    """Declared unique training tokens: what a plan uses where the directory is absent."""
    max_epochs: Annotated[float, Field(gt=0)] = 4.0
    """Refuse to read the data more often than this. Four is where repetition starts to cost:
    Muennighoff et al. 2305.16264."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


class Stage(Settings):
    name: str
    tokens: Count
    mixture: dict[str, float]
    """Dataset name → share of this stage's tokens. Shares sum to 1."""
    schedule: Schedule = Constant()
    objective: Objective = LanguageModelling()
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """This stage's peak; by default the optimizer's."""
    batch_tokens: Count | None = None
    sequence_length: Count | None = None

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not value or not all(c.isalnum() or c in "-_." for c in value):
            raise ValueError(f"{value!r}: use letters, digits, '-', '_' and '.'")
        return value

    @field_validator("mixture")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        if not value:
            raise ValueError("names no dataset")
        for name, share in value.items():
            if not 0 < share <= 1:
                raise ValueError(f"share of {name!r} is {share}: shares lie above 0 and up to 1")
        total = sum((exact_share(share) for share in value.values()), Fraction(0))
        if abs(total - 1) > Fraction(1, 10**6):
            shown = " + ".join(f"{name} {share}" for name, share in value.items())
            raise ValueError(f"shares must sum to 1, but {shown} = {float(total):.6g}")
        return value

    @model_validator(mode="after")
    def _phases_fit(self) -> Stage:
        phases = {
            key: getattr(self.schedule, key, 0) or 0 for key in ("warmup_tokens", "decay_tokens")
        }
        if sum(phases.values()) > self.tokens:
            shown = " + ".join(f"{key} {tokens:,}" for key, tokens in phases.items() if tokens)
            raise ValueError(f"{shown} are more than the stage's {self.tokens:,} tokens")
        return self


class _Optimizer(Settings):
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak. Under `parametrization: minicpm` the block matrices learn at learning_rate / m."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """On matrices. Norms, biases and embeddings do not decay."""
    weight_decay_follows: Literal["scaled_learning_rate", "base_learning_rate"] = (
        "scaled_learning_rate"
    )
    """What a step's decay is multiplied by where a matrix learns at a scaled rate: its own rate
    (torch's AdamW and OpenBMB's code: scaled matrices decay less) or the unscaled one."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0


class AdamW(_Optimizer):
    """AdamW for every tensor."""

    kind: Literal["adamw"] = "adamw"

    @model_validator(mode="before")
    @classmethod
    def _not_muons(cls, value: object) -> object:
        idle = sorted(set(value) & _MUONS) if isinstance(value, dict) else []
        if idle:
            raise ValueError(f"{', '.join(idle)}: only with kind: muon, and the kind is adamw")
        return value


class Muon(_Optimizer):
    """Muon for the matrices of blocks; AdamW, with the keys of that kind, for all else."""

    kind: Literal["muon"] = "muon"
    matrix_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak of Muon's matrices, before 1/m; by default `learning_rate`. Where a stage has a peak of
    its own, the two keep their ratio."""
    learning_rate_rule: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """What a rows × cols matrix's rate is multiplied by: 0.2·√max(rows, cols), after which AdamW's
    rates and decay fit (arXiv 2502.16982, 2.2), or √max(1, rows/cols) (Keller Jordan's Muon)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    nesterov: bool = True
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton–Schulz iterations of an orthogonalisation."""


_MUONS = set(Muon.model_fields) - set(AdamW.model_fields)


def _adamw_by_default(value: object) -> object:
    return {"kind": "adamw", **value} if isinstance(value, dict) else value


Optimizer = Annotated[AdamW | Muon, Field(discriminator="kind"), BeforeValidator(_adamw_by_default)]


class Adapter(Settings):
    """LoRA (arXiv 2106.09685): the weights of `start_from` stand still, and beside each target
    matrix W two thin ones learn, W + B·A · alpha / rank."""

    rank: Count = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of A's inputs that a step leaves out."""
    targets: str | list[str] = ALL_LINEAR
    """Which of the blocks' q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj."""
    rslora: bool = False
    """Scale by alpha / √rank (arXiv 2312.03732), which keeps large ranks learning."""
    quantize_base: Literal["nf4", "int8"] | None = None
    """QLoRA (arXiv 2305.14314): the blocks' matrices in 4-bit NormalFloat with double quantisation,
    or in int8. Needs the extra `quantize`."""

    @property
    def lora(self) -> Lora:
        """The same as the numbers that a model is built by."""
        return Lora(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=lora_targets(self.targets),
            rslora=self.rslora,
            quantization=self.quantize_base,
        )

    @model_validator(mode="after")
    def _names_what_there_is(self) -> Adapter:
        lora_targets(self.targets)
        return self


class ExponentialAverage(Settings):
    """A running mean of the weights, in which a step's weight halves every so many tokens."""

    kind: Literal["ema"] = "ema"
    half_life_tokens: Count


class LastCheckpoints(Settings):
    """`final/` is the mean of the last checkpoints written at multiples of `every_steps`, the
    run's last among them whatever its number."""

    kind: Literal["last"] = "last"
    checkpoints: Annotated[int, Field(ge=2)]


Averaging = Annotated[ExponentialAverage | LastCheckpoints, Field(discriminator="kind")]


class Guard(Settings):
    """Steps that must not reach the weights."""

    spike_sigmas: Annotated[float, Field(gt=0)] | None = 6.0
    """Skip a step whose loss or gradient norm exceeds mean + this × σ of the window; null: off."""
    window: Annotated[int, Field(ge=8)] = 128
    max_consecutive_skips: Annotated[int, Field(ge=1)] = 10
    """After so many, spikes are accepted as the new level; non-finite steps stop the run."""


class Checkpoints(Settings):
    every_steps: Count | None = None
    """Also written at every stage's end and on interruption. null: only then."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    keep_every_steps: Count | None = None
    """Of them, those at multiples of this are kept for good. Those at stage ends always are."""
    final: Annotated[str, Field(pattern=r"^(last|best|average|step-[0-9]+)$")] = "last"
    """What `final/` is made from: `last`, `best` (the checkpoint of lowest validation bits per
    byte), `average` (see `averaging`) or a named one such as `step-900` (MiniCPM left out its
    decay's tail)."""
    final_dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _keeps_what_is_written(self) -> Checkpoints:
        if self.keep_every_steps and (
            self.every_steps is None or self.keep_every_steps % self.every_steps
        ):
            raise ValueError(
                f"keep_every_steps {self.keep_every_steps} is not a multiple of every_steps "
                f"{self.every_steps}: none of the steps it names would be written"
            )
        return self


class Validation(Settings):
    every_steps: Count | None = None
    """Also measured before the first step and at every stage's end."""
    tokens: Count = 262_144
    """Held-out tokens scored per dataset, whole documents from the front."""
    patience: Count | None = None
    """Stop when so many validations running were no better than the best before them."""


class Samples(Settings):
    every_steps: Count | None = None
    """Also written at every stage's end, and before the first step of a run that starts from
    weights. null: only then."""
    prompts: list[str] = Field(default_factory=list)
    chat: bool = False
    """Prompts are questions, put as the data's chat template puts them."""
    max_tokens: Count = 48
    temperature: Annotated[float, Field(ge=0)] = 0.7


class Runtime(Settings):
    """How to compute, not what: all of it may change when a run goes on."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch_size: Count | None = None
    """Sequences a forward pass; null: as many as fit in the memory that is free."""
    compile: Literal["auto", "always", "never"] = "auto"
    activation_checkpointing: Literal["auto", "always", "never"] = "auto"
    """Keep only blocks' inputs for the backward pass and compute the rest again: a third more
    arithmetic for a fraction of the memory. auto: only where one row would not fit otherwise."""
    float8: bool = False
    """Products of the blocks' linear layers in float8, scaled by tensor (torchao); needs the extra
    `float8`, compilation and a GPU of compute capability 8.9 or later."""
    deterministic: Literal["auto", "always", "never"] = "auto"
    """Same bits on every run. auto: on the CPU, where it costs nothing measurable."""
    threads: Count | None = None
    log_every_steps: Count = 10


class Predicted(Settings):
    """What a scaling law said of the run before it began: a note, which nothing is computed by."""

    law: str
    loss: Annotated[float, Field(gt=0)]
    """At the end of training."""
    loss_unit: Literal["nats per token", "nats per byte", "bits per byte"]
    interval: tuple[float, float] | None = None
    """Bounds of the loss, where the law gives any."""
    comparable: bool = False
    """Whether the law was fitted on this recipe's data. A loss of another text and another
    tokenizer is no prediction of this run's."""
    tokens: Count
    parameters: Count
    """As the law counts them."""

    @model_validator(mode="after")
    def _interval_in_order(self) -> Predicted:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError("interval: write the lower bound first")
        return self


SINK_NAMES = ("tensorboard", "trackio", "wandb")


class Recipe(Settings):
    name: str
    description: str = ""
    model: str | dict[str, Any] | None = None
    """A preset's name, or a mapping of config.json keys, on top of `preset:` if that is given.
    `vocab_size` follows the data's tokenizer unless written here. Beside `start_from` it declares
    what that is, as a dataset declares its tokens: a plan counts with it before the checkpoint is
    there, and a checkpoint of another shape is refused."""
    start_from: str | None = None
    """A Hugging Face directory (fresh optimizer), or a run's checkpoint (everything goes on)."""
    fresh_optimizer: bool = False
    """Take only the weights from a run's checkpoint in `start_from`."""
    parametrization: Parametrization | None = None
    """Initialisation and learning-rate scaling; default: the preset's, else llama."""
    initializer_std: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    sequence_length: Count
    batch_tokens: Count
    optimizer: Optimizer
    adapter: Adapter | None = None
    """Learn an adapter to the weights of `start_from`; null: every parameter learns."""
    datasets: dict[str, DatasetSource]
    stages: Annotated[list[Stage], Field(min_length=1)]
    averaging: Averaging | None = None
    guard: Guard = Guard()
    checkpoints: Checkpoints = Checkpoints()
    validation: Validation = Validation()
    samples: Samples = Samples()
    evaluation: QuickEvaluation | None = None
    """Benchmarks that are asked while training goes on; null: none."""
    runtime: Runtime = Runtime()
    track: list[str] = Field(default_factory=list)
    """Where else the events are shown: tensorboard, trackio, wandb. Each is an extra."""
    predicted: Predicted | None = None
    card: Card = Card()
    """What the model's README.md says that the run's records do not know."""

    @field_validator("track")
    @classmethod
    def _known_sinks(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in SINK_NAMES:
                raise ValueError(
                    f"there is no {name!r} (there are {', '.join(SINK_NAMES)})."
                    f"{did_you_mean(name, SINK_NAMES)}"
                )
        if len(set(value)) != len(value):
            raise ValueError(f"{', '.join(value)}: each can be named once")
        return value

    @model_validator(mode="after")
    def _hangs_together(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: two stages have one name ({', '.join(names)})")
        for index, stage in enumerate(self.stages):
            for name in stage.mixture:
                if name not in self.datasets:
                    raise ValueError(
                        f"stages.{index}.mixture: {name!r} is not under datasets "
                        f"({', '.join(self.datasets)})"
                    )
            length = stage.sequence_length or self.sequence_length
            batch = stage.batch_tokens or self.batch_tokens
            if batch % length:
                raise ValueError(
                    f"stages.{index}: batch_tokens {batch:,} is not a multiple of sequence_length "
                    f"{length:,}; write {max(1, round(batch / length)) * length:,}"
                )
        unused = set(self.datasets) - {name for stage in self.stages for name in stage.mixture}
        if unused:
            raise ValueError(f"datasets: no stage reads {', '.join(sorted(unused))}")
        if self.model is None and self.start_from is None:
            raise ValueError("name a model (a preset or its shape), or a checkpoint in start_from")
        if self.fresh_optimizer and self.start_from is None:
            raise ValueError("fresh_optimizer has an effect only beside start_from")
        if self.initializer_std is not None and self.start_from is not None:
            raise ValueError("initializer_std has no effect on weights that come from start_from")
        if self.adapter is not None and self.start_from is None:
            raise ValueError(
                "adapter: there is nothing to adapt; name the base in start_from, or leave adapter "
                "out and train every parameter"
            )
        if self.adapter is not None and self.runtime.float8:
            raise ValueError(
                "runtime.float8 is of matrices that learn, and with an adapter they stand still; "
                "leave it out"
            )
        if self.validation.patience is not None and len(self.stages) > 1:
            raise ValueError(
                "validation.patience ends a run, and this one has several stages, of which it "
                "would skip the rest; leave it out, or train the stages as runs of their own"
            )
        self._check_averaging()
        self._check_preferences()
        if self.samples.every_steps is not None and not self.samples.prompts:
            raise ValueError("samples.every_steps without samples.prompts writes nothing")
        if self.samples.chat and not self.samples.prompts:
            raise ValueError("samples.chat without samples.prompts writes nothing")
        return self

    def _check_preferences(self) -> None:
        for index, stage in enumerate(self.stages):
            objective = stage.objective
            if not isinstance(objective, Preference) or objective.reference != "live":
                continue
            if self.adapter is None:
                raise ValueError(
                    f"stages.{index}.objective.reference: live needs an adapter that can be "
                    "switched off; write precomputed, or learn an adapter"
                )
            if index:
                raise ValueError(
                    f"stages.{index}.objective.reference: live would be the base as it was before "
                    f"stage {self.stages[0].name}, not the model that this stage begins with; "
                    "write precomputed"
                )

    def _check_averaging(self) -> None:
        wanted = self.checkpoints.final == "average"
        if wanted and self.averaging is None:
            raise ValueError(
                "checkpoints.final: average, but nothing is averaged; add for instance "
                "averaging: {kind: ema, half_life_tokens: 1e6}"
            )
        if isinstance(self.averaging, LastCheckpoints):
            if not wanted:
                raise ValueError(
                    "averaging.kind: last has an effect only with checkpoints.final: average"
                )
            if self.checkpoints.every_steps is None:
                raise ValueError(
                    "averaging.kind: last needs checkpoints.every_steps: without it checkpoints "
                    "are written only at the ends of stages"
                )


def exact_share(share: float) -> Fraction:
    """The decimal as the user wrote it, without the binary rounding of floats."""
    return Fraction(Decimal(repr(share)))
