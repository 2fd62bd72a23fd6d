"""From what a GGUF file says of a model to a `ModelConfig`, and from its tensors' names to ours.

Nothing is dropped in silence: a key of the architecture that is not known here, and is not zero,
is refused, since it may ask for other arithmetic. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.errors import UserError, did_you_mean
from llamita.formats.gguf_file import GgufFile

ROPE_FREQS = "rope_freqs.weight"
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window",
    "attention.causal", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.finetuned", "rope.scale_linear",
}  # fmt: skip
# What changes no arithmetic here: names, and numbers of YaRN, which is refused by its type.
_WITHOUT_EFFECT = {
    "vocab_size", "tensor_data_layout", "rope.scaling.original_context_length",
    "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
}  # fmt: skip
_MULTIPLIERS = ("embedding_scale", "residual_scale", "logit_scale")


@dataclass(frozen=True)
class Architecture:
    """What is particular about one architecture in GGUF.

    `permuted`: llama.cpp turns neighbouring pairs of a head where Hugging Face turns one half
    against the other, and converters reorder the rows of q and k accordingly; models that
    llama.cpp turns in halves too ("neox") are left as they are. `keys`: those of its own.
    """

    permuted: bool
    keys: tuple[str, ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(permuted=True, keys=("attention.scale",)),  # and Mistral
    "granite": Architecture(permuted=True, keys=(*_MULTIPLIERS, "attention.scale")),
    "minicpm": Architecture(permuted=True, keys=_MULTIPLIERS),
    "qwen2": Architecture(permuted=False),
    "qwen3": Architecture(permuted=False),
}


def architecture_of(file: GgufFile) -> str:
    """The name of a file's architecture, one of `ARCHITECTURES`.

    Raises:
        UserError: it is not one of them, or the file holds no model: a LoRA adapter, a projector,
            a vocabulary alone.
    """
    kind = file.value("general.type", str, "model")
    if kind == "adapter":
        raise UserError(
            f"{file.path} is a LoRA adapter, not a model; name the adapter directory it was "
            "converted from, or merge it into its base with llama.cpp's `llama-export-lora` first"
        )
    name = file.required("general.architecture", str)
    if kind != "model" or name not in ARCHITECTURES:
        what = f"of architecture {name!r}" if kind == "model" else f"a {kind}"
        raise UserError(
            f"{file.path} is {what}; llamita imports models of "
            f"{', '.join(ARCHITECTURES)}.{did_you_mean(name, ARCHITECTURES)}"
        )
    if not file.tensors:
        raise UserError(
            f"{file.path} holds a vocabulary without weights; import the model's own GGUF"
        )
    return name


def config_of(file: GgufFile, name: str) -> ModelConfig:
    """The config of a file of architecture `name`, without ids of special tokens.

    Raises:
        UserError: a key missing, or one that asks for arithmetic the decoder does not have.
    """
    says = _Says(file, name)
    says.refuse_unknown()
    heads = says.whole("attention.head_count")
    hidden = says.whole("embedding_length")
    layers = says.whole("block_count")
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path} has no tensor token_embd.weight: it is no whole model")
    head_dim = says.whole("attention.key_length", hidden // heads)
    _refuse_other_attention(says, head_dim)
    theta = file.value(f"{name}.rope.freq_base", float, 10000.0)
    fields: dict[str, Any] = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": says.whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": says.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": says.whole("context_length"),
        "rms_norm_eps": file.required(f"{name}.attention.layer_norm_rms_epsilon", float),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(says, head_dim, theta or 0.0),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "attention_output_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "qk_norm": "blk.0.attn_q_norm.weight" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    try:
        return ModelConfig(**fields, **_multipliers(says, hidden, layers, head_dim))
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None


def tensor_names(file: GgufFile) -> dict[str, str]:
    """Hugging Face's name of every tensor of the file that is a weight, by the file's.

    Raises:
        UserError: a tensor that the decoder has no use for.
    """
    names: dict[str, str] = {}
    unknown = []
    for name in file.tensors:
        if name == ROPE_FREQS:
            continue
        found = _OUTSIDE.get(name)
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _INSIDE:
            found = f"model.layers.{int(parts[1])}.{_INSIDE[parts[2]]}.{parts[3]}"
        if found is None:
            unknown.append(name)
        else:
            names[name] = found
    if unknown:
        listed = ", ".join(unknown[:8]) + (" …" if len(unknown) > 8 else "")
        raise UserError(
            f"{file.path} has tensors that llamita's decoder has no use for: {listed}; it is a "
            "model of another kind than its architecture says"
        )
    return names


def gguf_tensor_name(name: str) -> str:
    """GGUF's name of a weight, by Hugging Face's; the other direction of `tensor_names`."""
    outside = {ours: theirs for theirs, ours in _OUTSIDE.items()}
    if name in outside:
        return outside[name]
    inside = {ours: theirs for theirs, ours in _INSIDE.items()}
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, leaf = rest.rpartition(".")
    return f"blk.{number}.{inside[module]}.{leaf}"


class _Says:
    """The keys of a file's architecture, by their names without it."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self.architecture = architecture

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def get(self, name: str) -> Any:
        return self.file.fields.get(self.key(name))

    def number(self, name: str) -> float | None:
        return self.file.value(self.key(name), float)

    def whole(self, name: str, default: int | None = None) -> int:
        """A positive integer; per layer where all layers have the same."""
        found = self.get(name)
        if isinstance(found, np.ndarray) and len(found) and (found == found[0]).all():
            found = found[0].item()
        if isinstance(found, np.ndarray):
            raise UserError(
                f"{self.file.path}: {self.key(name)} differs from layer to layer; llamita's "
                "decoder has layers of one shape"
            )
        if found is None and default is not None:
            return default
        if not isinstance(found, int) or found < 1:
            self.file.required(self.key(name), int)
            raise UserError(f"{self.file.path}: {self.key(name)} is {found!r}")
        return found

    def refuse(self, name: str, why: str) -> None:
        value = self.get(name)
        raise UserError(f"{self.file.path}: {self.key(name)} = {value!r} is not supported: {why}")

    def refuse_unknown(self) -> None:
        """Zeros and empty texts switch something off, so that leaving them out is right."""
        prefix = f"{self.architecture}."
        known = _READ | _WITHOUT_EFFECT | {*ARCHITECTURES[self.architecture].keys}
        for key, value in self.file.fields.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and name not in known and np.any(value):
                self.refuse(name, "llamita does not know what it changes")


