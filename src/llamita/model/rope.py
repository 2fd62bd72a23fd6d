"""Rotary position embedding (arXiv 2104.09864) and the ways of stretching it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig, RopeScaling
from llamita.architecture.huggingface_config import folded_ntk_theta


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: long waves are slowed by the factor, short ones kept, the rest in between."""
    assert scaling.low_freq_factor is not None
    assert scaling.high_freq_factor is not None
    assert scaling.original_max_position_embeddings is not None
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    waves_in_context = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    keep = ((waves_in_context - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def inverse_frequencies(
    config: ModelConfig, sequence_length: Tensor | int, device: torch.device | None = None
) -> Tensor:
    """Radians a position for each pair of a head, shape (head_dim / 2,), float32.

    `sequence_length`, the largest position plus one, matters to dynamic scaling alone.
    """
    dim, scaling = config.head_dim, config.rope_scaling
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    theta: float | Tensor = config.rope_theta
    if scaling is not None and scaling.rope_type == "ntk":
        theta = folded_ntk_theta(config)
    elif scaling is not None and scaling.rope_type == "dynamic":
        longest = config.max_position_embeddings
        if isinstance(sequence_length, int):
            length: Tensor | int = max(sequence_length, longest)
        else:
            length = sequence_length.clamp(min=longest)
        growth = scaling.factor * length / longest - (scaling.factor - 1)
        theta = theta * growth ** (dim / (dim - 2))
    frequencies = 1.0 / (theta**exponents)
    if scaling is not None and scaling.rope_type == "linear":
        return frequencies / scaling.factor
    if scaling is not None and scaling.rope_type == "llama3":
        return _llama3(frequencies, scaling)
    return frequencies


def rotary_tables(
    config: ModelConfig, positions: Tensor, sequence_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (T,) or (B, T): (T, D/2) or (B, 1, T, D/2), float32."""
    length: Tensor | int = positions.max() + 1 if sequence_length is None else sequence_length
    frequencies = inverse_frequencies(config, length, positions.device)
    angles = positions[..., None].float() * frequencies
    if positions.dim() == 2:
        angles = angles[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + D/2) of `x` (B, heads, T, D) by its angle, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
