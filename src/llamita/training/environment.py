"""What the bits of a run depend on beside its recipe and data; settled once, then kept."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import Any

import torch

from llamita.architecture.memory import TrainingMemory, head_chunk_tokens, training_memory
from llamita.model.attention_kernels import KERNELS, rank_kernels, time_kernel
from llamita.planning.plan import TrainingPlan
from llamita.planning.quantities import gigabytes
from llamita.recipes.schema import ExponentialAverage
from llamita.training.checkpoint import TrainingState
from llamita.training.devices import Compute, choose_compute, free_memory
from llamita.training.parallelism import World

# Past this many tokens a pass, matrix products on two to sixteen cores gain nothing more.
_CPU_MICRO_BATCH_TOKENS = 8192
_MEMORY_SHARE = 0.8


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
    memory = estimate_memory(plan, rows, dtype, world.size, checkpointing, compute.device.type)
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
    """Rows of a forward pass, and whether its activations are computed again in the backward.

    That costs a third of the arithmetic, so it is done where the recipe asks for it, or where
    nothing else fits: one row, or as many rows as were given.
    """
    memory = free_memory(compute.device)
    asked = plan.recipe.runtime.activation_checkpointing
    checkpointing = asked == "always"
    if asked == "auto":
        kind = compute.device.type
        least = estimate_memory(plan, rows or 1, compute.dtype, ranks, device_type=kind)
        checkpointing = least.total > _MEMORY_SHARE * memory
    if rows is None:
        most = _CPU_MICRO_BATCH_TOKENS if compute.device.type == "cpu" else None
        rows = default_micro_batch_size(plan, ranks, memory, most, compute.dtype, checkpointing)
    return rows, checkpointing


def default_micro_batch_size(
    plan: TrainingPlan,
    ranks: int,
    memory: int,
    max_tokens: int | None,
    dtype: torch.dtype,
    activation_checkpointing: bool = False,
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
        estimate = estimate_memory(plan, rows, dtype, ranks, activation_checkpointing)
        too_many = max_tokens is not None and rows * length > max_tokens
        if too_many or estimate.total > _MEMORY_SHARE * memory:
            break
        best = rows
    return best


def estimate_memory(
    plan: TrainingPlan,
    rows: int,
    dtype: torch.dtype,
    ranks: int = 1,
    activation_checkpointing: bool = False,
    device_type: str = "cpu",
) -> TrainingMemory:
    """What a step of this plan needs on each device, at so many rows a forward pass."""
    return training_memory(
        plan.config,
        rows,
        plan.longest_sequence,
        compute_bytes=dtype.itemsize,
        head_chunk_size=head_chunk_tokens(device_type),
        ranks=ranks,
        muon=plan.recipe.optimizer.kind == "muon",
        average=isinstance(plan.recipe.averaging, ExponentialAverage),
        activation_checkpointing=activation_checkpointing,
    )


def describe_memory(plan: TrainingPlan, environment: Environment | None = None) -> str:
    """A line: what a step needs in memory, item by item.

    Without an environment, for the rows of a pass that the recipe states, else one, in bfloat16.
    """
    if environment is None:
        runtime = plan.recipe.runtime
        rows, ranks = runtime.micro_batch_size or 1, 1
        checkpointing = runtime.activation_checkpointing == "always"
        estimate = estimate_memory(
            plan, rows, torch.bfloat16, activation_checkpointing=checkpointing
        )
    else:
        rows, ranks = environment.micro_batch_size, environment.processes
        checkpointing, estimate = environment.activation_checkpointing, environment.memory
    kept = "activations (checkpointed)" if checkpointing else "activations"
    moments = "Muon and AdamW" if plan.recipe.optimizer.kind == "muon" else "AdamW"
    average = f", average {gigabytes(estimate.average)}" if estimate.average else ""
    where = "" if ranks == 1 else f" on each of {ranks} devices"
    return (
        f"  memory      about {gigabytes(estimate.total)}{where} at micro-batch {rows} × "
        f"{plan.longest_sequence:,}: weights {gigabytes(estimate.weights)}, gradients "
        f"{gigabytes(estimate.gradients)}, {moments} {gigabytes(estimate.optimizer)}{average}, "
        f"casts {gigabytes(estimate.weight_casts)}, {kept} {gigabytes(estimate.activations)}, "
        f"logits {gigabytes(estimate.logits)}"
    )
