"""The one place where attention is computed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.model import blocked_attention
from llamita.model.document_attention import DocumentStarts, document_attention
from llamita.model.segment_attention import SegmentAttention


def document_mask(documents: Tensor) -> Tensor:
    """(B, T) document numbers to a boolean mask (B, 1, T, T), true where a query may look.

    Causal, and inside the query's own document.
    """
    length = documents.shape[1]
    same = documents[:, None, :, None] == documents[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return same & causal


def document_blocks(documents: Tensor) -> Any:
    """The same mask as a flex_attention `BlockMask`, for compiled blocks on a CUDA device."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[batch, query] == documents[batch, key])

    rows, length = documents.shape
    return create_block_mask(visible, rows, None, length, length, device=documents.device)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Any = None) -> Tensor:
    """Grouped-query attention.

    Args:
        q: (B, heads, T, D).
        k: (B, kv_heads, S, D) with S >= T; the queries are the last T of the S positions.
        v: as `k`.
        scale: q·k is multiplied by it.
        mask: None for causal; a boolean (B, 1, T, S), true where a query may look; a
            flex_attention `BlockMask` (T = S); `DocumentStarts`, on the CPU (T = S); or
            `SegmentAttention` (B = 1).

    Returns:
        (B, heads, T, D) in the type of `q`.
    """
    if isinstance(mask, DocumentStarts):
        return document_attention(q, k, v, mask, scale=scale)
    if isinstance(mask, SegmentAttention):
        return mask(q, k, v, scale=scale)
    # Branches, here and below: SDPA refuses what a comparison of symbolic sizes is, a SymBool.
    grouped = False
    if q.shape[1] != k.shape[1]:
        grouped = True
    if mask is not None and not isinstance(mask, Tensor):
        from torch.nn.attention.flex_attention import flex_attention

        out = flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)
        assert isinstance(out, Tensor)
        return out
    if mask is None and blocked_attention.applies(q, k):
        return blocked_attention.blocked_attention(q, k, v, scale=scale)
    length, held = q.shape[2], k.shape[2]
    causal = False
    if mask is None and length == held:
        causal = True
    elif mask is None and length > 1:
        # SDPA's is_causal aligns the first query with the first key; here the last are aligned.
        ones = torch.ones(length, held, dtype=torch.bool, device=q.device)
        mask = ones.tril(diagonal=held - length)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
