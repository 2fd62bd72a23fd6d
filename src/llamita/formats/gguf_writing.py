"""A model becomes a GGUF file, as llama.cpp's converter would write it: one tensor at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llamita import __version__, durable
from llamita.architecture.config import ModelConfig
from llamita.architecture.huggingface_config import folded_ntk_theta
from llamita.data.atomic import exclusive, fresh_directory
from llamita.errors import UserError
from llamita.formats.ggml_quantizer import check_ggml, quantize_with_ggml
from llamita.formats.gguf_architectures import (
    ARCHITECTURES,
    ROPE_FREQS,
    gguf_tensor_name,
    llama3_factors,
)
from llamita.formats.gguf_rows import in_pairs, permuted_heads
from llamita.formats.gguf_tokenizer_writing import tokenizer_fields
from llamita.formats.gguf_types import (
    K_QUANTS,
    Stored,
    file_type_name,
    quantization_named,
    stored_type,
    told_types,
)
from llamita.formats.writing import WRITTEN_BY

if TYPE_CHECKING:
    from torch import Tensor

    from llamita.data.tokenizer import Tokenizer

_OF_MODEL_TYPE = {"mistral": "llama"}  # the others bear their own name in GGUF too
_LARGEST = 65504.0  # of float16, in which the scales of quantised blocks stand too
_LISTED = 8


def write_gguf(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    quantize: str = "q8_0",
    facts: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write a model with its tokenizer and chat template as one GGUF file, version 3.

    Weights are quantised from float32 whatever they are stored in; each is asked of `state` when
    its turn comes and let go before the next. The file appears whole or not at all, in place of
    one that is there; whether that may be is the caller's to settle.

    Args:
        state: weights by Hugging Face's names, rows of padding allowed; a lazy mapping will do.
        quantize: one of `gguf_types.GGUF_TYPES`.
        facts: of `general.*`, such as its name (the file's where there is none) and licence.
        say: told which types the tensors have, and what llama.cpp will do otherwise than we.

    Raises:
        UserError: an unknown type, a shape or tokenizer that llama.cpp cannot express, weights
            missing or no numbers or beyond the type, a full disk, K-quants without xllamacpp.
    """
    path = Path(path)
    quantize = quantization_named(quantize)
    _import_gguf()
    architecture = gguf_architecture(config)
    fields = tokenizer_fields(tokenizer, config, say=say)
    planned = _planned(state, config, quantize)
    for kind in sorted({stored.kind for _, _, stored in planned.values()} & K_QUANTS):
        check_ggml(kind)
    about = {"general.name": path.stem, **(facts or {})}
    about |= {"general.type": "model", WRITTEN_BY: __version__}
    path = path.resolve()
    with (
        exclusive(path, "model"),
        fresh_directory(path.with_name(f".{path.name}.building")) as building,
    ):
        file = building / path.name
        with _writer(file, architecture) as writer:
            keys = _model_fields(config, architecture)
            for key, value in (about | keys | fields).items():
                _add(writer, key, value)
            _add_file_type(writer, quantize)
            _write_tensors(writer, state, config, architecture, planned)
        durable.sync(file)
        file.replace(path)
        durable.sync(path.parent)
    for line in told_types(stored for _, _, stored in planned.values()):
        say(line)


def gguf_architecture(config: ModelConfig) -> str:
    """The name of the architecture in GGUF that computes what this config says.

    It is the one that the Hugging Face directory would have, mistral being llama there.

    Raises:
        UserError: llama.cpp computes no such model.
    """
    model_type = str(config.to_huggingface()["model_type"])
    scaling = None if config.rope_scaling is None else config.rope_scaling.rope_type
    if scaling == "dynamic":
        raise UserError(
            "rope_scaling of type dynamic changes with the length of a text, which llama.cpp does "
            "not compute; use `--to hf`"
        )
    if model_type == "qwen3" and (scaling == "llama3" or config.attention_bias):
        what = "Llama 3's rope scaling" if scaling == "llama3" else "biases in attention"
        raise UserError(f"llama.cpp's qwen3 (qk_norm) has no {what}; use `--to hf`")
    if model_type == "qwen2" and scaling == "llama3":
        return "llama"  # it takes biases on q, k and v alone as well, and qwen2 has no rope_freqs
    return _OF_MODEL_TYPE.get(model_type, model_type)


def _import_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(
            "writing GGUF files needs the package gguf: pip install 'llamita[gguf]'"
        ) from None


# By GGUF's name of a tensor: Hugging Face's, the shape, and how it is stored.
_Planned = Mapping[str, tuple[str, tuple[int, ...], Stored]]


