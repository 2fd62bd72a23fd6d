"""What the bits of a run depend on beside its recipe and data; settled once, then kept."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch

from llamita.architecture.memory import training_memory
from llamita.planning.plan import TrainingPlan
from llamita.planning.quantities import gigabytes
from llamita.training.checkpoint import TrainingState
from llamita.training.devices import Compute, choose_compute, free_memory
from llamita.training.parallelism import World

# Past this many tokens a pass, matrix products on two to sixteen cores gain nothing more.
_CPU_MICRO_BATCH_TOKENS = 8192
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Environment:
    """Device, number type, compilation, rows of a forward pass, processes."""

    compute: Compute
    processes: int
    micro_batch_size: int
    padded_vocab_size: int

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.compute.device.type,
            "dtype": str(self.compute.dtype).removeprefix("torch."),
            "compile": self.compute.compile,
            "micro_batch_size": self.micro_batch_size,
            "processes": self.processes,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "machine": platform.machine(),
        }

    def differences(self, recorded: TrainingState | None) -> list[str]:
        """What would change the bits of the same computation, in sentences."""
        if recorded is None:
            return []
        return [
            f"{key} was {recorded.values[key]}, is {value}: the run goes on, with other rounding"
            for key, value in self.as_json().items()
            if recorded.values[key] != value
        ]


def settle_environment(
    plan: TrainingPlan, recorded: TrainingState | None, world: World
) -> Environment:
    """As the recipe asks; where it says auto, as the run did before; else by measuring.

    The first process decides for all: ranks that measured for themselves might disagree on how
    many passes a step has, and wait for each other for ever.
    """
    runtime = plan.recipe.runtime
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    compute = choose_compute(runtime, plan.flops, recorded=recorded.values if recorded else None)
    rows = runtime.micro_batch_size
    # What fits depends on the length: for another one it is settled anew.
    same_length = recorded and recorded.values["longest_sequence"] == plan.longest_sequence
    if rows is None and recorded is not None and same_length:
        rows = int(recorded.values["micro_batch_size"])
    if rows is None:
        cpu = compute.device.type == "cpu"
        rows = default_micro_batch_size(
            plan,
            world.size,
            free_memory(compute.device),
            _CPU_MICRO_BATCH_TOKENS if cpu else None,
            compute.dtype,
        )
    dtype, compiled, rate, rows = world.agree(
        (compute.dtype, compute.compile, compute.matmul_rate, rows)
    )
    size = plan.config.vocab_size
    # Tensor cores want multiples of 128 in the head's product; a CPU does not care.
    padded = -(-size // 128) * 128 if compute.device.type == "cuda" else size
    return Environment(
        Compute(compute.device, dtype, compiled, rate, compute.reasons), world.size, rows, padded
    )


def default_micro_batch_size(
    plan: TrainingPlan, ranks: int, memory: int, max_tokens: int | None, dtype: torch.dtype
) -> int:
    """The largest common divisor of the stages' rows whose estimate fits in 80% of `memory`.

    A divisor, so that a compiled model meets one shape a stage.
    """
    shares = [stage.windows_per_step // ranks for stage in plan.stages]
    length = plan.longest_sequence
    best = 1
    for rows in range(1, min(shares) + 1):
        if any(share % rows for share in shares):
            continue
        estimate = training_memory(
            plan.config, rows, length, compute_bytes=dtype.itemsize, ranks=ranks
        )
        too_many = max_tokens is not None and rows * length > max_tokens
        if too_many or estimate.total > _MEMORY_SHARE * memory:
            break
        best = rows
    return best


def describe_memory(
    plan: TrainingPlan,
    micro_batch_size: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    ranks: int = 1,
) -> str:
    """A line: what a step needs in memory, item by item. Without a size, the recipe's, else 1."""
    rows = micro_batch_size or plan.recipe.runtime.micro_batch_size or 1
    estimate = training_memory(
        plan.config, rows, plan.longest_sequence, compute_bytes=dtype.itemsize, ranks=ranks
    )
    where = "" if ranks == 1 else f" on each of {ranks} devices"
    return (
        f"  memory      about {gigabytes(estimate.total)}{where} at micro-batch {rows} × "
        f"{plan.longest_sequence:,}: weights {gigabytes(estimate.weights)}, gradients "
        f"{gigabytes(estimate.gradients)}, AdamW {gigabytes(estimate.optimizer)}, casts "
        f"{gigabytes(estimate.weight_casts)}, activations {gigabytes(estimate.activations)}, "
        f"logits {gigabytes(estimate.logits)}"
    )
