"""What people see while a run goes: one steady line; and the plan as events tell it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llamita.architecture.counts import num_parameters
from llamita.data.batch import Cursor, StageData
from llamita.inference.scoring import Score
from llamita.planning.plan import StagePlan, TrainingPlan
from llamita.planning.quantities import duration, gigabytes
from llamita.training.devices import free_memory, memory_used
from llamita.training.preference_scoring import PreferenceScore
from llamita.training.schedule import learning_rate_factor
from llamita.training.telemetry import EventLog


def planned(plan: TrainingPlan) -> dict[str, Any]:
    """Recipe, size and stages, so that who reads the events needs no other file."""
    stages, first = [], plan.first_step
    for stage in plan.stages:
        ends = learning_rate_factor(stage.stage, stage.num_steps - 1, stage.batch_tokens)
        stages.append(
            {
                "name": stage.stage.name,
                "first_step": first,
                "num_steps": stage.num_steps,
                "batch_tokens": stage.batch_tokens,
                "sequence_length": stage.sequence_length,
                "mixture": dict(stage.stage.mixture),
                "epochs": {name: list(epochs) for name, epochs in stage.epochs.items()},
                "learning_rate": stage.learning_rate,
                "learning_rate_at_end": stage.learning_rate * ends,
            }
        )
        first += stage.num_steps
    return {
        "recipe": plan.recipe.model_dump(mode="json"),
        "parameters": num_parameters(plan.config),
        "stages": stages,
    }


def memory_limit(device: torch.device) -> int:
    """Bytes that `memory_used` can grow to.

    On the CPU what is used and what is available: pages of mapped data count as used there, but
    the kernel takes them back when it must.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return memory_used(device) + free_memory(device)


@dataclass(frozen=True)
class Progress:
    """The state of a run at a step, for one line of console and one event."""

    step: int
    last_step: int
    stage: str
    loss: float
    validation: Mapping[str, Any]
    """Figures of the last one, as `Position` keeps them."""
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    mfu: float
    memory: int
    data_wait: float
    eta: float
    checkpoint: str | None

    def line(self) -> str:
        width = len(str(self.last_step))
        validation = ""
        if "preference_loss" in self.validation:
            loss, right = (self.validation[f"preference_{key}"] for key in ("loss", "accuracy"))
            validation = f"val {loss:.4f}, {right:.0%} right | "
        elif "bits_per_byte" in self.validation:
            validation = f"val {self.validation['bits_per_byte']:.4f} b/B | "
        return (
            f"step {self.step:>{width}}/{self.last_step} {self.stage} | loss {self.loss:.4f} | "
            f"{validation}lr {self.learning_rate:.2e} | norm {self.grad_norm:.2f} | "
            f"{self.tokens_per_second / 1000:.1f}k tok/s | MFU {self.mfu:.0%} | "
            f"{gigabytes(self.memory)} | wait {self.data_wait:.1%} | ETA {duration(self.eta)} | "
            f"saved {self.checkpoint or 'nothing yet'}"
        )


# -- what was measured --------------------------------------------------------------------------


def total(scores: Mapping[str, Score]) -> Score:
    """Of all datasets together."""
    return sum(scores.values(), Score(0.0, 0, 0))


def tell_scores(
    scores: Mapping[str, Score],
    average: Score | None,
    *,
    step: int,
    events: EventLog,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write and say how a model does on each dataset's held-out text, or answers.

    Args:
        average: how the running average of the weights does on all of it.

    Returns:
        What the run remembers of it (`Position.validation`).
    """
    together = total(scores)
    figures: dict[str, Any] = {
        "bits_per_byte": together.bits_per_byte,
        "datasets": {name: score.bits_per_byte for name, score in scores.items()},
    }
    each = ", ".join(f"{name} {score.bits_per_byte:.4f}" for name, score in scores.items())
    if average is not None:
        figures["average"] = average.bits_per_byte
        each += f"; the average {average.bits_per_byte:.4f}"
    events.write(
        "validation",
        step=step,
        **figures,
        loss={name: score.loss for name, score in scores.items()},
        tokens=together.num_tokens,
        bytes=together.num_bytes,
    )
    say(f"step {step}: validation {together.bits_per_byte:.4f} bits per byte ({each})")
    return figures


def tell_pairs(
    scores: Mapping[str, PreferenceScore],
    *,
    step: int,
    events: EventLog,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The same of held-out pairs."""
    count = sum(len(score.pairs) for score in scores.values())

    def mean(of: Callable[[PreferenceScore], float]) -> float:
        return sum(of(score) * len(score.pairs) for score in scores.values()) / count

    loss, accuracy = mean(lambda score: score.loss), mean(lambda score: score.accuracy.mean)
    events.write(
        "preference",
        step=step,
        loss=loss,
        accuracy=accuracy,
        datasets={name: score.as_json() for name, score in scores.items()},
    )
    for name, score in scores.items():
        say(f"step {step}: held-out {name}: {describe_score(score)}")
    return {"preference_loss": loss, "preference_accuracy": accuracy}


def describe_score(score: PreferenceScore) -> str:
    """Loss, accuracy and margin with their 95% intervals, and whether they say anything."""
    accuracy, margin = score.accuracy, score.margin
    effect = "" if score.has_effect else ", no effect: the interval includes 0"
    return (
        f"loss {score.loss:.4f}, the chosen answer gained more in {accuracy.mean:.1%} of "
        f"{len(score.pairs)} pairs ({accuracy.low:.1%} to {accuracy.high:.1%}), margin "
        f"{margin.mean:.4f} ({margin.low:.4f} to {margin.high:.4f}{effect})"
    )


def tell_mixture(
    stage: StagePlan,
    data: StageData,
    cursor: Cursor,
    *,
    step: int,
    events: EventLog,
    say: Callable[[str], None],
) -> None:
    """What a stage that has ended asked for, and what it read."""
    realised, epochs = data.realised(cursor), data.epochs(cursor)
    events.write(
        "mixture",
        step=step,
        stage=stage.stage.name,
        asked=dict(stage.stage.mixture),
        realised=realised,
        epochs=epochs,
    )
    shares = ", ".join(
        f"{name} {realised[name]:.4f} (asked {asked:.4f}, epoch {epochs[name]:.2f})"
        for name, asked in stage.stage.mixture.items()
    )
    say(f"stage {stage.stage.name} done: {shares}")
