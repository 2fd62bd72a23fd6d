"""What `runtime: auto` means in a study: settled once, and then the same for every run.

A run of its own settles number type, compilation and rows of a pass by measuring, and its
checkpoints remember. Runs of a study that each did so might differ by more than what is varied,
and one that was killed before its first checkpoint might not come out the same again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamita.durable import replace_synced
from llamita.windtunnel.costs import Costs
from llamita.windtunnel.points import Point
from llamita.windtunnel.runner import SlotPlan

_RUNTIME = "runtime"


class Settler:
    """Keeps what was settled in the study's record.

    Args:
        record: study.json, which is there already.
    """

    def __init__(self, record: Path, slots: Sequence[SlotPlan], costs: Costs) -> None:
        self._record, self._slots, self._costs = record, slots, costs
        known = json.loads(record.read_text("utf-8"))
        self._known: dict[str, dict[str, Any]] = known.get(_RUNTIME, {})

    def overrides(self, point: Point) -> list[str]:
        """`runtime.KEY=VALUE` for what the recipe leaves to `auto`."""
        if point.coordinates:
            return []
        recipe = point.recipe
        name = (
            f"{point.size.name} {point.parametrization} "
            f"{recipe.batch_tokens}/{recipe.sequence_length}"
        )
        if name not in self._known:
            self._known[name] = self._settle(point)
            record = json.loads(self._record.read_text("utf-8")) | {_RUNTIME: self._known}
            replace_synced(self._record, json.dumps(record, indent=1) + "\n")
        asked = recipe.runtime.model_dump()
        return [
            f"runtime.{key}={json.dumps(value)}"
            for key, value in self._known[name].items()
            if asked[key] in ("auto", None)
        ]

    def _settle(self, point: Point) -> dict[str, Any]:
        import torch

        from llamita.planning.needs import passes_that_fit
        from llamita.training.devices import choose_compute, free_memory
        from llamita.training.preparation import prepare

        slot = self._slots[0]
        torch.set_num_threads(slot.threads)
        recipe = point.recipe.model_copy(update={"start_from": None})
        runtime = recipe.runtime
        if runtime.device == "auto":
            runtime = runtime.model_copy(update={"device": slot.device})
        # Compiled code serves every run of this shape in its process, so that it pays by their sum.
        flops = self._costs.of_size(point.size.name) / len(self._slots)
        compute = choose_compute(runtime, flops)
        plan = prepare(recipe, allow_declared=True).plan
        rows, checkpointing = passes_that_fit(
            plan,
            free_memory(compute.device) // len(self._slots),
            compute_bytes=compute.dtype.itemsize,
            device_type=compute.device.type,
            compiled=compute.compile,
        )
        return {
            "dtype": str(compute.dtype).removeprefix("torch."),
            "compile": "always" if compute.compile else "never",
            "micro_batch_size": rows,
            "activation_checkpointing": "always" if checkpointing else "never",
        }
