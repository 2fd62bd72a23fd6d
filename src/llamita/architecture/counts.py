"""What follows from a config: parameters and floating-point operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError

if TYPE_CHECKING:
    from llamita.architecture.lora import Lora

Counts = Literal["total", "non-embedding"]
"""Which parameters a law or a size speaks of: all, or those without the embedding and the head."""


class MixtureParameters(NamedTuple):
    """Parameters of a mixture of experts: memory follows `total`, FLOPs a token `active`."""

    total: int
    active: int


def projections(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices of one block by name, each as (inputs, outputs)."""
    hidden, wide, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries = config.num_attention_heads * head_dim
    keys = config.num_key_value_heads * head_dim
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }


def block_matmul_parameters(config: ModelConfig) -> int:
    """Weights of one block that enter a matrix product."""
    return sum(inputs * outputs for inputs, outputs in projections(config).values())


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


def flops_per_token(
    config: ModelConfig,
    sequence_length: int,
    lora: Lora | None = None,
    *,
    learning_share: float = 1.0,
    live_reference: bool = False,
) -> int:
    """Training FLOPs a token, forward and backward.

    6 · (matmul parameters, head included) + 12 · L · heads · head_dim · T, the convention of
    PaLM's appendix B, which counts the whole attention square and not the causal half.

    With `lora` the adapters alone learn: 4 · (matmul parameters) + 6 · (adapters' parameters) and
    the same attention, less what the first block leaves out. Forward, each weight is multiplied
    once (2). Backward, the product for its own gradient (2) is made for adapters and for nothing
    else; the one for its input's gradient (2) where that input depends on an adapter. All inputs
    do but those of the first block that no adapter comes before: `_left_out_by_first_block`.
    Dequantising a base is no product and is not counted.

    Args:
        learning_share: of the tokens, those whose targets learn, on which alone the head works.
        live_reference: whether the base scores each token too, forward alone, as preferences do
            with `reference: live`.
    """
    width = config.num_attention_heads * config.head_dim
    products, attention = 6, 12 * config.num_hidden_layers * width * sequence_length
    adapting = 0
    if lora is not None:
        products, shapes = 4, projections(config)
        adapters = lora.rank * sum(sum(shapes[name]) for name in lora.targets)
        adapting = 6 * config.num_hidden_layers * adapters
        adapting -= _left_out_by_first_block(config, sequence_length, lora)
    if live_reference:
        products, attention = products + 2, attention + attention // 3
    not_learning = round((1 - learning_share) * config.vocab_size * config.hidden_size)
    return products * (matmul_parameters(config) - not_learning) + attention + adapting


def without_input_gradient(lora: Lora) -> tuple[str, ...]:
    """The first block's matrices whose input no adapter comes before. What enters the block is the
    embedding, which stands still; a residual carries the gradient from one adapter on."""
    attention = {"q_proj", "k_proj", "v_proj"}
    found = ["q_proj", "k_proj", "v_proj"]
    before = set(lora.targets)
    if not before & attention:
        found.append("o_proj")
    if not before & {*attention, "o_proj"}:
        found += ["gate_proj", "up_proj"]
    if not before & {*attention, "o_proj", "gate_proj", "up_proj"}:
        found.append("down_proj")
    return tuple(found)


def _left_out_by_first_block(config: ModelConfig, sequence_length: int, lora: Lora) -> int:
    """FLOPs a token. Of attention's four products backward, those for the gradients of values, of
    probabilities, of queries and of keys, each is made where q, k or v learns that needs it."""
    shapes, learns = projections(config), lora.targets
    weights = 0
    for name in without_input_gradient(lora):
        inputs, outputs = shapes[name]
        weights += inputs * (outputs + (lora.rank if name in learns else 0))
    needed = [
        "v_proj" in learns,
        "q_proj" in learns or "k_proj" in learns,
        "q_proj" in learns,
        "k_proj" in learns,
    ]
    width = config.num_attention_heads * config.head_dim
    return 2 * weights + 2 * needed.count(False) * width * sequence_length


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
