"""Attention for compiled bfloat16 on the CPU: explicit products over blocks of queries.

SDPA's CPU kernel spends its time outside the matrix products, which torch.compile's fused softmax
avoids: the 30.9M training step of benchmarks/training_step.py takes 1.42 s with this and 1.90 s
with SDPA, in turns in one process on two AVX512-BF16 cores. Uncompiled, the two are alike.

Shapes: G = B · kv_heads groups, g query heads of each, n blocks of K queries, R = K · g rows of a
block (query-major), E keys that a block may see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # 64 is as fast, 256 slower (the causal half of a block is computed in vain)
MAX_LENGTH = 4096  # the loop is unrolled when compiled: 32 blocks at most


def applies(q: Tensor, k: Tensor) -> bool:
    """Whether these shapes, types and circumstances are those this module is for."""
    length = q.shape[2]
    return (
        torch.compiler.is_compiling()
        and q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and length == k.shape[2]
        and BLOCK <= length <= MAX_LENGTH
        and length % BLOCK == 0
    )


def _allowed(rows: int, seen: int, heads: int, device: torch.device) -> Tensor:
    """Which of E keys each of R queries may look at: (R, E)."""
    queries = seen - rows // heads + torch.arange(rows, device=device) // heads
    return queries[:, None] >= torch.arange(seen, device=device)


class _Blocked(torch.autograd.Function):
    """q and out (n, G, R, D), k and v (G, T, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, heads: int) -> Tensor:
        size = q.shape[2] // heads
        outs, normalizers = [], []
        for block in range(q.shape[0]):
            end = (block + 1) * size
            allowed = _allowed(q.shape[2], end, heads, q.device)
            products = torch.bmm(q[block], k[:, :end].transpose(1, 2)).float()
            scores = torch.where(allowed, products * scale, -torch.inf)
            top = scores.amax(dim=-1, keepdim=True)
            weights = (scores - top).exp()
            total = weights.sum(dim=-1, keepdim=True)
            probabilities = (weights / total).to(q.dtype)
            outs.append(torch.bmm(probabilities, v[:, :end]))
            normalizers.append(top + total.log())
        out = torch.stack(outs)
        ctx.save_for_backward(q, k, v, out, torch.stack(normalizers))
        ctx.constants = (scale, heads)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """FlashAttention-2's backward (arXiv 2307.08691, algorithm 2), a block of queries at once.

        Probabilities are computed again from the log-normalizers, so that nothing of size T × T
        is kept. They are computed as (G, E, R): were it the forward's product, the compiler would
        recognise it and keep all scores from there, in float32.
        """
        q, k, v, out, normalizers = ctx.saved_tensors
        scale, heads = ctx.constants
        size = q.shape[2] // heads
        grad = grads[0]
        # Sums over the blocks are in float32, products in the type of the inputs.
        k_grad = torch.zeros(k.shape, dtype=torch.float32, device=k.device)
        v_grad = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
        mean = (grad.float() * out.float()).sum(dim=-1)
        q_grads = []
        for block in range(q.shape[0]):
            end = (block + 1) * size
            allowed = _allowed(q.shape[2], end, heads, q.device).transpose(-2, -1)
            keys = k[:, :end].contiguous()  # once, or each product would copy it
            products = torch.bmm(keys, q[block].transpose(1, 2)).float()
            scores = torch.where(allowed, products * scale, -torch.inf)
            probabilities = (scores - normalizers[block].transpose(1, 2)).exp()
            slope = torch.bmm(v[:, :end], grad[block].transpose(1, 2)).float()
            score_grad = (probabilities * (slope - mean[block][:, None]) * scale).to(q.dtype)
            q_grads.append(torch.bmm(score_grad.transpose(1, 2), keys))
            k_grad[:, :end] += torch.bmm(score_grad, q[block])
            v_grad[:, :end] += torch.bmm(probabilities.to(q.dtype), grad[block])
        return torch.stack(q_grads), k_grad.to(k.dtype), v_grad.to(v.dtype), None, None


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, block: int = BLOCK
) -> Tensor:
    """Causal grouped-query attention over whole rows.

    Args:
        q: (B, heads, T, D), T a multiple of `block`.
        k: (B, kv_heads, T, D).
        v: as `k`.
        scale: q·k is multiplied by it.
        block: queries of a block.

    Returns:
        (B, heads, T, D) in the type of `q`.
    """
    rows, heads, length, dim = q.shape
    groups, per_group, blocks = k.shape[1], heads // k.shape[1], length // block
    # (B, kv, g, n, K, D) to (n, B, kv, K, g, D): each block of a group is one contiguous matrix
    laid = q.reshape(rows, groups, per_group, blocks, block, dim).permute(3, 0, 1, 4, 2, 5)
    out: Tensor = _Blocked.apply(  # type: ignore[no-untyped-call]
        laid.reshape(blocks, rows * groups, block * per_group, dim),
        k.reshape(rows * groups, length, dim),
        v.reshape(rows * groups, length, dim),
        scale,
        per_group,
    )
    back = out.view(blocks, rows, groups, block, per_group, dim).permute(1, 2, 4, 0, 3, 5)
    return back.reshape(rows, heads, length, dim)
