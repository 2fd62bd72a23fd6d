"""From a chosen N and D to a training recipe: every number of it by a rule that names its source.

Step law (Li et al., Predictable Scale, arXiv 2503.04715): learning rate 1.79·N^-0.713·D^0.307 and
batch 0.58·D^0.571 tokens, N without embeddings, for models whose tensors all learn at one rate.
MiniCPM (arXiv 2404.06395, section 3): base rate 0.01 at every size under its
parametrisation, and a batch of 1.21e9 / L^6.24 tokens, L the loss on C4 in nats per token.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.architecture.counts import num_parameters
from llamita.architecture.presets import PRESETS, Parametrization
from llamita.errors import UserError
from llamita.planning.laws import DEFAULT_LAW, Law, find_law
from llamita.planning.plan import SourceSize, make_plan
from llamita.planning.quantities import tokens as short
from llamita.recipes.loading import check_recipe, dump_recipe
from llamita.recipes.schema import Predicted, Recipe

SHARES: Mapping[str, float] = {"prose": 0.7, "code": 0.3}
MINICPM_RATE = 0.01
_LONGEST = 4096
_FEWEST_WINDOWS = 16
_SHORTEST = 64
DECAY_SHARE = 0.1
_WARMUP = 0.01
_SAVES = 20
_MOST_STEPS_UNSAVED = 5000
_VALIDATION_SHARE = 0.02
_VALIDATION_TOKENS = (2**14, 2**22)
# A step is forward and backward, three times the arithmetic of the forward pass that scores.
_STEP_IN_PASSES = 3


class Draft(NamedTuple):
    """A recipe, and lines that say where its numbers come from."""

    recipe: Recipe
    comments: list[str]


@dataclass(frozen=True)
class Tuning:
    """Peak learning rate and tokens a batch, not yet rounded, each with its rule in words."""

    learning_rate: float
    batch_tokens: float
    rate_rule: str
    batch_rule: str


def step_law(parameters: float, tokens: float) -> tuple[float, float]:
    """Learning rate and batch (tokens) for N parameters without embeddings and D tokens."""
    return float(1.79 * parameters**-0.713 * tokens**0.307), float(0.58 * tokens**0.571)


def minicpm_batch(loss: float) -> float:
    """Tokens a batch by the loss that is to be reached, in nats per token of C4."""
    return float(1.21e9 / loss**6.24)


def tuning(
    config: ModelConfig,
    parametrization: Parametrization,
    tokens: float,
    *,
    unique_tokens: float | None = None,
    law: Law | None = None,
) -> Tuning:
    """Learning rate and batch by the rule that belongs to a parametrisation.

    Args:
        unique_tokens: how many of the tokens are there once; repeated ones are worth less to a law.
        law: what says the loss that MiniCPM's batch follows from. One in another unit than nats per
            token, or of text of one's own, is none of C4's: the default law takes its place.
    """
    inner = num_parameters(config, embedding=False)
    if parametrization != "minicpm":
        rate, batch = step_law(inner, tokens)
        at = f"N = {short(inner)} without embeddings, D = {short(tokens)}"
        return Tuning(
            rate,
            batch,
            f"Step law (arXiv 2503.04715): 1.79·N^-0.713·D^0.307 = {rate:.3g}, {at}",
            f"Step law (arXiv 2503.04715): 0.58·D^0.571 = {short(batch)} tokens",
        )
    if law is None or law.loss != "nats per token" or law.data is not None:
        default = find_law(DEFAULT_LAW)
        assert isinstance(default, Law)
        law = default
    parameters = num_parameters(config, embedding=law.counts == "total")
    loss = law.at(parameters, tokens, unique_tokens)
    batch = minicpm_batch(loss)
    return Tuning(
        MINICPM_RATE,
        batch,
        f"MiniCPM (arXiv 2404.06395, section 3): {MINICPM_RATE:g} at every size, which matrices of "
        f"blocks divide by m = {config.logits_scaling:g}",
        f"MiniCPM (arXiv 2404.06395, section 3): 1.21e9 / L^6.24 = {short(batch)} tokens, L = "
        f"{loss:.3f} nats per token by {law.name} in place of a loss on C4",
    )


def recipe_for(
    config: ModelConfig,
    parametrization: Parametrization,
    tokens: float,
    *,
    name: str,
    unique_tokens: float | None = None,
    shares: Mapping[str, float] = SHARES,
    law: Law | None = None,
    predicted: Predicted | None = None,
    chosen: Tuning | None = None,
    decay_share: float = DECAY_SHARE,
    decay: Mapping[str, Any] | None = None,
) -> Draft:
    """A recipe that trains a shape on D tokens: stable for 90% of them, decay for the last 10%.

    Args:
        tokens: D, training tokens, repetitions counted.
        unique_tokens: how many of them there are, divided by `shares`; where D needs more, each
            source is allowed as many epochs as that takes. None: as many as are read.
        shares: dataset → its share; each is looked for at data/NAME.
        law: see `tuning`.
        predicted: what the law says of this run, to be compared when it is over.
        chosen: learning rate and batch, in place of the rules'.
        decay_share, decay: another share, and a `Decay` schedule's keys.

    Raises:
        UserError: shares that do not sum to 1; too few tokens for a model to be trained on.
    """
    if chosen is None:
        chosen = tuning(config, parametrization, tokens, unique_tokens=unique_tokens, law=law)
    length = _sequence_length(config, chosen.batch_tokens)
    batch = _windows(chosen.batch_tokens / length) * length
    steps = math.ceil(tokens / batch)
    if steps < 2:
        raise UserError(
            f"{tokens:,.0f} tokens are fewer than two batches of {batch:,}: there is nothing to "
            "train on; ask for more tokens"
        )
    every = _every(steps)
    values: dict[str, Any] = {
        "name": name,
        "description": f"{short(num_parameters(config))} parameters on {short(tokens)} tokens.",
        "model": model_keys(config, parametrization),
        "sequence_length": length,
        "batch_tokens": batch,
        "optimizer": {"learning_rate": float(f"{chosen.learning_rate:.3g}")},
        "datasets": _datasets(steps * batch, unique_tokens, shares),
        "stages": _stages(steps, batch, shares, decay_share, decay or {"form": "1-sqrt"}),
        "checkpoints": {"every_steps": every},
        "validation": {
            "every_steps": every,
            "tokens": _validation_tokens(steps * batch, math.ceil(steps / every) * len(shares)),
        },
    }
    if predicted is not None:
        values["predicted"] = predicted.model_dump(exclude_none=True)
    recipe = check_recipe(values, f"recipe {name}")
    if unique_tokens is not None:
        recipe = _allow_epochs(recipe, values, config, parametrization)
    return Draft(recipe, _comments(recipe, chosen, unique_tokens, decay_share))


def write_recipe(recipe: Recipe, path: str | Path, comments: Sequence[str] = ()) -> Path:
    """Write a recipe with comments at its head; keys that have their default are left out.

    Raises:
        UserError: there is a file of that name already, or the place cannot be written.
    """
    file = Path(path)
    head = "".join(
        f"{line}\n"
        for comment in comments
        for line in textwrap.wrap(comment, 98, initial_indent="# ", subsequent_indent="#   ")
    )
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(head + dump_recipe(recipe, defaults=False))
    except FileExistsError:
        raise UserError(
            f"{file} is there already and is not overwritten; name another file"
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    return file


def model_keys(config: ModelConfig, parametrization: Parametrization) -> str | dict[str, Any]:
    """A recipe's `model`: the nearest preset of the parametrisation and what differs from it.

    So the vocabulary stays the tokenizer's wherever it is the preset's own.
    """
    found: list[tuple[int, float, str, dict[str, Any]]] = []
    wanted = config.model_dump()
    for name, base in PRESETS.items():
        if base.parametrization == parametrization:
            theirs = base.config.model_dump()
            changes = {key: value for key, value in wanted.items() if theirs[key] != value}
            if parametrization == "minicpm":
                follows = minicpm_multipliers(config.hidden_size, config.num_hidden_layers)
                changes = {k: v for k, v in changes.items() if follows.get(k) != v}
                kept = {k: wanted[k] for k, v in follows.items() if wanted[k] != v}
                changes |= kept
            if config.head_dim * config.num_attention_heads != config.hidden_size:
                changes["head_dim"] = config.head_dim
            ratio = num_parameters(base.config) / num_parameters(config)
            found.append((len(changes), abs(math.log(ratio)), name, changes))
    _, _, name, changes = min(found, key=lambda entry: entry[:3])
    return {"preset": name, **changes} if changes else name


# -- parts ----------------------------------------------------------------------------------------


def _sequence_length(config: ModelConfig, batch_tokens: float) -> int:
    """The context, up to 4,096, halved until a batch has sixteen windows."""
    length = min(config.max_position_embeddings, _LONGEST)
    while length * _FEWEST_WINDOWS > batch_tokens and length // 2 >= _SHORTEST:
        length //= 2
    return length


def _windows(wanted: float) -> int:
    """Whole windows, and of many a multiple of the power of two that is a sixteenth to an eighth of
    them, so that devices and passes can share a batch; a prime number of windows they could not."""
    unit = 2 ** math.floor(math.log2(wanted / 8)) if wanted >= 8 else 1
    return int(max(1, round(wanted / unit)) * unit)


def _stages(
    steps: int,
    batch: int,
    shares: Mapping[str, float],
    decay_share: float,
    decay: Mapping[str, Any],
) -> list[dict[str, Any]]:
    falling = max(1, round(decay_share * steps))
    stable = steps - falling
    warmup = min(max(1, round(_WARMUP * steps)), stable)
    return [
        {
            "name": "stable",
            "tokens": stable * batch,
            "mixture": dict(shares),
            "schedule": {"kind": "constant", "warmup_tokens": warmup * batch},
        },
        {
            "name": "decay",
            "tokens": falling * batch,
            "mixture": dict(shares),
            "schedule": {"kind": "decay", **decay},
        },
    ]


def _datasets(
    tokens: int, unique_tokens: float | None, shares: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    there = tokens if unique_tokens is None else unique_tokens
    return {
        name: {"path": f"data/{name}", "tokens": max(1, round(there * share))}
        for name, share in shares.items()
    }


def _allow_epochs(
    recipe: Recipe, values: dict[str, Any], config: ModelConfig, parametrization: Parametrization
) -> Recipe:
    """As many epochs as D takes of each source, where that is more than recipes allow anyway."""
    sizes = {
        name: SourceSize(source.tokens or 0, declared=True)
        for name, source in recipe.datasets.items()
    }
    plan = make_plan(recipe, config, parametrization, sizes, limit_epochs=False)
    for name, (_, epochs) in plan.stages[-1].epochs.items():
        if epochs > recipe.datasets[name].max_epochs:
            # A tenth more, because the data's shards end in windows that are not whole.
            values["datasets"][name]["max_epochs"] = math.ceil(epochs * 11) / 10
    return check_recipe(values, f"recipe {recipe.name}")


def _every(steps: int) -> int:
    """Steps between saves: 1, 2 or 5 times a power of ten, for about twenty saves, and no more
    than 5,000."""
    wanted = min(steps / _SAVES, _MOST_STEPS_UNSAVED)
    power = 10 ** max(0, math.floor(math.log10(max(wanted, 1))))
    return int(max(factor * power for factor in (1, 2, 5) if factor * power <= max(wanted, 1)))


def _validation_tokens(tokens: int, measurements: int) -> int:
    """A power of two that keeps validation to about 2% of training's arithmetic."""
    allowed = _VALIDATION_SHARE * _STEP_IN_PASSES * tokens / measurements
    low, high = _VALIDATION_TOKENS
    return int(min(max(2 ** math.floor(math.log2(max(allowed, 1))), low), high))


def _comments(
    recipe: Recipe, chosen: Tuning, unique_tokens: float | None, decay_share: float
) -> list[str]:
    windows = recipe.batch_tokens // recipe.sequence_length
    lines = [
        f"learning_rate: {chosen.rate_rule}",
        f"batch_tokens: {chosen.batch_rule}; here {windows:,} × {recipe.sequence_length:,}",
        "sequence_length: the model's context, shortened until a batch has sixteen windows (ours)",
        f"stages: warm-up over {_WARMUP:.0%}, decay over the last {decay_share:.0%} of the steps "
        + ("(ours: MiniCPM's lengths are unpublished)" if decay_share == DECAY_SHARE else ""),
        "datasets: "
        + (
            f"{short(unique_tokens)} unique tokens by the shares of the mixture; paths are examples"
            if unique_tokens is not None
            else "as many tokens as are read, so that none is met twice; paths are examples"
        ),
    ]
    if recipe.predicted is not None:
        note = recipe.predicted
        yes = "fitted on this data" if note.comparable else "not fitted on this data"
        lines.append(f"predicted: {note.loss:.4f} {note.loss_unit} by {note.law}, {yes}")
    return lines
