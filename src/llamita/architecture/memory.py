"""What a model needs in memory, item by item, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass, fields

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import block_matmul_parameters, num_parameters

KEPT_LOGITS_BYTES = 96_000_000
"""Logits up to this size are kept for the backward pass, which saves one of the head's four
products. Larger ones are computed again, a chunk at a time."""
FLOAT32 = 4
BFLOAT16 = 2


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step on one device, by what holds them."""

    weights: int
    gradients: int
    optimizer: int
    weight_casts: int
    activations: int
    logits: int
    average: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes of a model that writes, by what holds them."""

    weights: int
    key_value_cache: int

    @property
    def total(self) -> int:
        return self.weights + self.key_value_cache


def head_chunk_tokens(device_type: str) -> int:
    """Tokens whose logits stand at a time when a batch is scored.

    On a CPU 512 are as fast as 1024 and 2048 (vocabularies of 8,192 and 32,000; benchmarks/
    head_chunks.py). On a GPU each chunk reads and writes the float32 gradient of the whole head
    once, which for TinyLlama is 0.3 ms: four times as many tokens, so that it stays under 1%.
    """
    return 512 if device_type == "cpu" else 2048


def activation_bytes_per_token(config: ModelConfig, compute_bytes: int = BFLOAT16) -> int:
    """What one block keeps for its backward pass, times the layers, in bytes a token.

    Counted for fused kernels (torch.compile and a flash attention, whose score matrix never
    stands): per block the input of each norm and what it puts out, q, k and v after rotation, the
    attention's output and its float32 log-sum-exp, the gate and the up projection; their product
    is computed again. TinyLlama: 1.06 MB a token in bfloat16, where its authors' 40 GB imply 1.04.
    """
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    kept = 4 * config.hidden_size + 2 * queries + 2 * keys + 2 * config.intermediate_size
    if config.qk_norm:
        kept += queries + keys
    per_block = kept * compute_bytes + config.num_attention_heads * FLOAT32
    return config.num_hidden_layers * per_block


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
) -> TrainingMemory:
    """Memory of a training step: float32 weights, gradients and moments, and the rest.

    Args:
        config: the model.
        micro_batch_size: rows of one forward and backward pass on this device.
        sequence_length: tokens of a row.
        compute_bytes: bytes of an activation, 2 for bfloat16, 4 for float32.
        head_chunk_size: tokens whose logits stand at a time; by default a CPU's.
        ranks: devices over which weights, gradients and moments are sharded evenly.
        muon: whether the blocks' matrices have Muon's one moment in place of AdamW's two.
        average: whether a running average of the weights is kept.
        activation_checkpointing: whether only the blocks' inputs are kept, and one block's
            activations at a time.

    Returns:
        An estimate: allocators' reserves and fragmentation are not in it.
    """
    parameters = num_parameters(config)
    share = -(-parameters // ranks)
    moments = 2 * parameters
    if muon:
        moments -= config.num_hidden_layers * block_matmul_parameters(config)
    tokens = micro_batch_size * sequence_length
    per_token = activation_bytes_per_token(config, compute_bytes)
    if activation_checkpointing:
        inputs = config.num_hidden_layers * config.hidden_size * compute_bytes
        per_token = inputs + per_token // config.num_hidden_layers
    chunk = min(head_chunk_size or head_chunk_tokens("cpu"), tokens)
    # A chunk's product and its gradient in the compute type (fused kernels write no float32
    # logits), and the share of the weight's gradient that is about to be added.
    logits = 2 * chunk * config.vocab_size * compute_bytes
    logits += config.vocab_size * config.hidden_size * compute_bytes
    kept = tokens * config.vocab_size * compute_bytes
    if kept <= KEPT_LOGITS_BYTES:
        logits += kept
    # The last hidden state and its norm's output live beside the blocks' activations.
    around = tokens * 2 * config.hidden_size * compute_bytes
    return TrainingMemory(
        weights=share * FLOAT32,
        gradients=share * FLOAT32,
        optimizer=-(-moments // ranks) * FLOAT32,
        # autograd keeps the cast copy of each weight from forward to backward
        weight_casts=parameters * compute_bytes if compute_bytes < FLOAT32 else 0,
        activations=tokens * per_token + around,
        logits=logits,
        average=share * FLOAT32 if average else 0,
    )


def inference_memory(
    config: ModelConfig,
    batch_size: int,
    context_length: int,
    *,
    weight_bytes: int = FLOAT32,
    cache_bytes: int = FLOAT32,
) -> InferenceMemory:
    """Memory of `batch_size` texts of `context_length` tokens being written."""
    keys = config.num_key_value_heads * config.head_dim
    per_token = 2 * config.num_hidden_layers * keys * cache_bytes
    return InferenceMemory(
        weights=num_parameters(config) * weight_bytes,
        key_value_cache=batch_size * context_length * per_token,
    )
