"""Configs: what is refused, and what Hugging Face's config.json means."""

from __future__ import annotations

import math
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.architecture.presets import PRESETS
from llamita.errors import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LLAMA = {**SIZES, "model_type": "llama"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_defaults() -> None:
    config = ModelConfig(**SIZES)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert config.attention_scale == 0.25
    assert config.eos_token_ids == ()
    assert config.replace(eos_token_id=[3, 5]).eos_token_ids == (3, 5)
    assert config.replace(eos_token_id=0).eos_token_ids == (0,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hiden_size": 3}, "hiden_size.*hidden_size"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "odd"),
        ({"hidden_size": 66}, "66 is not a multiple of num_attention_heads 4"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "rope_type": "linear"}}, "takes only a factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "must exceed"),
        ({"rope_scaling": {"rope_type": "linear", "facter": 2}}, "facter.*factor"),
    ],
)
def test_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig(**{**SIZES, **changes})


def test_replace_validates_and_keeps_head_dim() -> None:
    config = ModelConfig(**SIZES)
    assert config.replace(hidden_size=128).head_dim == 16
    with pytest.raises(UserError):
        config.replace(num_attention_heads=7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "lama"}, "llama"),
        ({"hidden_size": None}, "hidden_size missing"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"model_type": "qwen3", "num_experts": 8}, "num_experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"model_type": "mistral", "num_key_value_heads": 4}, "sliding_window"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2,
             "sliding_window": 64},
            "sliding_window",
        ),
    ],
)  # fmt: skip
def test_foreign_arithmetic_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig.from_huggingface({**LLAMA, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"use_cache": False, "transformers_version": "4.30", "pretraining_tp": 2},
        {"sliding_window": None, "partial_rotary_factor": 1.0, "num_local_experts": 0},
        {"rope_scaling": {"type": "default"}},
        {"layer_types": ["full_attention"] * 4},
    ],
)
def test_what_does_not_matter_is_ignored(changes: dict[str, Any]) -> None:
    assert ModelConfig.from_huggingface({**LLAMA, **changes}) == ModelConfig.from_huggingface(LLAMA)


def test_a_window_as_wide_as_the_context_is_no_window() -> None:
    wide = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 4096}
    assert ModelConfig.from_huggingface({**wide, "max_position_embeddings": 4096}).vocab_size == 97


def test_old_and_new_rope_keys() -> None:
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 3.0}}
    new = {
        **LLAMA,
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e5},
    }
    config = ModelConfig.from_huggingface(old)
    assert config == ModelConfig.from_huggingface(new)
    assert config.rope_theta == 5e5
    assert config.rope_scaling is not None
    assert (config.rope_scaling.rope_type, config.rope_scaling.factor) == ("linear", 3.0)


@pytest.mark.parametrize("model_type", ["llama", "granite", "mistral", "qwen2", "qwen3"])
def test_missing_keys_are_transformers_defaults(model_type: str) -> None:
    minimal = {**SIZES, "model_type": model_type}
    if model_type == "mistral":
        minimal |= {"sliding_window": None, "num_attention_heads": 8}
    elif model_type in ("qwen2", "qwen3"):
        minimal |= {"num_key_value_heads": 2}
    theirs = CONFIG_MAPPING[model_type](**{k: v for k, v in minimal.items() if k != "model_type"})
    ours = ModelConfig.from_huggingface(minimal)
    names = ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps"]
    names += ["tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"]
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 64 // minimal_heads(minimal))
    if model_type == "granite":
        assert ours.attention_scale == theirs.attention_multiplier


def minimal_heads(mapping: dict[str, Any]) -> int:
    return int(mapping["num_attention_heads"])


def test_openbmb_keys() -> None:
    minicpm = {**LLAMA, "model_type": "minicpm"}
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    config = ModelConfig.from_huggingface({**minicpm, **scales})
    assert config.embedding_multiplier == 12
    assert config.residual_multiplier == pytest.approx(1.4 / math.sqrt(4))
    assert config.logits_scaling == 4.0
    assert config.attention_multiplier is None
    assert config.tie_word_embeddings


def test_openbmb_s_trap_of_missing_scales() -> None:
    # The remote code's defaults are 1, 1, 1: the logits are divided by hidden_size itself.
    config = ModelConfig.from_huggingface({**LLAMA, "model_type": "minicpm"})
    assert config.embedding_multiplier == 1
    assert config.residual_multiplier == pytest.approx(1 / math.sqrt(4))
    assert config.logits_scaling == 64


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "llama"),
        ({"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}, "llama"),
        ({"rope_scaling": LLAMA3}, "llama"),
        ({"attention_bias": True}, "qwen2"),
        ({"qk_norm": True, "head_dim": 32}, "qwen3"),
        (minicpm_multipliers(64, 4), "granite"),
        ({"attention_multiplier": 0.5}, "granite"),
        ({"hidden_size": 66, "head_dim": 16}, "mistral"),
    ],
)
def test_written_for_transformers(changes: dict[str, Any], model_type: str) -> None:
    config = ModelConfig(**{**SIZES, **changes}, bos_token_id=1, eos_token_id=[2, 3])
    written = config.to_huggingface("bfloat16")
    assert written["model_type"] == model_type
    assert {"rope_theta", "rope_scaling", "torch_dtype"} <= written.keys()  # Transformers 4's
    assert ModelConfig.from_huggingface(written) == config
    theirs = CONFIG_MAPPING[model_type].from_dict(dict(written))
    assert str(theirs.dtype) == "torch.bfloat16"
    assert theirs.eos_token_id == [2, 3]
    # What Transformers 5 writes back in its own keys is still the same model.
    assert ModelConfig.from_huggingface(theirs.to_dict()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True, "logits_scaling": 2.0},
        {"qk_norm": True, "mlp_bias": True},
        {"attention_output_bias": True},
        {"attention_bias": True, "mlp_bias": True},
        {"hidden_size": 66, "head_dim": 16, "mlp_bias": True},
    ],
)
def test_shapes_that_no_format_expresses(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no Hugging Face format expresses"):
        ModelConfig(**{**SIZES, **changes}).to_huggingface()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_saved_and_read(name: str) -> None:
    config = PRESETS[name].config
    assert ModelConfig.from_huggingface(config.to_huggingface()) == config
