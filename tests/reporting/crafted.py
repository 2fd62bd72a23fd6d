"""The events of a small run that never was. Imports little: processes of tests begin here."""

from __future__ import annotations

import math
import random
from typing import Any

Event = dict[str, Any]


def stage(name: str, first: int, steps: int, end: float) -> dict[str, Any]:
    rate = {"learning_rate": 4e-3, "learning_rate_at_end": end}
    shape = {"batch_tokens": 2048, "sequence_length": 128, "mixture": {"prose": 0.3, "code": 0.7}}
    return {"name": name, "first_step": first, "num_steps": steps, **rate, **shape}


def events(
    steps: int = 400, prompt: str = "def read(path):", run: str = "runs/small"
) -> list[Event]:
    draw_number = random.Random(0)
    stages = [stage("stable", 0, 300, 4e-3), stage("decay", 300, 100, 1e-5)]
    told: list[Event] = [
        {
            "event": "start", "step": 0, "last_step": 400, "run": run, "parameters": 1_078_144,
            "recipe": {"name": "small", "optimizer": {"learning_rate": 4e-3}}, "stages": stages,
            "environment": {"device": "cpu", "dtype": "bfloat16", "compile": True},
        },
        {"event": "probe", "step": 0, "compile_seconds": 9.0, "rest_seconds": 60.0},
        {"event": "validation", "step": 0, "bits_per_byte": 3.9, "datasets": {"a": 4.0, "b": 3.8}},
    ]  # fmt: skip
    for n in range(1, steps + 1):
        name = "stable" if n <= 300 else "decay"
        rate = 4e-3 if n <= 300 else 4e-3 * (1 - (n - 300) / 101)
        loss = 2.0 + 6 * math.exp(-n / 60) + draw_number.gauss(0, 0.05)
        step = {"event": "step", "step": n, "stage": name, "tokens": 2048 * n, "loss": loss}
        step |= {"learning_rate": rate, "grad_norm": 0.5}
        told.append(step | ({"skipped": "spike"} if n in (150, 170, 190) else {}))
        if n % 10 == 0:
            progress = {"tokens_per_second": 4.1e4, "mfu": 0.47, "data_wait": 0.004}
            progress |= {"memory_bytes": 570_000_000, "memory_limit_bytes": 16_000_000_000}
            progress |= {"eta_seconds": 0.05 * (400 - n), "mixture": {"prose": 0.31, "code": 0.69}}
            told.append({"event": "progress", "step": n, **progress})
        if n % 100 == 0:
            told.append({"event": "validation", "step": n, "bits_per_byte": 2 - n / 1e3})
            told.append(
                {"event": "sample", "step": n, "prompt": prompt, "text": "\n  it 小さな 🦙" * 30}
            )
            told.append({"event": "checkpoint", "step": n, "path": f"step-{n}"})
    return [{"time": 1000.0 + 0.05 * n, **event} for n, event in enumerate(told)]
