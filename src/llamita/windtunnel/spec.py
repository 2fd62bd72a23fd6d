"""The spec of a study: typed YAML, as recipes are, that says which small runs to make.

A base recipe, a family of sizes, and experiments. Keys of recipes (`optimizer.learning_rate`) are
varied under their own names.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from llamita.architecture.presets import Parametrization
from llamita.errors import UserError, did_you_mean
from llamita.recipes.loading import check_settings
from llamita.recipes.schedules import Decay
from llamita.recipes.settings import Count, Settings
from llamita.recipes.yaml_reading import parse_yaml

Share = Annotated[float, Field(gt=0, lt=1)]
Multiple = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

_NAME = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$"
Name = Annotated[str, Field(pattern=_NAME)]


# -- sizes ----------------------------------------------------------------------------------------


class Shape(Settings):
    """One size, by config.json's keys."""

    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    intermediate_size: Count | None = None
    """Default: `ffn_ratio` of MiniCPM, 2.5 times the hidden size."""
    name: Name | None = None


class PaperSizes(Settings):
    """MiniCPM's own wind-tunnel models (arXiv 2404.06395, table of section 3)."""

    rule: Literal["minicpm"] = "minicpm"
    names: Annotated[tuple[str, ...], Field(min_length=1)] = ("9m", "30m", "70m")
    """Of the presets minicpm-NAME."""


class WidthSizes(Settings):
    """Hidden size grows; depth and head size stay."""

    rule: Literal["width"] = "width"
    hidden_sizes: Annotated[list[Count], Field(min_length=1)]
    layers: Count = 4
    head_dim: Count = 32
    ffn_ratio: Multiple = 2.5


class DepthSizes(Settings):
    """Layers are added; the width stays."""

    rule: Literal["depth"] = "depth"
    layers: Annotated[list[Count], Field(min_length=1)]
    hidden_size: Count
    head_dim: Count = 32
    ffn_ratio: Multiple = 2.5


class ThinSizes(Settings):
    """Deep and thin against shallow and wide, at about equal parameters without embeddings."""

    rule: Literal["thin"] = "thin"
    parameters: Count
    layers: Annotated[list[Count], Field(min_length=1)]
    head_dim: Count = 32
    ffn_ratio: Multiple = 2.5


Sizes: TypeAlias = (
    Annotated[PaperSizes | WidthSizes | DepthSizes | ThinSizes, Field(discriminator="rule")]
    | Annotated[list[Shape], Field(min_length=1)]
)


# -- axes -----------------------------------------------------------------------------------------


class Spread(Settings):
    """Values between two ends: equally many apart by a factor (log) or a difference."""

    low: float
    high: float
    points: Annotated[int, Field(ge=2)] = 6
    scale: Literal["log", "linear"] = "log"

    @model_validator(mode="after")
    def _in_order(self) -> Spread:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low {self.low:g}: a logarithmic axis begins above 0")
        return self

    def values(self) -> list[float]:
        """To four digits, so that a value can be read, and written again, as it was run."""
        last = self.points - 1
        if self.scale == "log":
            steps = [self.low * (self.high / self.low) ** (i / last) for i in range(self.points)]
        else:
            steps = [self.low + (self.high - self.low) * i / last for i in range(self.points)]
        return [float(f"{value:.4g}") for value in steps]


Axis: TypeAlias = Annotated[list[Any], Field(min_length=1)] | Spread


# -- experiments ----------------------------------------------------------------------------------


class _Experiment(Settings):
    """What all experiments may say."""

    sizes: list[str] | None = None
    """Names of sizes; null: all of the study's."""
    parametrizations: Annotated[list[Parametrization], Field(min_length=1)] | None = None
    """null: the base recipe's."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """null: the study's."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Recipe keys over the base, by dotted path."""


class Coordinates(_Experiment):
    """How activations, updates and logits go with width in the first steps."""

    kind: Literal["coordinates"] = "coordinates"
    steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 10)


class Grid(Settings):
    """Every combination."""

    kind: Literal["grid"] = "grid"


class Bayesian(Settings):
    """Optuna's tree-structured Parzen estimator, of each size, seed and parametrisation."""

    kind: Literal["tpe"] = "tpe"
    trials: Annotated[int, Field(ge=1)] = 30
    seed: Seed = 0
    prune: bool = True
    """Stop runs whose loss is worse than the median of the others at the same step (Optuna's
    MedianPruner)."""


