"""Parameters and FLOPs against published numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llamita.architecture.counts import (
    flops_per_token,
    inference_flops_per_token,
    matmul_parameters,
    mixture_parameters,
    num_parameters,
)
from llamita.architecture.lora import Lora
from llamita.architecture.presets import PRESETS, preset
from llamita.errors import UserError


@pytest.mark.parametrize(
    ("name", "total", "without_vocabulary"),
    [
        ("tinyllama-1.1b", 1_100_048_384, 1_100_048_384 - 2 * 32000 * 2048),
        ("minicpm-1.2b", 1_360_246_272, 1_247_442_432),  # the paper's table
        ("minicpm-2.4b", 2_724_880_896, 2_442_057_984),
        ("smollm2-135m", 134_515_008, 134_515_008 - 49152 * 576),  # the released checkpoint
        ("llama2-7b", 6_738_415_616, 6_738_415_616 - 2 * 32000 * 4096),  # the released checkpoint
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


def test_flops_where_adapters_learn() -> None:
    """By hand, for TinyLlama with adapters of rank 16 on everything (12,615,680 parameters)."""
    config, lora = preset("tinyllama-1.1b").config, Lora(rank=16, alpha=32.0)
    products = matmul_parameters(config)
    attention = 12 * 22 * 2048 * 2048
    # Nothing asks the first block for its input's gradient, through q, k, v or their adapters' A.
    spared = 2 * (2048 * (2048 + 2 * 256) + 3 * 16 * 2048)
    found = flops_per_token(config, 2048, lora)
    assert found == 4 * products + 6 * 12_615_680 + attention - spared
    # Adapters to MLPs alone leave the first block's attention without a backward pass.
    lora = lora.replace(targets=("up_proj",))
    adapters = 22 * 16 * (2048 + 5632)
    spared = 2 * (2 * 2048 * (2048 + 256) + 2 * 2048 * 5632 + 16 * 2048) + 8 * 2048 * 2048
    found = flops_per_token(config, 2048, lora)
    assert found == 4 * products + 6 * adapters + attention - spared


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


def test_a_mixture_of_experts() -> None:
    config = preset("minicpm-2.4b").config
    # MiniCPM-MoE: eight copies of each MLP, two for a token, routers included.
    mixture = mixture_parameters(config, 8, 2)
    assert mixture == (13_590_468_864, 4_035_320_064)
    assert mixture.total - mixture.active == 40 * 6 * 3 * 2304 * 5760
    dense = num_parameters(config, embedding=False)
    assert mixture_parameters(config, 1, 1) == (dense + 40 * 2304, dense + 40 * 2304)
    biased = config.replace(mlp_bias=True)
    more = mixture_parameters(biased, 8, 2).total - mixture.total
    assert more == 8 * 40 * (2 * 5760 + 2304)
    for experts, chosen in ((8, 9), (8, 0), (0, 0)):
        with pytest.raises(UserError, match="experts a token"):
            mixture_parameters(config, experts, chosen)


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
