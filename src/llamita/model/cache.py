"""Keys and values of the tokens already read."""

from __future__ import annotations

import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig


class KeyValueCache:
    """Preallocated keys and values, per layer (B, kv_heads, max_length, head_dim).

    `length` is the number of tokens held, the same for every row and layer; the decoder advances
    it after each forward, and setting it lower forgets the newest tokens.
    """

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
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.max_length = max_length
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes (B, kv_heads, T, D) behind what is held; returns all of it, this call's too."""
        end = self.length + key.shape[2]
        assert end <= self.max_length, f"{end} tokens in a cache of {self.max_length}"
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
