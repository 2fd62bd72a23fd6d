"""What follows from a config: parameters and floating-point operations."""

from __future__ import annotations

from typing import Literal, NamedTuple

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError

Counts = Literal["total", "non-embedding"]
"""Which parameters a law or a size speaks of: all, or those without the embedding and the head."""


class MixtureParameters(NamedTuple):
    """Parameters of a mixture of experts: memory follows `total`, FLOPs a token `active`."""

    total: int
    active: int


def block_matmul_parameters(config: ModelConfig) -> int:
    """Weights of one block that enter a matrix product."""
    hidden, head_dim = config.hidden_size, config.head_dim
    queries = config.num_attention_heads * head_dim
    keys = config.num_key_value_heads * head_dim
    return hidden * (2 * queries + 2 * keys) + 3 * hidden * config.intermediate_size


def _block_vector_parameters(config: ModelConfig) -> int:
    """Norms and biases of one block."""
    hidden, head_dim = config.hidden_size, config.head_dim
    count = 2 * hidden
    if config.attention_bias:
        count += (config.num_attention_heads + 2 * config.num_key_value_heads) * head_dim
    if config.attention_output_bias:
        count += hidden
    if config.mlp_bias:
        count += 2 * config.intermediate_size + hidden
    if config.qk_norm:
        count += 2 * head_dim
    return count


def num_parameters(config: ModelConfig, embedding: bool = True) -> int:
    """Parameters of the model, a tied matrix counted once.

    With `embedding=False`, the N of scaling laws: without the input embedding and without the
    head, tied or not; norms are included.
    """
    block = block_matmul_parameters(config) + _block_vector_parameters(config)
    count = config.num_hidden_layers * block + config.hidden_size
    if embedding:
        matrices = 1 if config.tie_word_embeddings else 2
        count += matrices * config.vocab_size * config.hidden_size
    return count


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that enter a matrix product for each token.

    The head is included (tied or not), the look-up in the input embedding is not.
    """
    head = config.vocab_size * config.hidden_size
    return config.num_hidden_layers * block_matmul_parameters(config) + head


def flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Training FLOPs a token, forward and backward.

    6 · (matmul parameters, head included) + 12 · L · heads · head_dim · T, the convention of
    PaLM's appendix B, which counts the whole attention square and not the causal half.
    """
    width = config.num_attention_heads * config.head_dim
    attention = 12 * config.num_hidden_layers * width * sequence_length
    return 6 * matmul_parameters(config) + attention


def inference_flops_per_token(config: ModelConfig, context_length: int) -> int:
    """FLOPs of one forward pass for one token that attends to `context_length` tokens."""
    width = config.num_attention_heads * config.head_dim
    return 2 * matmul_parameters(config) + 4 * config.num_hidden_layers * width * context_length


def mixture_parameters(
    config: ModelConfig, num_experts: int, experts_per_token: int
) -> MixtureParameters:
    """Parameters without embeddings if each MLP becomes `num_experts` copies of itself.

    A router of hidden_size · num_experts weights in each layer picks `experts_per_token` of them
    for a token; all else is the dense model's (as in MiniCPM-MoE, arXiv 2404.06395).

    Raises:
        UserError: more experts for a token than there are, or none.
    """
    if not 1 <= experts_per_token <= num_experts:
        raise UserError(
            f"{experts_per_token} experts a token of {num_experts}: write a number from 1 to "
            f"{num_experts if num_experts > 0 else 'the number of experts, which is at least 1'}"
        )
    hidden, ffn = config.hidden_size, config.intermediate_size
    expert = 3 * hidden * ffn + (2 * ffn + hidden if config.mlp_bias else 0)
    router = hidden * num_experts
    shared = num_parameters(config, embedding=False) - config.num_hidden_layers * expert
    total, active = (
        shared + config.num_hidden_layers * (number * expert + router)
        for number in (num_experts, experts_per_token)
    )
    return MixtureParameters(total, active)
