"""The CPU at hand as a device: its float32 rate, from a short matrix product."""

from __future__ import annotations

import os
import platform
import time
from datetime import date
from functools import cache
from pathlib import Path

from llamita.planning.hardware import THIS_CPU, Device

_SECONDS = 0.18
_SIZES = (512, 1024)
_BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


@cache
def measure_cpu() -> Device:
    """This machine's CPU: the best of many float32 matrix products, about 0.2 s in all.

    The rate is what numpy's BLAS reaches with its own number of threads. Measured once a process.
    """
    import numpy as np

    def seconds(size: int) -> float:
        matrix = np.ones((size, size), dtype=np.float32)
        out = np.empty_like(matrix)
        start = time.perf_counter()
        np.matmul(matrix, matrix, out=out)
        return time.perf_counter() - start

    seconds(_SIZES[0])  # starts BLAS's threads
    rates: list[float] = []
    # Longer products come nearer to the limit; they are left out where they would take too long.
    for size in _SIZES:
        flops = 2 * size**3
        if rates and flops / max(rates) > _SECONDS / 2:
            break
        stop = time.perf_counter() + _SECONDS / len(_SIZES)
        while len(rates) < 2 or time.perf_counter() < stop:
            rates.append(flops / seconds(size))
    model, flags = _processor()
    num_threads = os.cpu_count() or 1
    notes = []
    if (load := _load()) > num_threads / 2:
        notes.append(
            f"the machine was busy (load {load:.1f} on {num_threads} threads), so this may be far "
            f"too low: measure again, or give a rate"
        )
    if bfloat16 := next((flag for flag in _BFLOAT16_FLAGS if flag in flags), ""):
        notes.append(
            f"it has {bfloat16}, so training in bfloat16 can be faster than this: a run of "
            f"`llamita train` measures it"
        )
    return Device(
        name=THIS_CPU,
        is_cpu=True,
        label=f"this machine's CPU ({model}, {num_threads} threads)",
        source=f"measured here: best of {len(rates)} float32 products by numpy",
        date=date.today().isoformat(),
        memory_bytes=_physical_memory(),
        peak_flops={"float32": max(rates)},
        note="; ".join(notes),
    )


def _load() -> float:
    """Processes that wanted to run in the last minute, 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _processor() -> tuple[str, frozenset[str]]:
    """Its name, and the instruction sets that Linux lists (elsewhere none are known)."""
    model = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return model, frozenset()
    flags: frozenset[str] = frozenset()
    with listing.open(encoding="utf-8") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
                break
    return model, flags


def _physical_memory() -> int | None:
    """Bytes, None where the system does not say (Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
