"""GGUF files of small models, written as llama.cpp's converter writes them: names by gguf's own
table, rows of q and k reordered, Llama 3's factors computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from transformers.modeling_utils import PreTrainedModel

ARCHITECTURE = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "minicpm": gguf.MODEL_ARCH.MINICPM,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
PERMUTED = ("llama", "mistral", "granite", "minicpm")
WORDS = ["<unk>", "<s>", "</s>"]


def permute(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Hugging Face's order to llama.cpp's: row j of the first half of a head before row j of the
    second, for every j."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def tensors_of(model: PreTrainedModel, architecture: str) -> dict[str, NDArray[np.float32]]:
    """A model's weights under gguf's names, in gguf's order of rows."""
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURE[architecture], config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if architecture in PERMUTED and ".q_proj." in name:
            values = permute(values, config.num_attention_heads)
        if architecture in PERMUTED and ".k_proj." in name:
            values = permute(values, config.num_key_value_heads)
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        found[known] = values
    return found


def llama3_factors(theta: float, head_dim: int, rope: Mapping[str, Any]) -> NDArray[np.float32]:
    """What LlamaModel.generate_extra_tensors writes: by wavelength, 1, the factor, or between."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    found = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        if wavelength < context / high:
            found.append(1.0)
        elif wavelength > context / low:
            found.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def add_parameters(writer: gguf.GGUFWriter, model: PreTrainedModel, architecture: str) -> None:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        factors = llama3_factors(rope["rope_theta"], head_dim, rope)
        writer.add_tensor("rope_freqs.weight", factors)
    if config.model_type == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
        if architecture == "granite":
            writer.add_attention_scale(config.attention_multiplier)


def add_words(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """A sentencepiece vocabulary that serves where the tokenizer does not matter."""
    tokens = [*WORDS, *(f"▁w{number}" for number in range(3, vocab_size))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(vocab_size)])
    writer.add_token_types([2, 3, 3, *[1] * (vocab_size - 3)])


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    architecture: str,
    *,
    quantization: GGMLQuantizationType = GGMLQuantizationType.F32,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
    words: bool = True,
    parameters: bool = True,
    leave_out: str | None = None,
) -> Path:
    """A whole GGUF. Matrices are quantised, vectors stay in float32, as llama.cpp has it."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURE[architecture]])
    if parameters:
        add_parameters(writer, model, architecture)
    if words:
        add_words(writer, model.config.vocab_size)
    if change is not None:
        change(writer)
    for name, values in tensors_of(model, architecture).items():
        if name == leave_out:
            continue
        if values.ndim == 1 or quantization == GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            stored = gguf.quants.quantize(values, quantization)
            writer.add_tensor(name, stored, raw_dtype=quantization)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    found = model(tokens)
    return getattr(found, "logits", found)
