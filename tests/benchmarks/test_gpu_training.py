"""benchmarks/gpu_training.py where no GPU is: its logic on a tiny shape, uncompiled."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_training.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_training", module)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_tiny_run_measures_steps_that_learn(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    options = "--device cpu --tiny --only llamita --rounds 1 --steps 3 --warmup 1"
    shape = f"--micro-batch 2 --global-batch 4 --out {out}"
    done = subprocess.run(
        [sys.executable, SCRIPT, *options.split(), *shape.split()],
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    # 2 blocks of 64·64 (q), 2 · 64·32 (k, v), 64·64 (o), 3 · 64·128 (ffn), and a head of 512·64.
    products = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128) + 512 * 64
    assert record["flops_per_token"] == 6 * products + 12 * 2 * 64 * 64
    assert record["tokens_per_step"] == 4 * 64
    assert len(record["step_seconds"]) == 3
    losses = record["losses"]
    assert losses[0] == pytest.approx(math.log(512), abs=0.2)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert f"| llamita | 2 × 64 | {min(record['step_seconds']):.4f} s |" in done.stdout


def test_out_of_memory_halves_the_micro_batch(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def timed(job: Any) -> str:
        if job.micro_batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
        return "measured"

    monkeypatch.setattr(bench, "timed", timed)
    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda _: _InThisProcess())
    job = bench.Job("llamita", "cpu", True, 8, 16, 1, 1)
    measured, what, said = bench.run_one(job)
    assert (what, said) == ("ok", "measured")
    assert (measured.micro_batch, measured.global_batch) == (2, 16)
    assert capsys.readouterr().out.count("out of memory") == 2


def test_mfu_is_tokens_a_second_times_flops_over_the_rate(bench: ModuleType) -> None:
    job = bench.Job("", "cpu", True, 2, 4, 1, 1)
    record = {
        **bench.record_of(
            job,
            {
                "step_seconds": [0.5, 0.25, 1.0],
                "peak_bytes": 2**30,
                "matmul_flops": 1e9,
            },
        ),
        "contender": "llamita",
        "device": "NVIDIA H100 80GB HBM3",
    }
    row = next(line for line in bench.table(job, [record]) if line.startswith("| llamita"))
    rate = 4 * 64 / 0.5  # the median step
    mfu = rate * 737_280 / 1e9
    sheet = rate * 737_280 / 989e12
    assert f"| 0.2500 s | 0.5000 s | {rate:,.0f} | {mfu:.1%} | {sheet:.1%} | 1.0 GiB |" in row


def test_a_rival_is_the_fastest_peer_of_equal_arithmetic(bench: ModuleType) -> None:
    speeds = {"llamita": 300.0, "transformers": 200.0, "litgpt": 150.0, "litgpt true bf16": 400.0}
    assert bench.verdicts(speeds) == [
        "llamita does 1.50 times the work of transformers in the same time."
    ]


class _InThisProcess:
    """What run_one needs of a multiprocessing context, without a process."""

    def Pipe(self) -> tuple[Any, Any]:
        sent: list[Any] = []
        ours = SimpleNamespace(recv=lambda: sent.pop(0))
        return ours, SimpleNamespace(send=sent.append, close=lambda: None)

    def Process(self, target: Callable[..., None], args: tuple[Any, ...]) -> Any:
        return SimpleNamespace(start=lambda: target(*args), join=lambda: None)
