"""The order of rows of q and k, which llama.cpp and Hugging Face have differently.

llama.cpp rotates neighbours, (0, 1), (2, 3), …; Hugging Face rotates the first half of a head
against the second. `LlamaModel.permute` of convert_hf_to_gguf.py brings row i of one half and row
i of the other together; architectures that llama.cpp rotates in halves too are left as they are
(`Architecture.permuted`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamita.architecture.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor


def permuted_heads(name: str, config: ModelConfig) -> int | None:
    """The heads in the rows of a tensor (by Hugging Face's name) whose order differs: of weights
    and biases of q and k; of all others `None`."""
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def in_halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows in llama.cpp's order, (heads * head_dim, …), to Hugging Face's."""
    rows = tensor.shape[0]
    paired = tensor.reshape(num_heads, rows // num_heads // 2, 2, *tensor.shape[1:])
    return paired.transpose(1, 2).reshape(tensor.shape)


def in_pairs(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows in Hugging Face's order, (heads * head_dim, …), to llama.cpp's."""
    rows = tensor.shape[0]
    halves = tensor.reshape(num_heads, 2, rows // num_heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
