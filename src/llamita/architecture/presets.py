"""Named architectures, with where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.errors import UserError, did_you_mean

Parametrization = Literal["llama", "tinyllama", "minicpm"]

# The wind tunnel's default vocabulary: MiniCPM-1.2B's. The published sizes are non-embedding
# counts, so that any tokenizer may take its place: `preset(name).config.replace(vocab_size=...)`.
WIND_TUNNEL_VOCAB_SIZE = 73440


@dataclass(frozen=True)
class Preset:
    """An architecture with the initialization and scaling rule it was meant for."""

    config: ModelConfig
    parametrization: Parametrization
    source: str


def _minicpm(
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    vocab_size: int = WIND_TUNNEL_VOCAB_SIZE,
    source: str = "MiniCPM, arXiv 2404.06395, the wind tunnel's models",
) -> Preset:
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        **minicpm_multipliers(hidden_size, num_hidden_layers),
    )
    return Preset(config, "minicpm", source)


def _small(
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    vocab_size: int,
    tie_word_embeddings: bool,
) -> Preset:
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return Preset(config, "llama", "llamita, a size for a laptop")


_TINYLLAMA = Preset(
    ModelConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "tinyllama",
    "TinyLlama, arXiv 2401.02385",
)

_SMOLLM2 = Preset(
    ModelConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "llama",
    "SmolLM2-135M, arXiv 2502.02737",
)

_LLAMA2 = Preset(
    ModelConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama",
    "Llama-2-7B, arXiv 2307.09288",
)

PRESETS: dict[str, Preset] = {
    "llamita-5m": _small(256, 704, 6, 4, 2, 4096, True),
    "llamita-15m": _small(384, 1024, 8, 6, 2, 8192, True),
    "llamita-30m": _small(512, 1408, 8, 8, 2, 8192, False),
    "smollm2-135m": _SMOLLM2,
    "tinyllama-1.1b": _TINYLLAMA,
    "llama2-7b": _LLAMA2,
    "minicpm-9m": _minicpm(320, 800, 8, 5, 5),
    "minicpm-30m": _minicpm(512, 1280, 12, 8, 8),
    "minicpm-70m": _minicpm(640, 1600, 14, 10, 10),
    "minicpm-0.1b": _minicpm(768, 1920, 16, 12, 12),
    "minicpm-0.17b": _minicpm(896, 2240, 18, 14, 14),
    "minicpm-0.2b": _minicpm(1024, 2560, 20, 16, 16),
    "minicpm-0.5b": _minicpm(1344, 3360, 24, 21, 21),
    "minicpm-1.2b": _minicpm(1536, 3840, 52, 24, 8, 73440, "MiniCPM-1.2B, arXiv 2404.06395"),
    "minicpm-2.4b": _minicpm(2304, 5760, 40, 36, 36, 122753, "MiniCPM-2.4B, arXiv 2404.06395"),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: there is none; the message lists them.
    """
    if name not in PRESETS:
        raise UserError(
            f"no preset is called {name!r}.{did_you_mean(name, PRESETS)} "
            f"The presets are {', '.join(PRESETS)}."
        )
    return PRESETS[name]