class Sweep(_Experiment):
    """Runs over axes, each with warm-up, a stable phase and a decay."""

    kind: Literal["sweep"] = "sweep"
    axes: Annotated[dict[str, Axis], Field(min_length=1)]
    tokens_per_parameter: Multiple = 10.0
    """D/N, N without embeddings. MiniCPM searched with 10."""
    tokens: Count | None = None
    """The same D for every size, in place of a ratio."""
    warmup_share: Share = 0.02
    decay_share: Share = 0.1
    decay: Decay = Decay(form="1-sqrt")
    search: Annotated[Grid | Bayesian, Field(discriminator="kind")] = Grid()


class Batch(_Experiment):
    """Loss against tokens at several batch sizes, at a constant learning rate."""

    kind: Literal["batch"] = "batch"
    batch_tokens: Annotated[list[Count], Field(min_length=3)]
    tokens_per_parameter: Multiple = 20.0
    warmup_share: Share = 0.02
    validations: Annotated[int, Field(ge=4)] = 24
    """Points of a run's curve."""


class ScalingLaw(_Experiment):
    """L(N, D) from one stable run a size and decays that branch off it."""

    kind: Literal["law"] = "law"
    tokens_per_parameter: Annotated[tuple[Multiple, ...], Field(min_length=1)] = (
        10,
        20,
        30,
        40,
        50,
        60,
    )
    warmup_share: Share = 0.02
    """Of the shortest branch."""
    decay_share: Share = 0.1
    decay: Decay = Decay(form="1-sqrt")


def _same_mixture() -> dict[str, dict[str, float] | None]:
    return {"same": None}


class DecayStudySpec(_Experiment):
    """How long, in which form and on which text to decay."""

    kind: Literal["decay"] = "decay"
    tokens_per_parameter: Multiple = 20.0
    warmup_share: Share = 0.02
    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.2, 0.1, 0.05, 0.025)
    forms: Annotated[tuple[Decay, ...], Field(min_length=1)] = (
        Decay(form="1-sqrt"),
        Decay(form="linear"),
        Decay(form="cosine"),
        Decay(form="exponential"),
    )
    mixtures: dict[Name, dict[str, float] | None] = Field(default_factory=_same_mixture)
    """Name → the decay's mixture; null: the stable phase's."""

    @field_validator("forms", mode="before")
    @classmethod
    def _forms_by_name(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [{"form": each} if isinstance(each, str) else each for each in value]


Experiment: TypeAlias = Annotated[
    Coordinates | Sweep | Batch | ScalingLaw | DecayStudySpec, Field(discriminator="kind")
]


class Spec(Settings):
    name: Name
    base: str
    """A recipe's file, beside the spec, or a shipped recipe's name."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Recipe keys over the base, by dotted path."""
    sizes: Sizes
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    experiments: Annotated[dict[Name, Experiment], Field(min_length=1)]
    runs_at_once: Count | None = None
    """null: as many as devices, cores and memory carry."""
    storage: str | None = None
    """Optuna's, a URL such as postgresql://host/db: machines that name the same one share the
    study's runs. null: this one makes them all, and searches keep a file in its directory."""

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a seed stands twice; each makes one run")
        return value


SHIPPED = Path(str(resources.files("llamita.windtunnel"))) / "specs"


def spec_file(name: str | Path) -> Path:
    """A spec's file, or a shipped one by its name.

    Raises:
        UserError: neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}
    if str(name) not in shipped:
        raise UserError(
            f"spec {str(name)!r}: no such file, and no shipped spec of that name (there are "
            f"{', '.join(shipped)}).{did_you_mean(str(name), shipped)}"
        )
    return shipped[str(name)]


def load_spec(path: str | Path) -> Spec:
    """Read a study's spec.

    Raises:
        UserError: unreadable, not YAML, an unknown key, a value of the wrong kind.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"spec {file} cannot be read: {error}") from error
    data = parse_yaml(text, str(file))
    if not isinstance(data, dict):
        raise UserError(f"{file}: a spec is a mapping of keys, not {type(data).__name__}")
    return check_settings(Spec, data, str(file))
