"""What a study will take: parameters, tokens, FLOPs, memory and time of each run, before any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamita.cores import usable_cores
from llamita.errors import UserError
from llamita.planning.needs import step_memory
from llamita.planning.plan import TrainingPlan
from llamita.windtunnel.points import Point, Points
from llamita.windtunnel.results import Journal
from llamita.windtunnel.runner import SlotPlan

ASSUMED_SHARE = 0.4
"""Of a slot's product rate, before the first runs have shown what they reach: compiled ones of a
third of a million parameters reached 0.47 to 0.62 of it."""
_PROCESS_BYTES = 500_000_000
"""PyTorch and what else a process holds beside its run."""


@dataclass(frozen=True)
class Cost:
    """Of one run: FLOPs and tokens are its own, not those of the trunk that it goes on from."""

    flops: float
    tokens: int
    parameters: int
    memory: int


class Costs:
    """Worked out once for all runs that differ only in numbers that cost nothing."""

    def __init__(self, points: Points | None = None) -> None:
        self._points = points
        self._known: dict[tuple[object, ...], Cost] = {}

    def of(self, point: Point) -> Cost:
        recipe = point.recipe
        own = tuple((stage.tokens, *sorted(stage.mixture)) for stage in recipe.stages)
        alike = (point.size.name, str(recipe.model), recipe.batch_tokens, own, point.trunk is None)
        if alike not in self._known:
            self._known[alike] = _cost(point)
        return self._known[alike]

    def of_size(self, name: str) -> float:
        """FLOPs of all the study's runs of a size, as many as a search may make among them."""
        if self._points is None:
            return 0.0
        listed = [point for point in self._points.points if point.size.name == name]
        cells = [cell for cell in self._points.searched if cell.size.name == name]
        return sum(self.of(point).flops for point in listed) + sum(
            cell.trials * self.of(cell.example).flops for cell in cells
        )


def _cost(point: Point) -> Cost:
    from llamita.training.preparation import prepare

    recipe = point.recipe
    if point.trunk is not None:  # it is not there yet; the shape is known without it
        recipe = recipe.model_copy(update={"start_from": None})
    try:
        plan = prepare(recipe, allow_declared=True).plan
    except UserError as error:
        raise UserError(f"{point.name}: {error}") from error
    return Cost(
        flops=float(plan.flops),
        tokens=sum(stage.num_steps * stage.batch_tokens for stage in plan.stages),
        parameters=point.size.parameters,
        memory=_memory(plan),
    )


def _memory(plan: TrainingPlan) -> int:
    rows = plan.recipe.runtime.micro_batch_size or 1
    return step_memory(plan, rows, device_type="cpu", compiled=False).total


def make_slots(memory: int, wanted: int | None, device: str) -> list[SlotPlan]:
    """Where runs are made at once.

    On a CPU a slot is a core, as a tiny model's products are too small to be shared; on GPUs each
    has as many as the spec says, one if it says nothing.

    Args:
        memory: bytes that the largest run takes.
        wanted: the spec's `runs_at_once`, on all devices together.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    from llamita.model.devices import choose_device
    from llamita.training.devices import free_memory

    chosen = choose_device(device)
    if chosen.type == "cuda" and device in ("auto", "cuda"):
        count = torch.cuda.device_count()
        per_device = max(1, (wanted or count) // count)
        return [
            SlotPlan(f"cuda:{number}", max(1, usable_cores() // (count * per_device)))
            for _ in range(per_device)
            for number in range(count)
        ]
    if chosen.type != "cpu":
        return [SlotPlan(str(chosen), usable_cores()) for _ in range(wanted or 1)]
    fit = max(1, free_memory(torch.device("cpu")) // (memory + _PROCESS_BYTES))
    slots = min(wanted or usable_cores(), fit)
    return [SlotPlan("cpu", max(1, usable_cores() // slots)) for _ in range(slots)]


@dataclass(frozen=True)
class Rate:
    """FLOP/s of one slot, by size where runs of the study have shown it. assumed: of other sizes;
    None where there is nothing to go by."""

    by_size: Mapping[str, float]
    assumed: float | None

    def seconds(self, point: Point, cost: Cost) -> float | None:
        rate = self.by_size.get(point.size.name, self.assumed)
        return None if rate is None else cost.flops / rate

    @property
    def measured(self) -> bool:
        return bool(self.by_size)


def rate_of(journal: Journal, slots: Sequence[SlotPlan]) -> Rate:
    """What runs of each size have reached; of others the mean, and before the first run a share of
    this CPU's product rate."""
    flops: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for run in journal.runs.values():
        if run.status == "done" and run.seconds > 0 and run.flops > 0:
            flops[run.size] = flops.get(run.size, 0.0) + run.flops
            seconds[run.size] = seconds.get(run.size, 0.0) + run.seconds
    by_size = {size: flops[size] / seconds[size] for size in flops}
    if by_size:
        return Rate(by_size, sum(by_size.values()) / len(by_size))
    if slots[0].device != "cpu":
        return Rate({}, None)
    return Rate({}, ASSUMED_SHARE * _product_rate(slots[0]))


def _product_rate(slot: SlotPlan) -> float:
    """FLOP/s of float32 products with a slot's threads, measured now."""
    import torch

    from llamita.training.devices import matmul_rate

    before = torch.get_num_threads()
    torch.set_num_threads(slot.threads)
    try:
        return matmul_rate(torch.device("cpu"), torch.float32)
    finally:
        torch.set_num_threads(before)
