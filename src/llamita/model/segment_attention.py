"""Attention in a row that holds many texts, of which those that begin alike share what is alike.

Texts are cut into segments, each of which goes on from another, or from a prefix whose keys and
values a cache holds: a tree of texts, laid out in one row without padding. Everything but
attention works on the row's tokens as they are. Here a token sees the segments that its own goes
on from, and its own up to itself.

Shapes: N tokens of the row, P of the prefix, D head_dim; of a group M segments, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Numbers = npt.NDArray[np.int64]

# Segments are computed in groups, padded to the longest. What padding may add to a group is a
# quarter, or pairs of query and key that take as long as a group more would: on a core at
# 30 GFLOP/s about 100 µs, on a GPU the launch of ten kernels.
_PADDED_SHARE = 0.25
_FREE_PAIRS_CPU, _FREE_PAIRS_GPU = 4096, 1 << 19
# Keys that a group copies, for each token of the row: bounds memory where many segments of few
# tokens go on from a long one.
_KEYS_PER_TOKEN = 8
_ALIGNED = 16  # keys; the memory-efficient kernel copies a mask that is not


class Segment(NamedTuple):
    """`length` tokens that go on from the segment of number `parent`, an earlier one, or from the
    prefix."""

    length: int
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """queries: (M·T,) tokens of the row. keys: (M·S,) of prefix and row. mask: (M, 1, T, S), true
    where a query may look; None of causal attention without anything before."""

    count: int
    queries: Tensor
    keys: Tensor
    mask: Tensor | None


class SegmentAttention:
    """What `attention` is given as its mask for a row of segments.

    Args:
        segments: in the order in which their tokens stand in the row.
        prefix: P, what the cache holds; all segments go on from it.
        folds: heads that share keys are computed as further queries of one head, as a GPU's
            kernels need it, which take a mask but no groups of heads; by default on a GPU.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        prefix: int,
        device: torch.device | str = "cpu",
        *,
        folds: bool | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._folds = self._device.type != "cpu" if folds is None else folds
        starts = np.cumsum([0, *(each.length for each in segments)])
        seen: list[Numbers] = []  # the keys of each segment's last query
        for number, (length, parent) in enumerate(segments):
            before = np.arange(prefix) if parent is None else seen[parent]
            seen.append(np.concatenate((before, np.arange(length) + prefix + starts[number])))
        lengths = [each.length for each in segments]
        free = _FREE_PAIRS_CPU if self._device.type == "cpu" else _FREE_PAIRS_GPU
        most = _KEYS_PER_TOKEN * int(starts[-1])
        self._groups: list[_Group] = []
        back = np.empty(starts[-1], np.int64)  # where a token's result stands among the groups'
        place = 0
        for members in _alike(lengths, [len(keys) for keys in seen], free, most):
            width = max(lengths[number] for number in members)
            for row, number in enumerate(members):
                own = np.arange(lengths[number])
                back[starts[number] + own] = place + row * width + own
            place += len(members) * width
            self._groups.append(self._group(members, lengths, starts, seen))
        self._back = self._moved(back)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """q (1, heads, N, D), k and v (1, kv_heads, P + N, D) to (1, heads, N, D)."""
        parts = []
        for group in self._groups:
            queries, keys, values = (
                each[0]
                .index_select(1, places)
                .view(each.shape[1], group.count, -1, each.shape[3])
                .transpose(0, 1)
                for each, places in ((q, group.queries), (k, group.keys), (v, group.keys))
            )
            attend = _folded if self._folds else _grouped_heads
            mixed = attend(queries, keys, values, group.mask, scale)
            parts.append(mixed.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts).index_select(0, self._back).transpose(0, 1)[None]

    def _group(
        self,
        members: Sequence[int],
        lengths: Sequence[int],
        starts: Numbers,
        seen: Sequence[Numbers],
    ) -> _Group:
        width = max(lengths[number] for number in members)
        reach = max(len(seen[number]) for number in members)
        if self._folds:
            reach = -(-reach // _ALIGNED) * _ALIGNED
        # Whatever is added is token 0's: looked at by added queries alone.
        queries = np.zeros((len(members), width), np.int64)
        keys = np.zeros((len(members), reach), np.int64)
        before = np.zeros(len(members), np.int64)
        for row, number in enumerate(members):
            queries[row, : lengths[number]] = starts[number] + np.arange(lengths[number])
            keys[row, : len(seen[number])] = seen[number]
            before[row] = len(seen[number]) - lengths[number]
        mask = None
        if before.any() or self._folds:
            last = self._moved(before)[:, None, None, None] + self._range(width)[:, None]
            mask = self._range(reach) <= last
        return _Group(len(members), self._moved(queries.ravel()), self._moved(keys.ravel()), mask)

    def _range(self, count: int) -> Tensor:
        return torch.arange(count, device=self._device)

    def _moved(self, numbers: Numbers) -> Tensor:
        tensor = torch.from_numpy(numbers)
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # Copies of pinned memory do not wait for what the GPU is still doing.
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _alike(lengths: Sequence[int], reaches: Sequence[int], free: int, most: int) -> list[list[int]]:
    """Numbers of segments in groups of like sizes, by first fit from the longest on."""
    groups: list[tuple[list[int], int, int, int]] = []  # members, width, reach, pairs that count
    for number in sorted(range(len(lengths)), key=lambda each: (-lengths[each], -reaches[each])):
        pairs, reach = lengths[number] * reaches[number], reaches[number]
        for place, (members, width, longest, own) in enumerate(groups):
            wide = max(longest, reach)
            count, wanted = len(members) + 1, own + pairs
            added = count * width * wide - wanted
            if added <= max(free, _PADDED_SHARE * wanted) and count * wide <= most:
                members.append(number)
                groups[place] = (members, width, wide, wanted)
                break
        else:
            groups.append(([number], lengths[number], reach, pairs))
    return [members for members, *_ in groups]


def _grouped_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """q (M, heads, T, D), k and v (M, kv_heads, S, D) to (M, heads, T, D)."""
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] > k.shape[1],
    )


def _folded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same with heads that share keys as further queries of one head."""
    assert mask is not None, "further queries would not be causal"
    shared = q.shape[1] // k.shape[1]
    folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])
    mask = mask.repeat(1, 1, shared, 1)
    return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale).view(q.shape)
