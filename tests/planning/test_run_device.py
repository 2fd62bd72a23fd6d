"""The rate of a run as hardware: arithmetic on events written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.planning.asking import Asked, engine_of
from llamita.planning.hardware import load_hardware
from llamita.planning.run_device import device_of_run


def write(run: Path, *, processes: int = 1, device: str = "cpu", **changes: Any) -> Path:
    """100 GFLOP/s by measuring; 2e6 FLOPs a token; steps at 10, 20 and 30 thousand tokens/s."""
    environment = {"device": device, "dtype": "bfloat16", "processes": processes}
    events: list[dict[str, Any]] = [
        {"event": "start", "step": 0, "environment": environment},
        {"event": "forecast", "step": 0, "flops": 4e12, "tokens": 2e6, **changes},
    ]
    for step, speed in enumerate((1e4, 2e4, 3e4), start=1):
        events.append(
            {
                "event": "progress",
                "step": step,
                "time": 1767225600.0,  # 2026-01-01
                "tokens_per_second": speed,
                "mfu": speed * 2e6 / 1e11,
                "memory_limit_bytes": 16e9,
            }
        )
    run.mkdir()
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (run / "events.jsonl").write_text(lines, encoding="utf-8")
    return run


def test_the_rate_and_the_share_that_was_reached(tmp_path: Path) -> None:
    device, num_devices = device_of_run(write(tmp_path / "Run"))
    assert num_devices == 1
    assert device.peak("bfloat16") == pytest.approx(1e11)
    assert device.mfu == pytest.approx(0.4)
    assert device.memory_bytes == 16_000_000_000
    assert device.is_cpu
    assert device.date == "2026-01-01"


def test_several_devices_share_the_rate(tmp_path: Path) -> None:
    run = write(tmp_path / "Run", processes=4, device="cuda")
    hardware = load_hardware().find(str(run))
    assert hardware.num_devices == 4
    assert hardware.device.peak("bfloat16") == pytest.approx(2.5e10)
    assert hardware.peak_flops("bfloat16") == pytest.approx(1e11)
    assert not hardware.device.is_cpu


def test_an_engine_runs_as_the_run_did(tmp_path: Path) -> None:
    run = str(write(tmp_path / "Run"))  # capitals stay: it is a path, and no name
    engine = engine_of(Asked(hardware=run, price=[f"{run}=0.5usd/h"]))
    assert engine is not None
    assert engine.flops_per_second == pytest.approx(4e10)  # 2e6 FLOPs · 20,000 tokens/s
    assert engine.usd_per_hour == 0.5
    other = engine_of(Asked(hardware=run, mfu=0.2))
    assert other is not None
    assert other.flops_per_second == pytest.approx(2e10)


def test_a_run_that_tells_no_rate(tmp_path: Path) -> None:
    run = write(tmp_path / "Run", tokens=0)
    with pytest.raises(UserError, match="this run tells no rate"):
        load_hardware().find(str(run))
