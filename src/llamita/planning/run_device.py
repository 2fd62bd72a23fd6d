"""What a run was trained on as a device: the rate that it reached, from its events."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from pathlib import Path

from llamita.errors import UserError
from llamita.planning.hardware import Device


def device_of_run(run: Path) -> tuple[Device, int]:
    """One device of a run, and how many of them there were.

    Its peak, in the number type that the run computed in, is the matrix rate that training
    measured, its `mfu` the median share of it that the run's steps reached.

    Raises:
        UserError: no events, no forecast, or no progress to take a rate from.
    """
    from llamita.reporting.events import read_events

    events = read_events(run)
    start = next((e for e in events if e["event"] in ("start", "resume")), None)
    forecast = next((e for e in events if e["event"] == "forecast"), None)
    progress = [e for e in events if e["event"] == "progress" and e.get("mfu")]
    if start is None or forecast is None or not forecast.get("tokens") or not progress:
        raise UserError(
            f"--hardware {run}: this run tells no rate; one that has reported progress and was "
            "planned by a forecast does, else name a device or a rate, as in 427gflops"
        )
    environment = start["environment"]
    num_devices = int(environment.get("processes", 1))
    flops_per_token = forecast["flops"] / forecast["tokens"]
    mfu = statistics.median(e["mfu"] for e in progress)
    rates = [e["tokens_per_second"] * flops_per_token / e["mfu"] for e in progress]
    kind = environment["device"]
    memory = progress[-1].get("memory_limit_bytes")
    device = Device(
        name=str(run),
        label=f"{kind} of {run}",
        source=f"{run}: {len(progress)} reports of its progress",
        date=datetime.fromtimestamp(progress[-1]["time"], UTC).date().isoformat(),
        memory_bytes=None if memory is None else int(memory),
        peak_flops={environment["dtype"]: statistics.median(rates) / num_devices},
        mfu=mfu,
        is_cpu=kind == "cpu",
    )
    return device, num_devices
