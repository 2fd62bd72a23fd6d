"""What a model needs in memory, item by item, before anything is allocated.

A training step is planned by its fullest moment (architecture/moments.py); `benchmarks/
plan_memory.py` holds plans against what training takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llamita.architecture.adapter_moments import AdapterMoments
from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import num_parameters
from llamita.architecture.lora import Lora
from llamita.architecture.moments import (
    BFLOAT16,
    FLOAT32,
    KEPT_LOGITS_BYTES,
    MUON_STACK_ELEMENTS,
    StepMoments,
    TrainingMemory,
    activation_bytes_per_token,
)

__all__ = [
    "BFLOAT16",
    "FLOAT32",
    "KEPT_LOGITS_BYTES",
    "MUON_STACK_ELEMENTS",
    "SCORED_MULTIPLE",
    "WEIGHT_BITS",
    "InferenceMemory",
    "TrainingMemory",
    "activation_bytes_per_token",
    "head_chunk_tokens",
    "inference_memory",
    "serving_memory",
    "training_memory",
]

WEIGHT_BITS: Mapping[str, float] = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "int8": 8.5,
    "q8_0": 8.5,
    "q6_k": 6.5625,
    "q5_k": 5.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_k": 4.5,
    "q4_1": 5.0,
    "int4": 4.5,
    "q4_0": 4.5,
}
"""Bits of a stored weight with its share of the scales: llama.cpp's block formats (ggml-common.h).
q8_0 is 32 weights in 34 bytes, one half-precision scale; q4_0 18 bytes; q4_1 20, a minimum too;
q4_k 256 weights in 144 bytes. int8 and int4 stand for blocks of 32 with one such scale."""

SCORED_MULTIPLE = 128
"""Tokens that the head works on are filled up to a multiple of this: few shapes for the compiler,
whatever a batch lets learn."""

SERVING_RUNTIME_BYTES = 512 * 2**20
"""Allowance for what a serving process holds beside weights and cache: its code (0.32 GB for
Python with PyTorch, measured on Linux) and buffers for one pass."""


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes of a model that writes, by what holds them."""

    weights: int
    key_value_cache: int
    runtime: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.key_value_cache + self.runtime


_FROZEN_HEAD_LOGITS = 1 << 23


def head_chunk_tokens(device_type: str, frozen_vocab_size: int | None = None) -> int:
    """Tokens whose logits stand at a time when a batch is scored.

    On a CPU 512 are as fast as 1024 and 2048 (vocabularies of 8,192 and 32,000; benchmarks/
    head_chunks.py). On a GPU each chunk reads and writes the float32 gradient of the whole head
    once, which for TinyLlama is 0.3 ms: four times as many tokens, so that it stays under 1%.

    Args:
        frozen_vocab_size: the vocabulary of a head that does not learn. It has no such gradient,
            and on a CPU its chunks are of about 8 million logits (32 MB in float32, of which
            several copies stand), down to 128 tokens.
    """
    if device_type != "cpu":
        return 2048
    if frozen_vocab_size is None:
        return 512
    fitting = _FROZEN_HEAD_LOGITS // frozen_vocab_size
    return max(128, min(512, fitting // 128 * 128))


def training_memory(
    config: ModelConfig,
    micro_batch_size: int,
    sequence_length: int,
    *,
    compute_bytes: int = BFLOAT16,
    head_chunk_size: int | None = None,
    ranks: int = 1,
    muon: bool = False,
    average: bool = False,
    activation_checkpointing: bool = False,
    device_type: str = "cpu",
    compiled: bool = True,
    accumulates: bool = False,
    lora: Lora | None = None,
    learning_share: float = 1.0,
    documents: bool = False,
) -> TrainingMemory:
    """Memory of a training step at its fullest moment: float32 weights, gradients and moments, and
    the rest.

    Gradients of the blocks come about while activations go away, so that the two are never whole
    together, unless gradients of earlier passes stand (`accumulates`). With `lora`, weights,
    gradients and moments are those of the adapters, and `base` is what stands still
    (architecture/adapter_moments.py).

    Args:
        config: the model.
        micro_batch_size: rows of one forward and backward pass on this device.
        sequence_length: tokens of a row.
        compute_bytes: bytes of an activation, 2 for bfloat16, 4 for float32.
        head_chunk_size: tokens whose logits stand at a time; by default the device's.
        ranks: devices over which weights, gradients and moments are sharded evenly (FSDP2).
        muon: whether the blocks' matrices have Muon's one moment in place of AdamW's two.
        average: whether a running average of the weights is kept.
        activation_checkpointing: whether only the blocks' inputs are kept, and one block's
            activations at a time.
        device_type: `cpu`, where the plan is of the resident set, with what the heap and the code
            take besides; or `cuda`, where it is of what the allocator hands out.
        compiled: whether blocks and head run through torch.compile, which keeps and makes less.
        accumulates: whether a step has several passes, which add up their gradients.
        lora: the adapters, where they alone learn.
        learning_share: of a pass's tokens, those whose targets learn: the head works on them
            alone, filled up to a multiple of `SCORED_MULTIPLE`. 1: it works on all.
        documents: whether attention stays inside documents, as in packed rows.
    """
    tokens = micro_batch_size * sequence_length
    scored = None
    if learning_share < 1.0:
        scored = max(1, math.ceil(learning_share * tokens / SCORED_MULTIPLE)) * SCORED_MULTIPLE
    usual = head_chunk_tokens(device_type, None if lora is None else config.vocab_size)
    chunk = min(head_chunk_size or usual, scored or tokens)
    step = StepMoments(
        config,
        tokens,
        chunk,
        compute_bytes=compute_bytes,
        ranks=ranks,
        muon=muon,
        average=average,
        checkpointing=activation_checkpointing,
        device_type=device_type,
        compiled=compiled,
        accumulates=accumulates,
        scored=scored,
        documents=documents,
    )
    if lora is not None:
        step = AdapterMoments(**vars(step), lora=lora)
    return max(step.all().values(), key=lambda memory: memory.total)


def inference_memory(
    config: ModelConfig,
    batch_size: int,
    context_length: int,
    *,
    weight_bytes: int = FLOAT32,
    cache_bytes: int = FLOAT32,
) -> InferenceMemory:
    """Memory of `batch_size` texts of `context_length` tokens being written: tensors alone."""
    return serving_memory(
        config,
        context_length,
        batch_size=batch_size,
        weight_bits=8 * weight_bytes,
        cache_bits=8 * cache_bytes,
        runtime_bytes=0,
    )


def serving_memory(
    config: ModelConfig,
    context_length: int,
    *,
    batch_size: int = 1,
    weight_bits: float,
    cache_bits: float = 16,
    runtime_bytes: int = SERVING_RUNTIME_BYTES,
) -> InferenceMemory:
    """Memory of serving `batch_size` texts of up to `context_length` tokens each.

    Args:
        weight_bits: of every weight, scales included; see `WEIGHT_BITS`.
        cache_bits: of a number in the cache of keys and values: 16, or 8.5 for q8_0.
        runtime_bytes: allowance for all else.
    """
    keys = config.num_key_value_heads * config.head_dim
    numbers = 2 * config.num_hidden_layers * keys * batch_size * context_length
    return InferenceMemory(
        weights=math.ceil(num_parameters(config) * weight_bits / 8),
        key_value_cache=math.ceil(numbers * cache_bits / 8),
        runtime=runtime_bytes,
    )
