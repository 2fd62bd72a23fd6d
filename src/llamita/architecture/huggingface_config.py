"""Hugging Face's config.json, read and written: one table of differences, no classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.errors import UserError, did_you_mean

# What Transformers assumes for a key that config.json leaves out, where it is not our own default.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    # Granite's own default scale is 1, not 1/sqrt(head_dim).
    "granite": {"bos_token_id": 1, "eos_token_id": 2, "attention_multiplier": 1.0},
    "mistral": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {"max_position_embeddings": 32768},
    "qwen3": {"max_position_embeddings": 32768, "head_dim": 128},
    # OpenBMB's remote code: a missing scale is 1, which for dim_model_base divides by hidden_size.
    "minicpm": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "scale_emb": 1.0,
        "scale_depth": 1.0,
        "dim_model_base": 1.0,
    },
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "granite": "GraniteForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_SAME_NAME = (
    *_REQUIRED,
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")


def read(mapping: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` that a config.json describes.

    Reads `llama`, `granite`, `mistral` (without a sliding window), `qwen2`, `qwen3` and OpenBMB's
    `minicpm`, in the key names of Transformers 4 (`rope_theta`, `rope_scaling`) and 5
    (`rope_parameters`). Keys without influence on the arithmetic are ignored.

    Raises:
        UserError: an unknown model_type, a missing key, or one that asks for arithmetic that
            the decoder does not have; the message names the key.
    """
    model_type = mapping.get("model_type")
    if model_type not in _DEFAULTS:
        known = ", ".join(_DEFAULTS)
        raise UserError(
            f"config.json: model_type {model_type!r} is not one that llamita reads ({known})."
            + did_you_mean(str(model_type), _DEFAULTS)
        )
    given = {**_DEFAULTS[model_type], **mapping}
    missing = [key for key in _REQUIRED if given.get(key) is None]
    if missing:
        raise UserError(f"config.json: {', '.join(missing)} missing")
    given.setdefault("max_position_embeddings", 2048)
    _refuse_unsupported(model_type, given)

    fields: dict[str, Any] = {key: given[key] for key in _SAME_NAME if key in given}
    # Configs of Qwen and DeepSeek mark "no such token" with a negative id.
    for key in ("bos_token_id", "pad_token_id"):
        if isinstance(fields.get(key), int) and fields[key] < 0:
            fields[key] = None
    fields["max_position_embeddings"] = given["max_position_embeddings"]
    fields["rms_norm_eps"] = given.get("rms_norm_eps", 1e-6)
    fields |= _rope(given)
    fields |= _biases(model_type, given)
    fields["qk_norm"] = model_type == "qwen3"
    if model_type == "granite":
        for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            fields[key] = given.get(key, 1.0)
        fields["attention_multiplier"] = given["attention_multiplier"]
    if model_type == "minicpm":
        scales = (given["scale_emb"], given["scale_depth"], given["dim_model_base"])
        fields |= minicpm_multipliers(given["hidden_size"], given["num_hidden_layers"], *scales)
    return _without_redundant_scale(ModelConfig(**fields))


def _without_redundant_scale(config: ModelConfig) -> ModelConfig:
    """An explicit 1/sqrt(head_dim) becomes None, so that equal models compare equal."""
    scale = config.attention_multiplier
    if scale is not None and math.isclose(scale, 1 / math.sqrt(config.head_dim), rel_tol=1e-12):
        return config.replace(attention_multiplier=None)
    return config


def _biases(model_type: str, given: Mapping[str, Any]) -> dict[str, bool]:
    if model_type == "qwen2":
        return {"attention_bias": True}
    if model_type == "mistral":
        return {}
    attention = bool(given.get("attention_bias", False))
    mlp = bool(given.get("mlp_bias", False)) and model_type in ("llama", "granite")
    return {"attention_bias": attention, "attention_output_bias": attention, "mlp_bias": mlp}


