"""Initial widths and learning rates against the papers, on built models."""

from __future__ import annotations

import math

import pytest
import torch

from llamita.architecture.config import ModelConfig
from llamita.architecture.presets import Parametrization, preset
from llamita.model.decoder import Decoder
from llamita.model.initialization import initial_std, initialize, learning_rate_multipliers

SMALL = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    attention_bias=True,
    qk_norm=True,
    attention_output_bias=True,
)


def _built(config: ModelConfig, parametrization: Parametrization, **options: int) -> Decoder:
    model = Decoder(config, **options)
    initialize(model, parametrization, seed=1)
    return model


@pytest.mark.parametrize(
    ("name", "std", "learning_rate"),
    [("minicpm-2.4b", 0.0333333, 0.00111111), ("minicpm-1.2b", 0.0408248, 0.00166667)],
)
def test_minicpm_at_real_width(name: str, std: float, learning_rate: float) -> None:
    # Width as published; one layer and a small vocabulary, which neither number depends on.
    config = preset(name).config.replace(num_hidden_layers=1, vocab_size=4096)
    model = _built(config, "minicpm")
    multipliers = learning_rate_multipliers(model, "minicpm")
    assert multipliers.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.state_dict().items():
        if "proj" in key:
            # n samples know their deviation to 1/sqrt(2n): 4.5 of those at 1.2 million or more.
            assert float(parameter.detach().std()) == pytest.approx(std, rel=3e-3)
            assert multipliers[key] * 0.01 == pytest.approx(learning_rate, abs=1e-8)
        else:
            assert multipliers[key] == 1.0
    assert float(model.model.embed_tokens.weight.detach().std()) == pytest.approx(0.1, rel=3e-3)


def test_tinyllama_at_real_width() -> None:
    whole = preset("tinyllama-1.1b").config
    # The down projection's width depends on the depth: all 22 layers, but narrow in the heads.
    config = whole.replace(
        vocab_size=2048, num_attention_heads=2, num_key_value_heads=1, intermediate_size=5632
    )
    with torch.device("meta"):
        names = [name for name, _ in Decoder(config).named_parameters()]
    for name in names:
        expected = 6.06e-4 if "down_proj" in name else math.sqrt(2 / 5 / 2048)
        assert initial_std(name, "tinyllama", config) == pytest.approx(expected, rel=1e-3), name
    model = _built(config.replace(num_hidden_layers=2), "tinyllama")
    block = model.model.layers[1]
    assert float(block.mlp.down_proj.weight.detach().std()) == pytest.approx(6.06e-4 * 11, rel=3e-3)
    assert float(block.self_attn.o_proj.weight.detach().std()) == pytest.approx(0.013975, rel=1e-2)
    assert float(model.model.embed_tokens.weight.detach().std()) == pytest.approx(
        0.013975, rel=3e-3
    )
    assert set(learning_rate_multipliers(model, "tinyllama").values()) == {1.0}


def test_llama() -> None:
    model = _built(SMALL, "llama")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05), name
            assert abs(float(parameter.mean())) < 1e-3, name
    initialize(model, "llama", seed=1, std=0.5)
    assert float(model.head_weight.detach().std()) == pytest.approx(0.5, rel=0.05)


def test_a_parameter_s_numbers_depend_on_seed_and_name_alone() -> None:
    model = _built(SMALL, "llama")
    state = model.state_dict()
    padded = _built(SMALL, "llama", padded_vocab_size=384).state_dict()
    deeper = _built(SMALL.replace(num_hidden_layers=3), "llama").state_dict()
    for name, tensor in state.items():
        assert torch.equal(padded[name][: len(tensor)], tensor), name
        assert not padded[name][len(tensor) :].any()
        assert torch.equal(deeper[name], tensor), name
    matrices = [tensor for tensor in state.values() if tensor.dim() == 2]
    assert len({float(tensor[0, 0]) for tensor in matrices}) == len(matrices)
    before = model.head_weight.clone()
    initialize(model, "llama", seed=2)
    assert not torch.equal(model.head_weight, before)
