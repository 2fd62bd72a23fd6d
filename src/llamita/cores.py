"""How many cores a process may use: fewer than the machine has, in a container or a batch job."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores for this process: its affinity and its container's quota of CPU time, rounded up.

    Threads beyond a quota are worse than idle: those of llama.cpp spin until the last one has
    caught up, and the quota is spent on waiting.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def num_threads() -> int:
    """Threads for work on numbers: OMP_NUM_THREADS, where it is set, as for PyTorch."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) > 0 else usable_cores()


def _quota() -> float:
    """CPU time, in cores, that Linux's control groups (version 2 or 1) leave; else infinity."""
    for quota, period in (
        (("cpu.max",), ("cpu.max",)),
        (("cpu", "cpu.cfs_quota_us"), ("cpu", "cpu.cfs_period_us")),
    ):
        try:
            microseconds = _CGROUPS.joinpath(*quota).read_text().split()[0]
            each = _CGROUPS.joinpath(*period).read_text().split()[-1]
            if int(microseconds) > 0:
                return int(microseconds) / int(each)
        except (OSError, ValueError, IndexError, ZeroDivisionError):  # absent, or "max"
            continue
    return math.inf
