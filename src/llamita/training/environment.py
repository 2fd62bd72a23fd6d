"""What the bits of a run depend on beside its recipe and data; settled once, then kept."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import Any

import torch

from llamita.architecture.memory import TrainingMemory
from llamita.model.attention_kernels import KERNELS, rank_kernels, time_kernel
from llamita.planning.needs import describe_step, passes_that_fit, step_memory
from llamita.planning.plan import TrainingPlan
from llamita.training.checkpoint import TrainingState
from llamita.training.devices import Compute, choose_compute, free_memory
from llamita.training.parallelism import World


@dataclass(frozen=True)
class Environment:
    """Device, number type, compilation, rows of a forward pass, processes.

    memory: what a step is expected to need, on each device.
    attention: kernels that scaled_dot_product_attention may take on a GPU, the preferred first.
    """

    compute: Compute
    processes: int
    micro_batch_size: int
    padded_vocab_size: int
    activation_checkpointing: bool
    memory: TrainingMemory
    attention: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.compute.device.type,
            "dtype": str(self.compute.dtype).removeprefix("torch."),
            "compile": self.compute.compile,
            "float8": self.compute.float8,
            "attention": self.attention[0] if self.attention else "default",
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
            if recorded.values.get(key, value) != value
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
    rows, checkpointing = settle_passes(plan, rows, world.size, compute)
    before = recorded.values.get("attention") if recorded else None
    attention, reason = settle_attention(plan, rows, compute, before)
    dtype, compiled, rate, rows, checkpointing, attention = world.agree(
        (compute.dtype, compute.compile, compute.matmul_rate, rows, checkpointing, attention)
    )
    settled = replace(
        compute,
        dtype=dtype,
        compile=compiled,
        matmul_rate=rate,
        reasons=(*compute.reasons, *reason),
    )
    size = plan.config.vocab_size
    # Tensor cores want multiples of 128 in the head's product; a CPU does not care.
    padded = -(-size // 128) * 128 if compute.device.type == "cuda" else size
    memory = step_memory(
        plan,
        rows,
        compute_bytes=dtype.itemsize,
        ranks=world.size,
        activation_checkpointing=checkpointing,
        device_type=compute.device.type,
        compiled=compiled,
    )
    return Environment(settled, world.size, rows, padded, checkpointing, memory, attention)


def settle_attention(
    plan: TrainingPlan, rows: int, compute: Compute, before: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """On a GPU, attention kernels in the order to try them: as before, else by measuring; and the
    reason. Elsewhere there is one kernel and nothing to say."""
    if compute.device.type != "cuda":
        return (), ()
    if before in KERNELS:
        others = [name for name in KERNELS if name != before]
        return (before, *others, "math"), (f"attention by {before}, as before",)
    ranked = rank_kernels(
        lambda name: time_kernel(
            name, plan.config, rows, plan.longest_sequence, compute.device, compute.dtype
        )
    )
    if not ranked:
        return (), ("attention by PyTorch's choice: no fused kernel takes this shape",)
    times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in ranked)
    # A mask of documents may need another kernel than causal attention does: the rest stay allowed.
    rest = [name for name in KERNELS if name not in dict(ranked)]
    order = (*dict(ranked), *rest, "math")
    return order, (f"attention by {order[0]}: a layer forward and backward takes {times}",)


def settle_passes(
    plan: TrainingPlan, rows: int | None, ranks: int, compute: Compute
) -> tuple[int, bool]:
    """`passes_that_fit` in the memory that is free now."""
    return passes_that_fit(
        plan,
        free_memory(compute.device),
        rows=rows,
        ranks=ranks,
        compute_bytes=compute.dtype.itemsize,
        device_type=compute.device.type,
        compiled=compute.compile,
    )


def describe_memory(plan: TrainingPlan, environment: Environment | None = None) -> str:
    """A line: what a step needs in memory, item by item.

    Without an environment, for the rows of a pass that the recipe states, else one, in bfloat16 on
    the kind of device that the recipe names or this machine has.
    """
    if environment is not None:
        return describe_step(
            plan,
            environment.memory,
            environment.micro_batch_size,
            ranks=environment.processes,
            activation_checkpointing=environment.activation_checkpointing,
        )
    runtime = plan.recipe.runtime
    rows = runtime.micro_batch_size or 1
    checkpointing = runtime.activation_checkpointing == "always"
    here = "cuda" if torch.cuda.is_available() else "cpu"
    named = here if runtime.device == "auto" else runtime.device.partition(":")[0]
    memory = step_memory(
        plan,
        rows,
        activation_checkpointing=checkpointing,
        device_type="cuda" if named == "cuda" else "cpu",
        compiled=runtime.compile != "never",
    )
    return describe_step(plan, memory, rows, activation_checkpointing=checkpointing)
