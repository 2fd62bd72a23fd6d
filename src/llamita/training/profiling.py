"""Where a step's time goes: a few steps under torch.profiler, as a trace and as two tables."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llamita.errors import UserError

SKIPPED_STEPS = 2  # the first pass of a shape allocates and, compiled, may compile
PROFILED_STEPS = 3

PHASES = ("wait for data", "forward", "backward", "norm and guard", "update")

_KINDS: tuple[tuple[str, str], ...] = (
    # The first pattern that is found in an operator's or kernel's name decides. Batched products
    # are attention's: no other part of the model makes one. (Muon does; on a CPU its operators are
    # known by their phase.)
    ("communication", r"nccl|c10d|all_gather|reduce_scatter|all_reduce"),
    ("attention", r"scaled_dot_product|flash|fmha|cudnn.*sdpa|flex_|aten::bmm|aten::baddbmm"),
    ("matrix products", r"aten::(add)?mm$|_scaled_mm|gemm|cutlass|nvjet|xmma|mkldnn_linear"),
    ("optimizer", r"adam|[Oo]ptimizer|muon|multi_tensor"),
    ("compiled element-wise", r"CompiledFxGraph|triton_|cpp_fused"),
    ("copies and casts", r"copy|clone|contiguous|aten::to$|Mem(cpy|set)|memcpy|memset"),
    ("embedding", r"embedding|index_select"),
)
_REST = "other operators"


def phase(name: str) -> AbstractContextManager[Any]:
    """Marks a phase of the step in a trace; costs a microsecond where nothing is profiled."""
    assert name in PHASES
    return torch.profiler.record_function(name)


class StepProfiler:
    """Watches steps `SKIPPED_STEPS + 1` to `SKIPPED_STEPS + PROFILED_STEPS` of this process.

    Args:
        folder: receives trace.json.gz (chrome's format; ui.perfetto.dev and chrome://tracing read
            it) and table.txt.
        finished: called once with the fields of a `profile` event and the tables' lines.

    Raises:
        UserError: fewer steps are to come than a profile takes.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        steps_to_come: int,
        finished: Callable[[dict[str, Any], list[str]], None],
    ) -> None:
        if steps_to_come < SKIPPED_STEPS + PROFILED_STEPS:
            raise UserError(
                f"--profile takes {SKIPPED_STEPS + PROFILED_STEPS} steps, and this run has "
                f"{steps_to_come} to come; profile a longer run, or this one with another --out"
            )
        self.folder, self.device, self.finished = folder, device, finished
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._taken = 0
        self._begun = 0.0

    def step_taken(self) -> None:
        """Call after each step, with the device's queue empty where `wants_quiet`."""
        self._taken += 1
        if self._taken == SKIPPED_STEPS:
            self._profile.start()
            self._begun = time.perf_counter()
        elif self._taken == SKIPPED_STEPS + PROFILED_STEPS:
            seconds = time.perf_counter() - self._begun
            self._profile.stop()
            self._write(seconds)

    @property
    def wants_quiet(self) -> bool:
        """Whether the step under way ends the skipped or the profiled ones."""
        return self._taken + 1 in (SKIPPED_STEPS, SKIPPED_STEPS + PROFILED_STEPS)

    def _write(self, seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / "trace.json.gz"))
        averages = self._profile.key_averages()
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            kernels = (row for row in averages if row.device_type.name == "CUDA")
            kinds = sum_by_kind((row.key, row.self_device_time_total / 1e6) for row in kernels)
        else:
            events: Any = self._profile.events()  # type: ignore[no-untyped-call]
            kinds = sum_by_kind(_own_times(events))
        kinds["waiting and Python" if not on_gpu else "idle"] = max(
            0.0, seconds - sum(kinds.values())
        )
        phases = {
            row.key: row.cpu_time_total / 1e6
            for row in averages
            if row.key in PHASES and row.device_type.name == "CPU"
        }
        fields = {
            "steps": PROFILED_STEPS,
            "seconds": round(seconds, 6),
            "table": _rows(sorted(kinds.items(), key=lambda item: -item[1]), seconds),
            "phases": _rows([(name, phases[name]) for name in PHASES if name in phases], seconds),
        }
        lines = describe_profile(fields)
        sort = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        operators = averages.table(sort_by=sort, row_limit=40, max_name_column_width=80)
        (self.folder / "table.txt").write_text("\n".join([*lines, "", operators]) + "\n")
        self.finished(fields, lines)


def _own_times(events: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """Operators on the host with their own seconds; all that an update calls is the optimizer's."""
    for event in events:
        ancestor = event
        while ancestor is not None and ancestor.name != "update":
            ancestor = ancestor.cpu_parent
        name = event.name if ancestor in (None, event) else "optimizer"
        yield name, event.self_cpu_time_total / 1e6


def sum_by_kind(operators: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds of operators (name, own seconds), added up by what kind of work they are."""
    kinds: dict[str, float] = {}
    for name, seconds in operators:
        if name in PHASES or seconds <= 0:
            continue
        kind = next((kind for kind, pattern in _KINDS if re.search(pattern, name)), _REST)
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    return kinds


def describe_profile(fields: dict[str, Any]) -> list[str]:
    """The two tables of a `profile` event, in lines."""
    steps, seconds = fields["steps"], fields["seconds"]
    lines = [f"profile of {steps} steps, {seconds / steps:.4g} s each, by kind of work:"]
    lines += [_line(row, steps) for row in fields["table"]]
    lines.append("by phase, as the host sees it (on a GPU it only queues the work):")
    return lines + [_line(row, steps) for row in fields["phases"]]


def _rows(items: Iterable[tuple[str, float]], total: float) -> list[dict[str, Any]]:
    return [
        {"name": name, "seconds": round(seconds, 6), "share": round(seconds / total, 4)}
        for name, seconds in items
    ]


def _line(row: dict[str, Any], steps: int) -> str:
    return f"  {row['name']:<24}{row['seconds'] / steps:>10.4f} s{row['share']:>8.1%}"