def _rope(given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = given.get("rope_parameters") or given.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise UserError("config.json: rope_scaling is not an object")
    theta = parameters.get("rope_theta", given.get("rope_theta", 10000.0))
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type == "default":
        return {"rope_theta": theta}
    if rope_type not in ("linear", "dynamic", "llama3"):
        raise UserError(
            f"config.json: rope_type {rope_type!r} is not supported; "
            "llamita has default, linear, dynamic and llama3"
        )
    scaling: dict[str, Any] = {"rope_type": rope_type, "factor": parameters.get("factor")}
    if rope_type == "llama3":
        for key in ("low_freq_factor", "high_freq_factor"):
            scaling[key] = parameters.get(key)
        scaling["original_max_position_embeddings"] = parameters.get(
            "original_max_position_embeddings", given["max_position_embeddings"]
        )
    return {"rope_theta": theta, "rope_scaling": scaling}


def _refuse_unsupported(model_type: str, given: Mapping[str, Any]) -> None:
    def refuse(key: str, why: str) -> None:
        raise UserError(f"config.json: {key} = {given.get(key)!r} is not supported: {why}")

    if given.get("hidden_act", "silu") not in ("silu", "swish"):
        refuse("hidden_act", "the MLP is SwiGLU, whose activation is silu")
    for key in _EXPERT_KEYS:
        if given.get(key):
            refuse(key, "mixtures of experts are not read")
    if given.get("quantization_config"):
        refuse("quantization_config", "quantised weights are not read; use the full-precision ones")
    parameters = given.get("rope_parameters") or given.get("rope_scaling") or {}
    for place in (given, parameters):
        if isinstance(place, Mapping) and place.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise UserError(
                f"config.json: partial_rotary_factor = {place['partial_rotary_factor']!r} is not "
                "supported: rotary embedding turns the whole head"
            )
    if any(kind != "full_attention" for kind in given.get("layer_types") or ()):
        refuse("layer_types", "every layer attends to everything before it")
    window = given.get("sliding_window")
    if model_type in ("qwen2", "qwen3"):
        first = given.get("max_window_layers", 28)
        if not given.get("use_sliding_window") or first >= given["num_hidden_layers"]:
            window = None
    elif model_type != "mistral":
        window = None
    if window is not None and window < given["max_position_embeddings"]:
        refuse("sliding_window", "every layer attends to everything before it")


def write(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The config.json of a model, for Transformers 4 and 5, vLLM and llama.cpp's converter.

    Multipliers are written as `granite` (the same arithmetic), QK-norm as `qwen3`, biases on q, k
    and v alone as `qwen2`, everything else as `llama`, or as `mistral` where hidden_size is not a
    multiple of the heads, which `llama` refuses. NTK scaling is folded into `rope_theta`.

    Raises:
        UserError: no format expresses this combination.
    """
    model_type = _model_type(config)
    theta, scaling = _written_rope(config)
    written: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
    }
    written |= {key: getattr(config, key) for key in _SAME_NAME}
    if model_type in ("llama", "granite", "qwen3"):
        written["attention_bias"] = config.attention_bias
    if model_type in ("llama", "granite"):
        written["mlp_bias"] = config.mlp_bias
    if model_type == "granite":
        for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            written[key] = getattr(config, key)
        written["attention_multiplier"] = config.attention_scale
    if model_type == "mistral":
        written["sliding_window"] = None
    if model_type in ("qwen2", "qwen3"):
        written |= {
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": config.num_hidden_layers,
        }
    return written


def _model_type(config: ModelConfig) -> str:
    scale_is_usual = math.isclose(config.attention_scale, 1 / math.sqrt(config.head_dim))
    ones = (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling)
    if any(value != 1.0 for value in ones) or not scale_is_usual:
        chosen, why = "granite", "multipliers"
        refused = {"qk_norm": config.qk_norm}
        one_switch = True
    elif config.qk_norm:
        chosen, why = "qwen3", "qk_norm"
        refused = {"mlp_bias": config.mlp_bias}
        one_switch = True
    elif config.attention_bias and not config.attention_output_bias:
        chosen, why = "qwen2", "attention_bias without attention_output_bias"
        refused = {"mlp_bias": config.mlp_bias}
        one_switch = False
    elif config.hidden_size % config.num_attention_heads:
        chosen, why = "mistral", "a hidden_size that is no multiple of num_attention_heads"
        refused = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
        one_switch = True
    else:
        chosen, why, refused, one_switch = "llama", "this model", {}, True
    if one_switch and config.attention_bias != config.attention_output_bias:
        refused["attention_bias different from attention_output_bias"] = True
    clashes = [key for key, present in refused.items() if present]
    if clashes:
        raise UserError(
            f"no Hugging Face format expresses {why} together with {' and '.join(clashes)}; "
            "change one of them, or the model could not be saved"
        )
    return chosen


def _written_rope(config: ModelConfig) -> tuple[float, dict[str, Any] | None]:
    scaling = config.rope_scaling
    if scaling is None:
        return config.rope_theta, None
    if scaling.rope_type == "ntk":
        return folded_ntk_theta(config), None
    return config.rope_theta, scaling.model_dump(exclude_none=True)


def folded_ntk_theta(config: ModelConfig) -> float:
    """base * factor^(d / (d - 2)) of NTK-aware scaling (MiniCPM 128K; d = head_dim)."""
    assert config.rope_scaling is not None
    exponent = config.head_dim / (config.head_dim - 2)
    return float(config.rope_theta * config.rope_scaling.factor**exponent)
