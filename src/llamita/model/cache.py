"""Keys and values of the tokens already read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig


class KeyValueCache:
    """Preallocated keys and values, per layer (B, kv_heads, max_length, head_dim).

    `length` is the number of tokens held, the same for every row and layer; the decoder advances
    it after each forward, and setting it lower forgets the newest tokens. On a CPU, pages of
    memory come into being as tokens fill them.
    """

    mask: Any = None  # what attention is given: causal, behind what is held

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, config.num_key_value_heads, max_length, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [_zeros(shape, dtype, device) for _ in layers]
        self.values = [_zeros(shape, dtype, device) for _ in layers]
        self.max_length = max_length
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes (B, kv_heads, T, D) behind what is held; returns all of it, this call's too."""
        end = self.length + key.shape[2]
        assert end <= self.max_length, f"{end} tokens in a cache of {self.max_length}"
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def row(self, number: int, length: int) -> KeyValueCache:
        """One row as a cache of its own that holds `length` tokens, in the same memory."""
        row = object.__new__(KeyValueCache)
        row.keys = [each[number : number + 1] for each in self.keys]
        row.values = [each[number : number + 1] for each in self.values]
        row.max_length, row.length = self.max_length, length
        return row


class CacheRows(KeyValueCache):
    """Some rows of a cache, each holding a length of its own, for one token more in each.

    Attributes:
        positions: (R, 1), where those tokens stand.
        mask: (R, 1, 1, S), true where a row's token may look; S is the longest row with it. None
            of a single row, which may look everywhere.
    """

    def __init__(self, cache: KeyValueCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        assert max(lengths) < cache.max_length, "a row is full"
        device = cache.keys[0].device
        self.keys, self.values, self.max_length = cache.keys, cache.values, cache.max_length
        self.length = max(lengths)
        ends = torch.tensor(list(lengths), device=device)
        self.positions = ends[:, None]
        # A slice needs no copy, and is written faster than places are.
        self._slice = _slice(rows)
        self._place: tuple[int | Tensor, slice, int | Tensor]
        if len(rows) == 1:
            self._place = rows[0], slice(None), lengths[0]
        else:
            self._place = torch.tensor(list(rows), device=device), slice(None), ends
            reach = torch.arange(self.length + 1, device=device)
            self.mask = reach <= self.positions[:, None, None]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes (R, kv_heads, 1, D) behind each row; returns the rows, up to the longest."""
        return self._append(self.keys[layer], key), self._append(self.values[layer], value)

    def _append(self, held: Tensor, new: Tensor) -> Tensor:
        held[self._place] = new[:, :, 0]
        held = held[:, :, : self.length + 1]
        return held[self._place[0]] if self._slice is None else held[self._slice]


def _slice(rows: Sequence[int]) -> slice | None:
    """Rows that follow each other as a slice."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return None


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros, because a masked value counts as 0 times what stands there, which must be a number."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes its zeros, so that all pages exist; numpy's are calloc's.
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(shape)
