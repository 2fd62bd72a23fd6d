"""A study of many short runs: the share of its devices' time that goes into steps, and what
starting costs.

    python benchmarks/tunnel_utilization.py --data DIR [--runs 8] [--tokens 300e3] [--record]
    python benchmarks/tunnel_utilization.py --study runs/two-hours

DIR is what `llamita data build` made. One size (hidden 64, two layers), several learning rates, as
many at once as the machine carries. Utilisation is the time that the study's tokens would take at
the best run's tokens a second, over its devices' time: the best run's from its start to its end,
with its validations and its checkpoint, and, as `steps_utilization`, its rate while it took steps.
Start-up is from a run's being given to a process to its first step, of each process's first run
and of later ones.

--study measures one that was made, of sizes of any kind, each against the best run of its size,
from the first run's start to the last one's end. Time that it did not run counts against it, and so
do models that were only looked into.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from llamita.reporting.events import read_events
from llamita.windtunnel.costs import Costs, make_slots
from llamita.windtunnel.findings import RunResult
from llamita.windtunnel.points import POINTS, load_base, make_points
from llamita.windtunnel.results import Journal
from llamita.windtunnel.runner import Runner
from llamita.windtunnel.settling import Settler
from llamita.windtunnel.spec import load_spec
from llamita.windtunnel.study import STUDY, Study, begin_study, open_study
from plan_memory import circumstances

HERE = Path(__file__).resolve().parent
BARS = {"utilization": 0.85, "startup_seconds": 3.0}


class _Clock:
    """When each run was given to which slot."""

    def __init__(self) -> None:
        self.given: dict[str, tuple[int, float]] = {}

    def started(self, slot: int, key: str, name: str, **cost: Any) -> None:
        self.given[key] = slot, time.time()

    def progress(self, slot: int, step: int, last_step: int, loss: float | None) -> None:
        """Read from the events, later."""

    def ended(self, slot: int, result: RunResult) -> None:
        print(f"  {result.key} {result.status} in {result.seconds:.1f} s", flush=True)

    def left(self, slot: int, *, done: bool = False) -> None:
        """Nothing leaves a study that runs alone."""

    def say(self, line: str) -> None:
        print(line)


def write_spec(folder: Path, data: Path, runs: int, tokens: float) -> Path:
    recipe = {
        "name": "base",
        "model": {"preset": "llamita-5m"},
        "parametrization": "minicpm",
        "sequence_length": 256,
        "batch_tokens": 2048,
        "optimizer": {"learning_rate": 0.01},
        "datasets": {"text": {"path": str(data.resolve()), "max_epochs": 100}},
        "stages": [{"name": "train", "tokens": 1_000_000, "mixture": {"text": 1.0}}],
        "validation": {"tokens": 16_384},
    }
    (folder / "base.yaml").write_text(json.dumps(recipe), "utf-8")
    rates = {"low": 0.001, "high": 0.05, "points": runs}
    spec = {
        "name": "utilization",
        "base": "base.yaml",
        "sizes": {"rule": "width", "hidden_sizes": [64], "layers": 2},
        "experiments": {
            "rate": {"kind": "sweep", "tokens": tokens, "axes": {"optimizer.learning_rate": rates}}
        },
    }
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec), "utf-8")
    return path


def measure(folder: Path, data: Path, runs: int, tokens: float) -> dict[str, Any]:
    path = write_spec(folder, data, runs, tokens)
    spec = load_spec(path)
    base = load_base(spec, folder)
    points = make_points(spec, base)
    study = Study(folder / "study", points, Journal(folder / "study"))
    begin_study(study, path, base)
    costs, clock = Costs(points), _Clock()
    slots = make_slots(max(costs.of(each).memory for each in points.points), None, "auto")
    settle = Settler(study.directory / STUDY, slots, costs).overrides
    settle(points.points[0])  # measuring products is the machine's and not the study's time
    runner = Runner(
        study.directory, points.points, study.journal, slots, clock, costs.of, settle=settle
    )
    began = time.time()
    runner.run([])
    wall = time.time() - began
    first, later = [], []
    met: set[int] = set()
    for key, (slot, given) in clock.given.items():
        events = read_events(study.directory / POINTS / key)
        stage = next(event["time"] for event in events if event["event"] == "stage")
        (later if slot in met else first).append(stage - given)
        met.add(slot)
    return {
        "device": slots[0].device,
        **utilization(study, len(slots), wall),
        "first_startup_seconds": max(first),
        "startup_seconds": sorted(later)[len(later) // 2],
        "startup_seconds_at_most": max(later),
    }


def utilization(study: Study, slots: int, wall: float) -> dict[str, Any]:
    """Of a study that has its runs' events still."""
    sizes: dict[str, list[tuple[int, float, float]]] = {}
    for run in study.journal.runs.values():
        events = read_events(study.directory / POINTS / run.key)
        start = next(event for event in events if event["event"] == "start")
        stage = next(event for event in events if event["event"] == "stage")
        last = [event for event in events if event["event"] == "progress"][-1]
        tokens = (events[-1]["step"] - start["step"]) * run.batch_tokens
        stepped = (last["step"] - stage["step"]) * run.batch_tokens
        in_steps = stepped / (last["time"] - stage["time"])
        in_all = tokens / (events[-1]["time"] - start["time"])
        sizes.setdefault(run.size, []).append((tokens, in_all, in_steps))
    best = {size: max(run[1] for run in runs) for size, runs in sizes.items()}
    best_steps = {size: max(run[2] for run in runs) for size, runs in sizes.items()}
    tokens = {size: sum(run[0] for run in runs) for size, runs in sizes.items()}
    return {
        "slots": slots,
        "runs": len(study.journal.runs),
        "wall_seconds": wall,
        "best_run_tokens_per_second": best,
        "best_steps_tokens_per_second": best_steps,
        "utilization": sum(tokens[size] / best[size] for size in sizes) / (wall * slots),
        "steps_utilization": sum(tokens[size] / best_steps[size] for size in sizes)
        / (wall * slots),
    }


def measure_made(directory: Path) -> dict[str, Any]:
    study = open_study(directory)
    facts = json.loads((directory / STUDY).read_text("utf-8"))["facts"]
    times = [
        event["time"]
        for key in study.journal.runs
        for event in read_events(directory / POINTS / key)
        if event["event"] in ("start", "end")
    ]
    return utilization(study, int(facts["devices"].split()[0]), max(times) - min(times))


def show(found: dict[str, Any]) -> None:
    for key, value in found.items():
        bar = f" (bar {BARS[key]:g})" if key in BARS else ""
        print(f"{key}: {value:.3g}{bar}" if isinstance(value, float) else f"{key}: {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path)
    what.add_argument("--study", type=Path)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--tokens", type=float, default=300e3)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.study is not None:
        show(measure_made(arguments.study))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.data, arguments.runs, arguments.tokens)
    show(found)
    if arguments.record:
        out = HERE / "recorded" / "tunnel_utilization.json"
        out.write_text(
            json.dumps({**circumstances(found["device"]), **found}, indent=1) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
