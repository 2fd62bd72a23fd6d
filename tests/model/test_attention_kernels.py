"""Choosing among attention kernels: those that cannot are passed over, the fastest comes first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llamita.architecture.config import ModelConfig
from llamita.model.attention_kernels import attention_kernels, rank_kernels, time_kernel

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def test_the_fastest_first_and_the_unable_left_out() -> None:
    def seconds(name: str) -> float:
        if name == "flash":
            raise RuntimeError("No available kernel")
        return {"cudnn": 2.0, "efficient": 1.0}[name]

    assert rank_kernels(seconds) == [("efficient", 1.0), ("cudnn", 2.0)]


def test_a_cpu_has_one_of_them() -> None:
    """The CPU's own flash kernel; cuDNN's and the memory-efficient one are CUDA's."""
    ranked = rank_kernels(lambda name: time_kernel(name, CONFIG, 2, 32, CPU, torch.float32))
    assert [name for name, _ in ranked] == ["flash"]
    assert 0 < ranked[0][1] < 1


def test_only_what_was_allowed() -> None:
    q = torch.zeros(1, 2, 8, 16)
    with attention_kernels(["cudnn"]), pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    with attention_kernels(["cudnn", "math"]):
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    with attention_kernels([]):
        F.scaled_dot_product_attention(q, q, q, is_causal=True)


@pytest.mark.gpu
def test_a_gpu_has_a_fused_kernel_and_all_agree() -> None:
    device, dtype = torch.device("cuda"), torch.bfloat16
    ranked = rank_kernels(lambda name: time_kernel(name, CONFIG, 2, 64, device, dtype))
    assert ranked
    q = torch.randn(2, 4, 64, 16, device=device, dtype=dtype)
    expected = F.scaled_dot_product_attention(q.float(), q.float(), q.float(), is_causal=True)
    for name, _ in ranked:
        with attention_kernels([name]):
            found = F.scaled_dot_product_attention(q, q, q, is_causal=True)
        torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