def _planned(state: Mapping[str, Tensor], config: ModelConfig, quantize: str) -> _Planned:
    import torch

    from llamita.model.decoder import Decoder

    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in Decoder(config).state_dict().items()}
    problems = [f"{name} missing" for name in expected if name not in state]
    for name in state:
        if name not in expected:
            problems.append(f"{name} unexpected")
        elif _without_padding(state[name], expected[name]).shape != expected[name]:
            problems.append(f"{name} {tuple(state[name].shape)} instead of {expected[name]}")
    if problems:
        more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UserError(f"the weights do not fit: {', '.join(problems[:_LISTED])}{more}")
    named = {gguf_tensor_name(name): (name, shape) for name, shape in expected.items()}
    return {
        theirs: (ours, shape, stored_type(theirs, shape, quantize, config))
        for theirs, (ours, shape) in named.items()
    }


def _without_padding(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Embedding and head may have rows that are no token's; training pads them."""
    return tensor[: shape[0]] if len(shape) == 2 and tensor.shape[0] > shape[0] else tensor


def _model_fields(config: ModelConfig, architecture: str) -> dict[str, Any]:
    scaling = config.rope_scaling
    ntk = scaling is not None and scaling.rope_type == "ntk"
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": folded_ntk_theta(config) if ntk else config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    if scaling is not None and scaling.rope_type == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if architecture == "granite":
        keys |= {
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling,
            "attention.scale": config.attention_scale,
        }
    return {f"{architecture}.{key}": value for key, value in keys.items()}


@contextmanager
def _writer(file: Path, architecture: str) -> Iterator[Any]:
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    try:
        yield writer
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    """A key with the type in the file that goes with Python's."""
    from gguf import GGUFValueType as Type

    if isinstance(value, (list, bytes)):
        kinds = {int: Type.INT32, float: Type.FLOAT32, str: Type.STRING}
        kind = Type.UINT8 if isinstance(value, bytes) else kinds[type(value[0])]
        writer.add_key_value(key, value, Type.ARRAY, sub_type=kind)
        return
    kinds = {bool: Type.BOOL, int: Type.UINT32, float: Type.FLOAT32, str: Type.STRING}
    writer.add_key_value(key, value, kinds[type(value)])


def _add_file_type(writer: Any, quantize: str) -> None:
    import gguf

    writer.add_file_type(gguf.LlamaFileType[file_type_name(quantize)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_tensors(
    writer: Any,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    architecture: str,
    planned: _Planned,
) -> None:
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(ROPE_FREQS, factors.shape, factors.dtype, factors.nbytes)
    for theirs, (_, shape, stored) in planned.items():
        _announce(writer, theirs, shape, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        _append(writer, factors)
    permuted = ARCHITECTURES[architecture].permuted
    for ours, shape, stored in planned.values():
        tensor = _without_padding(state[ours], shape).detach().to("cpu").float()
        heads = permuted_heads(ours, config) if permuted else None
        if heads is not None:
            tensor = in_pairs(tensor, heads)
        _append(writer, _encoded(ours, tensor.contiguous().numpy(), stored.kind))


def _append(writer: Any, values: NDArray[Any]) -> None:
    try:
        writer.write_tensor_data(values)
    except OSError as error:
        if error.errno is None:  # numpy's way of saying that not all of it could be written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _rope_factors(config: ModelConfig) -> NDArray[np.float32] | None:
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    assert scaling.low_freq_factor
    assert scaling.high_freq_factor
    assert scaling.original_max_position_embeddings
    found = llama3_factors(
        config.rope_theta,
        config.head_dim,
        factor=scaling.factor,
        low=scaling.low_freq_factor,
        high=scaling.high_freq_factor,
        context=scaling.original_max_position_embeddings,
    )
    return found.astype(np.float32)


def _announce(writer: Any, name: str, shape: tuple[int, ...], stored: Stored) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[stored.kind]
    values, size = GGML_QUANT_SIZES[kind]
    num_bytes = int(np.prod(shape)) // values * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes, raw_dtype=kind)


def _encoded(name: str, values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """A tensor as the file holds it.

    Raises:
        UserError: values that are no numbers, or that the type cannot hold.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    largest = float(np.abs(values).max(initial=0))
    if not np.isfinite(largest):
        raise UserError(f"{name} holds values that are no numbers; nothing was written")
    if kind not in ("F32", "BF16") and largest > _LARGEST:
        raise UserError(
            f"{name} has values beyond what float16 can hold (65,504), in which {kind} keeps "
            "values or scales; take bf16 or f32"
        )
    if kind in K_QUANTS:
        return quantize_with_ggml(values, kind)
    found: NDArray[Any] = quantize(values, GGMLQuantizationType[kind])
    return found
