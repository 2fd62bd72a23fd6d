"""What a recipe needs: memory on each device, time, money; before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llamita.planning.answer_text import money, table
from llamita.planning.economics import Engine
from llamita.planning.needs import (
    MEMORY_SHARE,
    DeviceNeeds,
    can_share,
    describe_step,
    device_needs,
    step_memory,
    time_of,
)
from llamita.planning.plan import TrainingPlan, describe
from llamita.planning.quantities import duration, gigabytes
from llamita.planning.recipe_plan import plan_recipe

_BYTES = {"float32": 4}
"""Of an activation, by precision; two for all others: products in float8 and int8 keep bfloat16."""


@dataclass(frozen=True)
class RecipeAnswer:
    """needs: of each device, alone and with the weights sharded over more of them, those that were
    asked for first. seconds, tokens_per_second and usd are None where no hardware is named; then
    memory_line says what one GPU needs."""

    plan: TrainingPlan
    engine: Engine | None
    needs: tuple[DeviceNeeds, ...]
    seconds: float | None = None
    tokens_per_second: float | None = None
    warnings: tuple[str, ...] = ()
    memory_line: str = ""

    @property
    def usd(self) -> float | None:
        if self.engine is None or self.seconds is None or self.engine.usd_per_hour is None:
            return None
        return self.engine.usd_per_hour * self.seconds / 3600

    def lines(self) -> list[str]:
        found = describe(self.plan)
        found += [self.memory_line] if self.memory_line else []
        found += list(self._time())
        if self.needs:
            found += ["", "memory on each device:", *table(list(_rows(self.needs)))]
            if any(each.activation_checkpointing for each in self.needs):
                found.append("  recomputed: activations are computed again for the backward pass")
        return [*found, *(f"warning: {each}" for each in self.warnings)]

    def _time(self) -> Iterator[str]:
        engine = self.engine
        if engine is None or self.seconds is None or self.tokens_per_second is None:
            yield "  time        unknown: name what trains, as in --hardware 8xa100-80 or cpu"
            return
        yield (
            f"  time        {duration(self.seconds)} on {engine.hardware.label}, "
            f"{engine.precision} at {engine.mfu:.0%} of "
            f"{engine.hardware.peak_flops(engine.precision):.4g} FLOP/s: "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )
        if self.usd is not None:
            yield f"  cost        {money(self.usd)} at {money(engine.usd_per_hour or 0.0)} an hour"

    def as_json(self) -> dict[str, Any]:
        """Plain values, in bytes, seconds, FLOPs and dollars."""
        plan = self.plan
        return {
            "recipe": plan.recipe.name,
            "tokens": plan.tokens,
            "steps": plan.num_steps,
            "training_flops": plan.flops,
            "training_seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "training_usd": self.usd,
            "memory": [
                {**asdict(each), "total_bytes": each.memory.total, "fits": each.fits}
                for each in self.needs
            ],
            "plan": describe(plan),
            "warnings": list(self.warnings),
        }


def answer_recipe(
    recipe: str | Path, overrides: Sequence[str], engine: Engine | None
) -> RecipeAnswer:
    """The plan of a recipe on an engine, or, without one, what one device needs for one row.

    Raises:
        UserError: the recipe is at fault, or the devices cannot share its batches.
    """
    plan = plan_recipe(recipe, overrides)
    if engine is None:
        rows = plan.recipe.runtime.micro_batch_size or 1
        memory_line = describe_step(plan, step_memory(plan, rows), rows)
        return RecipeAnswer(plan, None, (), memory_line=f"{memory_line}, on one GPU")
    hardware = engine.hardware
    peak = hardware.peak_flops(engine.precision) / hardware.num_devices
    time = time_of(plan, peak, engine.mfu, ranks=hardware.num_devices)
    memory = hardware.device.memory_bytes
    if memory is None:
        warning = f"the memory of {hardware.device.name} is unknown: whether it fits is not said"
        return RecipeAnswer(plan, engine, (), time.seconds, time.tokens_per_second, (warning,))
    kind = "cpu" if hardware.device.is_cpu else "cuda"
    needed = partial(
        device_needs,
        plan,
        memory,
        compute_bytes=_BYTES.get(engine.precision, 2),
        device_type=kind,
    )
    own = needed(ranks=hardware.num_devices)
    others = [
        needed(ranks=ranks)
        for ranks in (1, 2, 4, 8)
        if kind == "cuda" and ranks != own.ranks and can_share(plan, ranks)
    ]
    warnings = [hardware.device.note] if hardware.device.is_cpu and hardware.device.note else []
    if not own.fits:
        warnings.append(
            f"{hardware.label}: {gigabytes(own.memory.total)} on each are more than "
            f"{MEMORY_SHARE:.0%} of {gigabytes(memory)}; take more devices, a shorter "
            "sequence_length, or runtime.activation_checkpointing: always"
        )
    if own.activation_checkpointing:
        warnings.append("activations are computed again: about a third more time than is said")
    return RecipeAnswer(
        plan,
        engine,
        (own, *others),
        time.seconds,
        time.tokens_per_second,
        tuple(warnings),
    )


def _rows(needs: Sequence[DeviceNeeds]) -> Iterator[list[str]]:
    items = [name for name in asdict(needs[0].memory) if any(_item(each, name) for each in needs)]
    titles = [name.replace("_", " ") for name in items]
    yield ["devices", "rows a pass", *titles, "total", "of", "fits"]
    for each in needs:
        again = ", recomputed" if each.activation_checkpointing else ""
        yield [
            f"{each.ranks}",
            f"{each.micro_batch_size}{again}",
            *(gigabytes(_item(each, name)) for name in items),
            gigabytes(each.memory.total),
            gigabytes(each.device_memory),
            "yes" if each.fits else "no",
        ]


def _item(needs: DeviceNeeds, name: str) -> int:
    return int(getattr(needs.memory, name))
