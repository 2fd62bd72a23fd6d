"""Events of runs that nobody trained, for what reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BATCH = 256

RECIPE = """\
name: {name}
description: A run made for tests.
batch_tokens: 256
optimizer: {{learning_rate: {learning_rate}}}
stages:
- {{name: stable, tokens: {tokens}}}
"""


class Run:
    """Writes events with a clock of its own that starts at 1,000,000."""

    def __init__(self, directory: Path, recipe: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / "events.jsonl").open("w", encoding="utf-8")
        self._time = 1_000_000.0
        if recipe is not None:
            (directory / "recipe.yaml").write_text(recipe, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def wait(self, seconds: float) -> None:
        self._time += seconds

    def write(self, kind: str, **fields: Any) -> None:
        event = {"event": kind, "time": round(self._time, 3), **fields}
        self._file.write(json.dumps(event) + "\n")

    def start(self, last_step: int, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "step": 0,
            "last_step": last_step,
            "plan": ["tiny: 1,078,144 parameters (553,856 without embeddings)"],
            "environment": {"device": "cpu", "dtype": "float32", "threads": 1, "processes": 1},
            "versions": {"llamita": "0.1.0", "torch": "2.13.0"},
            "command": "llamita train tiny.yaml --set seed=1",
        }
        self.write("start", **{**fields, **changes})

    def steps(self, first: int, last: int, seconds_each: float = 0.1, **changes: Any) -> None:
        """A group of steps, written at once when the last has been taken, as training does."""
        self.wait(seconds_each * (last - first + 1))
        for number in range(first, last + 1):
            fields = {
                "step": number,
                "stage": "stable",
                "tokens": number * BATCH,
                "learning_rate": 1e-2 * min(1, number / 10),
                "loss": 2 + 6 * math.exp(-number / 100) + 0.2 * math.sin(number * 1.7),
                "grad_norm": 0.5 + 0.1 * math.cos(number * 2.3),
            }
            self.write("step", **{**fields, **changes})


def write_run(
    directory: Path,
    *,
    num_steps: int,
    name: str = "tiny",
    learning_rate: float = 1e-2,
    spikes: set[int] = frozenset(),  # type: ignore[assignment]
    non_finite: set[int] = frozenset(),  # type: ignore[assignment]
) -> Path:
    """A whole run: one stage, lines every ten steps, validations, samples, checkpoints."""
    recipe = RECIPE.format(name=name, learning_rate=learning_rate, tokens=num_steps * BATCH)
    with Run(directory, recipe) as run:
        run.start(num_steps)
        run.write(
            "probe", step=0, compile_seconds=0.0, step_seconds=0.1, rest_seconds=num_steps / 10
        )
        run.write("stage", step=0, name="stable")
        for number in range(1, num_steps + 1):
            odd: dict[str, Any] = {}
            if number in spikes:
                odd = {"loss": 50.0, "grad_norm": 900.0, "skipped": "spike"}
            if number in non_finite:
                odd = {"loss": "nan", "grad_norm": "inf", "skipped": "non_finite"}
            run.steps(number, number, **odd)
            if number % 10 == 0:
                rate = 3300.0 + 100 * math.sin(number)
                run.write(
                    "progress",
                    step=number,
                    tokens_per_second=rate,
                    mfu=rate / 8000,
                    memory_bytes=400_000_000 + number,
                    data_wait=0.001 * (number % 30),
                    eta_seconds=1.0,
                )
            if number % max(1, num_steps // 4) == 0:
                bits = 1 + 2 * math.exp(-number / num_steps)
                datasets = {"prose": bits + 0.1, "code": bits - 0.2}
                run.write("validation", step=number, bits_per_byte=bits, datasets=datasets)
                run.write("sample", step=number, prompt="Once", text=f" upon step {number}")
                run.write("checkpoint", step=number, path=f"step-{number}")
        shares = {"prose": 0.7, "code": 0.3}
        realised = {"prose": 0.699, "code": 0.301}
        epochs = {"prose": 0.5, "code": 1.25}
        run.write(
            "mixture",
            step=num_steps,
            stage="stable",
            asked=shares,
            realised=realised,
            epochs=epochs,
        )
        run.write("end", step=num_steps, final="final", bits_per_byte=1 + 2 * math.exp(-1))
    return directory