def _refuse_other_attention(says: _Says, head_dim: int) -> None:
    for name in ("attention.value_length", "rope.dimension_count"):
        if says.whole(name, head_dim) != head_dim:
            says.refuse(name, f"it must be the size of a head, {head_dim}")
    if says.get("attention.causal") is False:
        says.refuse("attention.causal", "the decoder attends to what came before alone")
    window = says.number("attention.sliding_window") or 0
    if 0 < window < says.whole("context_length"):
        says.refuse("attention.sliding_window", "every layer attends to everything before it")
    # In granite, llama.cpp takes this key for a switch of rotary embedding altogether.
    if says.architecture == "granite" and says.get("rope.scaling.finetuned") is False:
        says.refuse("rope.scaling.finetuned", "it switches rotary embedding off in granite")


def _multipliers(says: _Says, hidden: int, layers: int, head_dim: int) -> dict[str, float]:
    """Granite's and MiniCPM's numbers as `ModelConfig` keys.

    MiniCPM's older converters wrote none; those of the 2.4B model (12, 1.4/sqrt(L), hidden/256)
    are put in, each where its key is absent. llama.cpp does the same but for the last: it divides
    logits by 256/hidden, the inverse, which changes no greedy answer and every probability
    (settled by running it). The model's own number is taken here.
    """
    found: dict[str, float] = {}
    if says.architecture == "minicpm":
        found = minicpm_multipliers(hidden, layers)
    ours = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
    for name, key in zip(_MULTIPLIERS, ours, strict=True):
        if name in ARCHITECTURES[says.architecture].keys and says.get(name) is not None:
            found[key] = says.number(name) or 0.0
    scale = says.number("attention.scale")
    # llama.cpp takes zero for "the usual one". Rounding to float32 changes 1/sqrt(80) by 1e-8.
    if scale and not math.isclose(scale, 1 / math.sqrt(head_dim), rel_tol=1e-6):
        found["attention_multiplier"] = scale
    return found


