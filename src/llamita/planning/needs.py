"""What a plan needs of machines: memory, rows of a forward pass, and time.

With FSDP weights, gradients and moments are sharded; activations, logits and the casts of weights
are each device's own (architecture/memory.py counts them).
"""

from __future__ import annotations

from dataclasses import dataclass

from llamita.architecture.memory import (
    BFLOAT16,
    TrainingMemory,
    training_memory,
)
from llamita.errors import UserError
from llamita.planning.plan import TrainingPlan
from llamita.planning.quantities import gigabytes
from llamita.recipes.schema import ExponentialAverage

MEMORY_SHARE = 0.8
"""Of a device's memory, what estimates may fill: allocators' reserves are not in them."""


# Past this many tokens a pass, matrix products on two to sixteen cores gain nothing more.
_CPU_PASS_TOKENS = 8192
# An adapter's gradients are small, and so is what several passes cost that add them up. Products of
# 512 tokens run nearly as fast as any (576 × 1,536 in float32 on one AVX2 core: 31 GFLOP/s at 256
# tokens, 33 at 512, 34 from 1,024 to 4,096), and keep a sixteenth of the activations of 8,192.
_CPU_ADAPTER_PASS_TOKENS = 512


@dataclass(frozen=True)
class DeviceNeeds:
    """One device of `ranks`: rows of a pass, whether activations are computed again, and bytes."""

    ranks: int
    micro_batch_size: int
    activation_checkpointing: bool
    memory: TrainingMemory
    device_memory: int

    @property
    def fits(self) -> bool:
        return self.memory.total <= MEMORY_SHARE * self.device_memory


@dataclass(frozen=True)
class PlanTime:
    """Seconds of a plan's arithmetic, and its tokens a second on all devices together."""

    seconds: float
    tokens_per_second: float


def time_of(plan: TrainingPlan, peak_flops: float, mfu: float, *, ranks: int = 1) -> PlanTime:
    """How long the plan's arithmetic takes: its FLOPs / (ranks · peak · MFU).

    Args:
        peak_flops: of one device, FLOP/s at the precision that is trained in.
        mfu: the share of it that is reached, in model FLOPs (PaLM, appendix B); what is computed
            again for the backward pass is not counted as done, and lowers it.
        ranks: devices, all as fast as one.
    """
    seconds = plan.flops / (ranks * peak_flops * mfu)
    return PlanTime(seconds, plan.tokens / seconds)


def device_needs(
    plan: TrainingPlan,
    device_memory: int,
    *,
    ranks: int = 1,
    compute_bytes: int = BFLOAT16,
    device_type: str = "cuda",
) -> DeviceNeeds:
    """Memory on each of `ranks` devices, at the rows of a pass that training would choose there.

    Raises:
        UserError: the ranks cannot share a step's sequences evenly.
    """
    for stage in plan.stages:
        if stage.windows_per_step % ranks:
            raise UserError(
                f"batch_tokens makes {stage.windows_per_step} sequences a step, which {ranks} "
                f"processes cannot share evenly; use a multiple of {ranks}"
            )
    compiled = plan.recipe.runtime.compile != "never"
    rows, checkpointing = passes_that_fit(
        plan,
        device_memory,
        rows=plan.recipe.runtime.micro_batch_size,
        ranks=ranks,
        compute_bytes=compute_bytes,
        device_type=device_type,
        compiled=compiled,
    )
    memory = step_memory(
        plan,
        rows,
        compute_bytes=compute_bytes,
        ranks=ranks,
        activation_checkpointing=checkpointing,
        device_type=device_type,
        compiled=compiled,
    )
    return DeviceNeeds(ranks, rows, checkpointing, memory, device_memory)


def can_share(plan: TrainingPlan, ranks: int) -> bool:
    """Whether so many devices can share each stage's sequences evenly."""
    return all(stage.windows_per_step % ranks == 0 for stage in plan.stages)


