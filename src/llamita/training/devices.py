"""What a run computes on, and why: device, number type, compilation."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
import shutil
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llamita.errors import UserError
from llamita.model.devices import choose_device, synchronize
from llamita.model.float8 import float8_obstacle
from llamita.planning.quantities import duration, metric
from llamita.recipes.schema import Runtime

# Compiling the blocks and the head takes about half a minute on two cores; it saves a third of a
# step or more. Below this training time, predicted at the share of the matmul rate that small
# uncompiled models reach, it is not earned back.
_COMPILE_PAYS_SECONDS = 90.0
_UNCOMPILED_MFU = 0.2
_M_MMAP_THRESHOLD = -3  # malloc.h


@dataclass(frozen=True)
class Compute:
    device: torch.device
    dtype: torch.dtype
    compile: bool
    matmul_rate: float
    """FLOP/s of a 2048³ product in `dtype`, measured now: the denominator of MFU."""
    reasons: tuple[str, ...]
    """What was chosen and why, a sentence each."""
    float8: bool = False
    """Whether the blocks' products are in float8; `dtype` is that of everything else."""


def choose_compute(
    runtime: Runtime, flops: float, *, recorded: Mapping[str, Any] | None = None
) -> Compute:
    """Settle device, number type and compilation.

    Args:
        flops: of the whole run; decides whether compiling pays.
        recorded: what the run used so far: on resume `auto` means as before, or bits would change.

    Raises:
        UserError: a device that is not there, or compilation demanded where it cannot work.
    """
    device = choose_device(runtime.device)
    reasons = [_describe_device(device, asked=runtime.device != "auto")]
    before = recorded if recorded and recorded["device"] == device.type else {}
    wanted = runtime.dtype if runtime.dtype != "auto" else before.get("dtype", "auto")
    threads = torch.get_num_threads()
    rate32 = _rate(matmul_rate, device, torch.float32, threads)
    rate16 = _rate(matmul_rate, device, torch.bfloat16, threads) if wanted != "float32" else 0.0
    if wanted == "auto":
        # Below this ratio the casts cost more than the products gain.
        wanted = "bfloat16" if rate16 > 1.3 * rate32 else "float32"
        reasons.append(
            f"{wanted}: bfloat16 products run at {metric(rate16, 'FLOP/s')}, float32 at "
            f"{metric(rate32, 'FLOP/s')} here; weights stay float32"
        )
    else:
        reasons.append(f"{wanted}, weights stay float32")
    rate = rate16 if wanted == "bfloat16" else rate32
    compiling = runtime.compile
    if compiling == "auto" and "compile" in before:
        compiling = "always" if before["compile"] else "never"
    compiled, reason = _choose_compile(compiling, device, flops / (_UNCOMPILED_MFU * rate))
    reasons.append(reason)
    if runtime.float8:
        obstacle = float8_obstacle(device, compiled)
        if obstacle:
            raise UserError(f"runtime.float8: true, but {obstacle}")
        reasons.append("products of the blocks in float8, as asked; MFU is of bfloat16's rate")
    dtype = getattr(torch, wanted)
    return Compute(device, dtype, compiled, rate, tuple(reasons), runtime.float8)


@cache
def _rate(
    measure: Callable[[torch.device, torch.dtype], float],
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
) -> float:
    """Once a process: one that makes many short runs would spend a tenth of its time on it."""
    return measure(device, dtype)


def _describe_device(device: torch.device, *, asked: bool) -> str:
    if device.type == "cuda":
        name = f"device {device}, {torch.cuda.get_device_name(device)}"
    else:
        name = f"device {device}"
    if asked:
        return f"{name}, as asked"
    return name if device.type != "cpu" else f"{name}: PyTorch sees no CUDA or MPS device here"


def _choose_compile(wanted: str, device: torch.device, seconds: float) -> tuple[bool, str]:
    obstacle = _compile_obstacle(device)
    if wanted == "never":
        return False, "not compiled, as asked or as before"
    if obstacle:
        if wanted == "always":
            raise UserError(f"runtime.compile: always, but {obstacle}")
        return False, f"not compiled: {obstacle}"
    if wanted == "auto" and seconds < _COMPILE_PAYS_SECONDS:
        return False, f"not compiled: about {duration(seconds)} of training would not repay it"
    return True, "compiled with torch.compile"


def _compile_obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, or None."""
    if device.type == "mps":
        return "torch.compile is experimental on MPS"
    if device.type == "cpu":
        compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
        if not any(name and shutil.which(name) for name in compilers):
            return "no C++ compiler was found (install g++)"
        if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
            return "Python's headers were not found (install python3-dev)"
    return None


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Best of several size³ products, in FLOP/s. Takes some tenths of a second.

    Of a quarter of the size where one would take more than a second: a CPU that has no bfloat16
    units computes such products at a twentieth of float32's rate.
    """
    small = size // 4
    fastest = _fastest_product(device, dtype, small, least=2)
    if fastest * (size / small) ** 3 > 1.0:
        return 2 * small**3 / fastest
    return 2 * size**3 / _fastest_product(device, dtype, size, least=4)


def _fastest_product(device: torch.device, dtype: torch.dtype, size: int, *, least: int) -> float:
    """Seconds of the fastest of up to twenty products, `least` of them or as fill 0.3 s."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    spent = 0.0
    for attempt in range(20):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        elapsed = time.perf_counter() - start
        best = min(best, elapsed)
        spent += elapsed
        if attempt + 1 >= least and spent > 0.3:
            break
    return best


def memory_used(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the process's resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024


def peak_memory(device: torch.device) -> int:
    """Bytes at most since `forget_peak_memory`: the allocator's on a GPU, the resident set's on
    the CPU (on systems that cannot forget, since the process began)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024


def forget_peak_memory(device: torch.device) -> None:
    """From here on `peak_memory` counts anew, where the system can do that.

    On a CPU what was freed is given back to the system first: glibc keeps it, and a small model
    would fit into what measuring and compiling left.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        # Linux: writing 5 resets VmHWM. A container may forbid it; then the peak is the process's.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def map_large_blocks() -> None:
    """Let glibc map each block of a mebibyte or more by itself and give it back when it is freed.

    Of itself it keeps blocks of up to 32 MB in the heap, whose holes stay resident. LoRA's step, of
    many lengths and few lasting tensors, leaves a quarter of its memory in them: 3.1 GB became 2.37
    for 5% of the speed (docs/decisions.md). The environment's MALLOC_MMAP_THRESHOLD_ stands where
    it is set. For good: glibc does not tell what it was.
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def free_memory(device: torch.device) -> int:
    """Bytes that a run may count on."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