def _rope_scaling(says: _Says, head_dim: int, theta: float) -> Mapping[str, Any] | None:
    kind = says.get("rope.scaling.type")
    factor = says.number("rope.scaling.factor") or says.number("rope.scale_linear") or 1.0
    if kind not in (None, "none", "linear"):
        says.refuse("rope.scaling.type", "llamita has linear scaling and Llama 3's")
    scaled = kind != "none" and factor != 1.0  # llama.cpp takes an absent type for linear
    if ROPE_FREQS in says.file.tensors:
        factors = says.file.read(ROPE_FREQS)
        llama3 = _llama3_scaling(says.file, factors, head_dim, theta)
        if llama3 is not None and scaled:
            says.refuse("rope.scaling.factor", f"there is {ROPE_FREQS} too")
        if llama3 is not None:
            return llama3
    return {"rope_type": "linear", "factor": factor} if scaled else None


def llama3_factors(
    theta: float, head_dim: int, *, factor: float, low: float, high: float, context: float
) -> NDArray[np.float64]:
    """What Llama 3's scaling multiplies each wavelength by, (head_dim / 2,).

    Of a wavelength w: 1 / (s + (1 - s) / factor) with s = (context / w - low) / (high - low)
    clipped to [0, 1].
    """
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    share = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    return np.asarray(1 / (share + (1 - share) / factor), np.float64)


def _llama3_scaling(
    file: GgufFile, factors: NDArray[np.float32], head_dim: int, theta: float
) -> Mapping[str, Any] | None:
    """The settings of Llama 3's RoPE scaling that give these factors, (head_dim / 2,).

    A converter writes what each wavelength is multiplied by (`llama3_factors`), and not the
    settings. Context, low and high cannot all be recovered (multiplying the three by one number
    changes nothing), so low is taken to be 1 and high 4, as in every Llama; the context then
    follows from any s between 0 and 1.

    Raises:
        UserError: no such settings give these factors.
    """
    if factors.shape != (head_dim // 2,) or (factors < 1).any():
        raise UserError(f"{file.path}: {ROPE_FREQS} has factors that are not Llama 3's")
    largest = float(str(factors.max()))
    if largest == 1.0:
        return None
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = 1.0, 4.0
    share = (1 / factors.astype(np.float64) - 1 / largest) / (1 - 1 / largest)
    between = (share > 1e-3) & (share < 1 - 1e-3)
    if between.any():
        fitted = wavelengths[between] * (low + (high - low) * share[between])
        context = round(float(np.median(fitted)))
    else:  # any L between the last unscaled wavelength and the first scaled one: a power of two
        unscaled = wavelengths[share > 0.5].max(initial=0.0)
        context = 1 << max(0, math.ceil(math.log2(max(1.0, high * unscaled))))
    expected = llama3_factors(theta, head_dim, factor=largest, low=low, high=high, context=context)
    if context < 1 or not np.allclose(expected, factors, rtol=1e-4):
        raise UserError(
            f"{file.path}: {ROPE_FREQS} has factors that are not Llama 3's (low_freq_factor 1, "
            "high_freq_factor 4); they are not supported"
        )
    return {
        "rope_type": "llama3",
        "factor": largest,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
