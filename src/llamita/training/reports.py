"""What people see while a run goes: one steady line; and the plan as events tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llamita.architecture.counts import num_parameters
from llamita.planning.plan import TrainingPlan
from llamita.planning.quantities import duration, gigabytes
from llamita.training.devices import free_memory, memory_used
from llamita.training.schedule import learning_rate_factor


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