def passes_that_fit(
    plan: TrainingPlan,
    memory: int,
    *,
    rows: int | None = None,
    ranks: int = 1,
    compute_bytes: int = BFLOAT16,
    device_type: str = "cuda",
    compiled: bool = True,
) -> tuple[int, bool]:
    """Rows of a forward pass, and whether its activations are computed again in the backward.

    That costs a third of the arithmetic, so it is done where the recipe asks for it, or where
    nothing else fits: one row, or as many rows as were given.
    """
    asked = plan.recipe.runtime.activation_checkpointing
    checkpointing = asked == "always"
    if asked == "auto":
        least = step_memory(
            plan,
            rows or 1,
            compute_bytes=compute_bytes,
            ranks=ranks,
            device_type=device_type,
            compiled=compiled,
        )
        checkpointing = least.total > MEMORY_SHARE * memory
    if rows is None:
        limit = _CPU_PASS_TOKENS if plan.lora is None else _CPU_ADAPTER_PASS_TOKENS
        rows = default_micro_batch_size(
            plan,
            memory,
            ranks=ranks,
            max_tokens=limit if device_type == "cpu" else None,
            compute_bytes=compute_bytes,
            activation_checkpointing=checkpointing,
            device_type=device_type,
            compiled=compiled,
        )
    return rows, checkpointing


def default_micro_batch_size(
    plan: TrainingPlan,
    memory: int,
    *,
    ranks: int = 1,
    max_tokens: int | None = None,
    compute_bytes: int = BFLOAT16,
    activation_checkpointing: bool = False,
    device_type: str = "cuda",
    compiled: bool = True,
) -> int:
    """The largest common divisor of the stages' rows whose estimate fits in 80% of `memory`.

    A divisor, so that a compiled model meets one shape a stage. Fewer rows may need more, because
    several passes keep the gradients that they add up.
    """
    shares = [stage.windows_per_step // ranks for stage in plan.stages]
    best = 1
    for rows in range(1, min(shares) + 1):
        too_many = max_tokens is not None and rows * plan.longest_sequence > max_tokens
        if too_many or any(share % rows for share in shares):
            continue
        estimate = step_memory(
            plan,
            rows,
            compute_bytes=compute_bytes,
            ranks=ranks,
            activation_checkpointing=activation_checkpointing,
            device_type=device_type,
            compiled=compiled,
        )
        if estimate.total <= MEMORY_SHARE * memory:
            best = rows
    return best


def step_memory(
    plan: TrainingPlan,
    rows: int,
    *,
    compute_bytes: int = BFLOAT16,
    ranks: int = 1,
    activation_checkpointing: bool = False,
    device_type: str = "cuda",
    compiled: bool = True,
) -> TrainingMemory:
    """What a step of this plan needs on each device, at so many rows a forward pass.

    What a live reference says of pairs is computed before the pass that is differentiated, keeps
    nothing for it, and is less than that takes.
    """
    return training_memory(
        plan.config,
        rows,
        plan.longest_sequence,
        compute_bytes=compute_bytes,
        ranks=ranks,
        muon=plan.recipe.optimizer.kind == "muon",
        average=isinstance(plan.recipe.averaging, ExponentialAverage),
        activation_checkpointing=activation_checkpointing,
        device_type=device_type,
        compiled=compiled,
        accumulates=any(stage.windows_per_step // ranks > rows for stage in plan.stages),
        lora=plan.lora,
        learning_share=max(stage.learning_share for stage in plan.stages),
        documents=all(stage.documents for stage in plan.stages),
    )


def describe_step(
    plan: TrainingPlan,
    memory: TrainingMemory,
    rows: int,
    *,
    ranks: int = 1,
    activation_checkpointing: bool = False,
) -> str:
    """A line: what a step needs in memory, item by item."""
    kept = "activations (checkpointed)" if activation_checkpointing else "activations"
    moments = "Muon and AdamW" if plan.recipe.optimizer.kind == "muon" else "AdamW"
    weights, base = "weights", "base"
    if plan.lora is not None:
        weights, base = "adapters", f"base ({plan.lora.quantization or 'frozen'})"
    items = (
        (base, memory.base),
        (weights, memory.weights),
        ("gradients", memory.gradients),
        (moments, memory.optimizer),
        ("average", memory.average),
        ("casts", memory.weight_casts),
        (kept, memory.activations),
        ("logits", memory.logits),
        ("gathered", memory.gathered),
        ("dequantised", memory.dequantized),
        ("overhead", memory.overhead),
    )
    shown = ", ".join(f"{name} {gigabytes(size)}" for name, size in items if size)
    where = "" if ranks == 1 else f" on each of {ranks} devices"
    return (
        f"  memory      about {gigabytes(memory.total)}{where} at micro-batch {rows} × "
        f"{plan.longest_sequence:,}: {shown}"
    )
