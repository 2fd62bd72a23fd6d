"""Parameters, FLOPs and memory against published numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llamita.architecture.counts import (
    flops_per_token,
    inference_flops_per_token,
    matmul_parameters,
    num_parameters,
)
from llamita.architecture.memory import (
    activation_bytes_per_token,
    inference_memory,
    training_memory,
)
from llamita.architecture.presets import PRESETS, preset
from llamita.errors import UserError


@pytest.mark.parametrize(
    ("name", "total", "without_vocabulary"),
    [
        ("tinyllama-1.1b", 1_100_048_384, 1_100_048_384 - 2 * 32000 * 2048),
        ("minicpm-1.2b", 1_360_246_272, 1_247_442_432),  # the paper's table
        ("minicpm-2.4b", 2_724_880_896, 2_442_057_984),
        ("smollm2-135m", 134_515_008, 134_515_008 - 49152 * 576),  # the released checkpoint
    ],
)
def test_published_parameters(name: str, total: int, without_vocabulary: int) -> None:
    config = preset(name).config
    assert num_parameters(config) == total
    assert num_parameters(config, embedding=False) == without_vocabulary


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("minicpm-9m", 0.009),
        ("minicpm-30m", 0.036),
        ("minicpm-70m", 0.066),
        ("minicpm-0.1b", 0.109),
        ("minicpm-0.17b", 0.166),
        ("minicpm-0.2b", 0.241),
        ("minicpm-0.5b", 0.499),
    ],
)
def test_wind_tunnel_sizes(name: str, billions: float) -> None:
    config = preset(name).config
    assert round(num_parameters(config, embedding=False) / 1e9, 3) == billions
    assert config.intermediate_size == 2.5 * config.hidden_size
    assert config.tie_word_embeddings


def test_tinyllama_flops() -> None:
    config = preset("tinyllama-1.1b").config
    # Everything but the input embedding, the norms and their last one.
    assert matmul_parameters(config) == 1_100_048_384 - 32000 * 2048 - 45 * 2048
    assert flops_per_token(config, 2048) / 1e9 == pytest.approx(7.314, abs=5e-4)
    attention = flops_per_token(config, 2048) - flops_per_token(config, 0)
    assert attention / 1e9 == pytest.approx(1.107, abs=5e-4)
    assert 3 * inference_flops_per_token(config, 2048) == flops_per_token(config, 2048)


def test_a_tied_head_is_counted_once_as_the_head() -> None:
    config = preset("llamita-15m").config
    untied = config.replace(tie_word_embeddings=False)
    assert matmul_parameters(config) == matmul_parameters(untied)
    assert num_parameters(untied) - num_parameters(config) == 8192 * 384


@pytest.mark.parametrize(
    ("name", "residual", "divisor"),
    [("minicpm-2.4b", 0.221359, 9.0), ("minicpm-1.2b", 0.194145, 6.0)],
)
def test_minicpm_multipliers(name: str, residual: float, divisor: float) -> None:
    config = preset(name).config
    assert config.residual_multiplier == pytest.approx(residual, abs=1e-6)
    assert config.logits_scaling == divisor
    assert config.embedding_multiplier == 12
    assert config.attention_scale == 0.125


def test_tinyllama_memory() -> None:
    config = preset("tinyllama-1.1b").config
    # Their 40 GB card at micro-batch 8: 17.6 GB of states and about 17 GB of activations.
    memory = training_memory(config, 8, 2048)
    states = memory.weights + memory.gradients + memory.optimizer
    assert states == 16 * 1_100_048_384
    assert activation_bytes_per_token(config) / 1e6 == pytest.approx(1.04, rel=0.03)
    assert memory.activations / 1e9 == pytest.approx(17, rel=0.05)
    assert 33e9 < memory.total < 40e9
    assert training_memory(config, 16, 2048).total / 1e9 == pytest.approx(52, rel=0.07)


def test_memory_s_items() -> None:
    config = preset("llamita-30m").config
    one, two = training_memory(config, 1, 512), training_memory(config, 2, 512)
    assert two.activations == 2 * one.activations
    # Small logits are kept for the backward pass; of large ones a chunk stands, whatever the batch.
    kept = training_memory(config, 8, 512).logits - two.logits
    assert kept == (8 - 2) * 512 * 8192 * 2
    large = config.replace(vocab_size=32_000)
    assert training_memory(large, 8, 512).logits == training_memory(large, 16, 512).logits
    assert training_memory(large, 8, 512).logits < 8 * 512 * 32_000 * 2 / 2
    spared = training_memory(config, 8, 512, activation_checkpointing=True)
    assert spared.activations < training_memory(config, 8, 512).activations / 3
    assert two.weights == one.weights == 4 * 30_941_696
    assert training_memory(config, 1, 512, compute_bytes=4).weight_casts == 0
    sharded = training_memory(config, 1, 512, ranks=4)
    assert sharded.optimizer == two.optimizer / 4
    cache = inference_memory(config, 3, 100, cache_bytes=2).key_value_cache
    assert cache == 3 * 100 * 2 * 8 * 2 * 64 * 2


def test_preset_names() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'tinyllama-1\.1b'"):
        preset("tinylama-1.1b")
    assert num_parameters(PRESETS["llamita-30m"].config) == 30_941_696


def test_no_torch() -> None:
    code = (
        "import sys, llamita.architecture.presets, llamita.architecture.memory;"
        "from llamita.architecture.presets import preset;"
        "preset('minicpm-9m').config.to_huggingface();"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
