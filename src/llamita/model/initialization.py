"""Where weights start, and how much of the learning rate each gets."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from llamita.architecture.config import ModelConfig
from llamita.architecture.presets import Parametrization
from llamita.model.decoder import Decoder

LLAMA_STD = 0.02
MINICPM_STD = 0.1


def _is_vocabulary(name: str) -> bool:
    return name in ("model.embed_tokens.weight", "lm_head.weight")


def initial_std(
    name: str, parametrization: Parametrization, config: ModelConfig, std: float | None = None
) -> float:
    """Standard deviation of the normal distribution that a matrix starts from.

    - `llama`: `std` (0.02) for every matrix.
    - `tinyllama`: sqrt(2 / (5 · hidden)) for every matrix, the embedding included, but
      1 / (sqrt(intermediate) · L) for the MLP's down projection (TinyLlama's code; its attention
      output is not scaled). `std` replaces the first number.
    - `minicpm`: `std` (0.1) for embedding and head, std / sqrt(m) for the matrices of blocks with
      m = logits_scaling = hidden / dim_model_base (OpenBMB's code; arXiv 2404.06395, A.1, says
      "each 2-D tensor").
    """
    if parametrization == "llama":
        return LLAMA_STD if std is None else std
    if parametrization == "tinyllama":
        if name.endswith(".down_proj.weight"):
            return 1 / math.sqrt(config.intermediate_size) / config.num_hidden_layers
        return math.sqrt(2 / (5 * config.hidden_size)) if std is None else std
    base = MINICPM_STD if std is None else std
    return base if _is_vocabulary(name) else base / math.sqrt(config.logits_scaling)


def generator_of(seed: int, name: str) -> torch.Generator:
    """What a parameter's first numbers are drawn by: one of its own, on the CPU."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


@torch.no_grad()
def initialize(
    model: Decoder, parametrization: Parametrization, *, seed: int = 0, std: float | None = None
) -> None:
    """Sets every parameter: matrices normal, norms 1, biases 0, padded vocabulary rows 0.

    Each parameter is drawn by a generator of its own, seeded by `seed` and its name, on the CPU:
    the same numbers for any order of parameters, padding of the vocabulary or device.
    """
    vocab_size = model.config.vocab_size
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        width = initial_std(name, parametrization, model.config, std)
        rows = vocab_size if _is_vocabulary(name) else parameter.shape[0]
        values = torch.empty(rows, parameter.shape[1])
        values.normal_(0.0, width, generator=generator_of(seed, name))
        parameter[:rows] = values.to(parameter)
        parameter[rows:] = 0.0


def learning_rate_multipliers(
    model: nn.Module, parametrization: Parametrization
) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by, by name.

    1 for all, except that `minicpm` gives the matrices of blocks 1/m, m = logits_scaling;
    embedding, head and norms keep 1 (OpenBMB's code).
    """
    config: ModelConfig = model.config  # type: ignore[assignment]

    def of(name: str, parameter: Tensor) -> float:
        scaled = parametrization == "minicpm" and parameter.dim() == 2 and not _is_vocabulary(name)
        return 1 / config.logits_scaling if scaled else 1.0

    return {name: of(name, parameter) for name, parameter in model.named_parameters()}
