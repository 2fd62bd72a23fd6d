"""Which of PyTorch's attention kernels is the fastest for a shape on this GPU, by trying.

On Hopper cuDNN's is usually ahead of the bundled FlashAttention-2, on consumer cards it is not, and
either may refuse a head size. Nothing but a measurement tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from llamita.architecture.config import ModelConfig
from llamita.model.devices import synchronize

KERNELS = ("cudnn", "flash", "efficient")
_BACKENDS = {
    "cudnn": "CUDNN_ATTENTION",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "math": "MATH",
}


@contextmanager
def attention_kernels(order: Sequence[str]) -> Iterator[None]:
    """Let scaled_dot_product_attention take these kernels alone, the first that can first; with an
    empty order, whatever PyTorch would take.

    It must enclose tracing too: compiled code keeps the kernel that it was traced with.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not order:
        yield
        return
    with sdpa_kernel([getattr(SDPBackend, _BACKENDS[name]) for name in order], set_priority=True):
        yield


def rank_kernels(seconds: Callable[[str], float]) -> list[tuple[str, float]]:
    """Kernels that work, with their times, the fastest first.

    Args:
        seconds: times a kernel; a RuntimeError says that it cannot compute this shape.
    """
    times = []
    for name in KERNELS:
        try:
            times.append((name, seconds(name)))
        except RuntimeError:
            continue
    return sorted(times, key=lambda item: item[1])


def time_kernel(
    name: str, config: ModelConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds of causal attention of one layer, forward and backward; best of five.

    Raises:
        RuntimeError: the kernel cannot compute this.
    """

    def draw(heads: int) -> torch.Tensor:
        values = torch.randn(rows, heads, length, config.head_dim, device=device, dtype=dtype)
        return values.requires_grad_()

    q = draw(config.num_attention_heads)
    k, v = draw(config.num_key_value_heads), draw(config.num_key_value_heads)
    grouped = config.num_attention_heads != config.num_key_value_heads
    upstream = torch.randn_like(q)
    best = float("inf")
    with attention_kernels([name]):
        for _ in range(6):  # the first also loads or builds the kernel
            synchronize(device)
            start = time.perf_counter()
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=config.attention_scale, enable_gqa=grouped
            )
            torch.autograd.grad(out, (q, k, v), upstream)
            synchronize(device)
            best = min(best, time.perf_counter() - start)
    return best
