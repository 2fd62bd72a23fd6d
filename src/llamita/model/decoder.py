"""The decoder: Llama, MiniCPM, Granite and Qwen, told apart by the numbers of their config.

Shapes: B rows, T tokens of a row, V vocabulary, H hidden size, D head_dim.
Parameters bear Hugging Face's Llama names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llamita.architecture.config import ModelConfig
from llamita.architecture.memory import SCORED_MULTIPLE, head_chunk_tokens
from llamita.model.attention import attention, document_blocks, document_mask
from llamita.model.cache import KeyValueCache
from llamita.model.document_attention import document_starts
from llamita.model.head import IGNORE, Answers, HeadFunctions, answers, target_log_probs
from llamita.model.rope import rotary_tables, rotate

__all__ = ["IGNORE", "Block", "Decoder", "Linear", "RMSNorm", "TokenScores", "compile_model"]


class TokenScores(NamedTuple):
    """What a decoder says of its targets; both (B, T) float32, 0 where the target is ignored."""

    log_probs: Tensor
    log_normalizers: Tensor


class Linear(nn.Linear):
    """A linear layer whose master weight is cast to the type of its input at use."""

    def reset_parameters(self) -> None:
        """Zeros: what a weight starts from is `initialize`'s business."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """A look-up table that starts from zeros."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) · weight (arXiv 1910.07467): float32 statistics, product in the input's type."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        queries = config.num_attention_heads * self.head_dim
        keys = config.num_key_value_heads * self.head_dim
        self.q_proj = Linear(hidden, queries, bias=config.attention_bias)
        self.k_proj = Linear(hidden, keys, bias=config.attention_bias)
        self.v_proj = Linear(hidden, keys, bias=config.attention_bias)
        self.o_proj = Linear(queries, hidden, bias=config.attention_output_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.scale = config.attention_scale

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Any,
        cache: KeyValueCache | None,
        layer: int,
    ) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q.transpose(1, 2), *rotary), rotate(k.transpose(1, 2), *rotary)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        mixed = attention(q, k, v, scale=self.scale, mask=mask)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, wide, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(hidden, wide, bias=bias)
        self.up_proj = Linear(hidden, wide, bias=bias)
        self.down_proj = Linear(wide, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind a norm, each added to the residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.residual_multiplier = config.residual_multiplier

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Any = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), rotary, mask, cache, layer)
        x = x + self._scaled(attended)
        return x + self._scaled(self.mlp(self.post_attention_layernorm(x)))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.residual_multiplier == 1.0 else x * self.residual_multiplier


class Backbone(nn.Module):
    """Embedding, blocks and last norm: what Hugging Face's names call `model`."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A causal language model; weights are zeros until `initialize` or `load_model` sets them.

    Args:
        config: its shape and constants.
        padded_vocab_size: rows of the embedding and of the head, at least `config.vocab_size`;
            the surplus rows never get probability and are left out of saved checkpoints.

    Attributes:
        compute_dtype: the type of activations and matrix products. Weights stay float32 and are
            cast where they are used; norms, softmax and scores are float32 inside.
        head_chunk_size: tokens whose logits stand at a time when targets are scored.
        checkpoint_blocks: keep only each block's input for the backward pass and compute the rest
            again there, which gives the same gradients for a third more arithmetic.
    """

    def __init__(self, config: ModelConfig, *, padded_vocab_size: int | None = None) -> None:
        super().__init__()
        rows = config.vocab_size if padded_vocab_size is None else padded_vocab_size
        assert rows >= config.vocab_size, f"{rows} rows for {config.vocab_size} tokens"
        self.config = config
        self.padded_vocab_size = rows
        self.model = Backbone(config, rows)
        self.lm_head: Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, rows, bias=False)
        self.compute_dtype = torch.float32
        self.head_chunk_size = head_chunk_tokens("cpu")
        self.head_functions = HeadFunctions()
        self.flex_documents = False
        self.checkpoint_blocks = False

    @property
    def head_weight(self) -> Tensor:
        """(padded vocabulary, H). Under FSDP2 it may be used inside the forward alone."""
        return (self.model.embed_tokens if self.lm_head is None else self.lm_head).weight

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        scored: Tensor | None = None,
        cache: KeyValueCache | None = None,
        logits_to_keep: int = 0,
        asked: tuple[Tensor, Tensor] | None = None,
    ) -> TokenScores | Answers | Tensor:
        """Scores the targets, answers what is asked, or returns logits.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64, `IGNORE` where none counts.
            positions: (T,) or (B, T); by default they count on from the cache's length.
            documents: (B, T) number of each token's document; attention stays inside equal ones.
            scored: (K,) places, in the flattened B·T, of all targets that count; the head works on
                those alone. By default it works on all.
            cache: filled with these tokens and advanced; the tokens attend to what it holds.
            logits_to_keep: without targets, only the last so many positions; 0 means all.
            asked: without targets, places (K,) in the flattened B·T and a token for each (K,); a
                place may be asked about several tokens.

        Returns:
            `TokenScores` with targets, `Answers` to what is asked; without either, logits
            (B, T or logits_to_keep, V) in float32.
        """
        hidden = self._hidden(tokens, positions, documents, cache, targets)
        if asked is not None:
            assert targets is None, "either targets are scored or questions answered"
            places, wanted = asked
            return answers(
                hidden.flatten(0, 1)[places],
                self.head_weight,
                wanted,
                vocab_size=self.config.vocab_size,
                logits_scaling=self.config.logits_scaling,
            )
        if targets is None:
            return self._logits(hidden[:, -logits_to_keep:])
        flat, wanted = hidden.flatten(0, 1), targets.flatten()
        if scored is not None:
            flat, wanted = _picked(flat, wanted, scored)
        log_probs, normalizers = target_log_probs(
            flat,
            self.head_weight,
            wanted,
            vocab_size=self.config.vocab_size,
            logits_scaling=self.config.logits_scaling,
            chunk_size=self.head_chunk_size,
            functions=self.head_functions,
        )
        if scored is not None:
            count, size = len(scored), targets.numel()
            log_probs = log_probs.new_zeros(size).index_copy(0, scored, log_probs[:count])
            normalizers = normalizers.new_zeros(size).index_copy(0, scored, normalizers[:count])
        return TokenScores(log_probs.view_as(targets), normalizers.view_as(targets))

    def _hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        documents: Tensor | None,
        cache: KeyValueCache | None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """(B, T) to the normed last hidden state (B, T, H) in `compute_dtype`.

        With targets it holds only where it can bear on one that counts.
        """
        assert documents is None or cache is None, "document masks are for whole rows"
        start, length = (0 if cache is None else cache.length), tokens.shape[1]
        end = None
        if positions is None:
            positions = torch.arange(start, start + length, device=tokens.device)
            end = start + length
        rotary = rotary_tables(self.config, positions, end)
        mask: Any = None if cache is None else cache.mask
        if documents is not None and documents.device.type == "cpu":
            mask = document_starts(documents, None if targets is None else targets != IGNORE)
        elif documents is not None:
            mask = (document_blocks if self.flex_documents else document_mask)(documents)
        x = self.model.embed_tokens(tokens)
        if self.config.embedding_multiplier != 1.0:
            x = x * self.config.embedding_multiplier
        x = x.to(self.compute_dtype)
        forgetful = self.checkpoint_blocks and cache is None and torch.is_grad_enabled()
        # What is computed again must be of the same dropout.
        draws = forgetful and draws_random_numbers(self)
        for layer, block in enumerate(self.model.layers):
            if forgetful:
                x = checkpoint(
                    block, x, rotary, mask, use_reentrant=False, preserve_rng_state=draws
                )
            else:
                x = block(x, rotary, mask, cache, layer)
        if cache is not None:
            cache.length += length
        out: Tensor = self.model.norm(x)
        return out

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, self.head_weight.to(hidden.dtype)).float()
        return logits[..., : self.config.vocab_size] / self.config.logits_scaling


def _picked(hidden: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H) and (N,) to those at `places`, filled up with ignored ones to few different sizes."""
    missing = max(1, -(-len(places) // SCORED_MULTIPLE)) * SCORED_MULTIPLE - len(places)
    chosen = F.pad(places, (0, missing))
    wanted = F.pad(targets[places], (0, missing), value=IGNORE)
    return hidden[chosen], wanted


def draws_random_numbers(model: nn.Module) -> bool:
    """Whether a forward pass that is differentiated draws any: dropout of some adapter."""
    return any(getattr(module, "dropout", 0) > 0 for module in model.modules())


def compile_model(model: Decoder, **options: Any) -> None:
    """Compiles each block and the head's chunk functions in place, with `torch.compile`.

    Blocks are alike, so that one graph serves them all. On CUDA, document masks become
    flex_attention's, which needs compilation. `options` go to `torch.compile`.
    """
    for block in model.model.layers:
        block.compile(fullgraph=True, **options)
    model.head_functions = HeadFunctions.compiled(**options)
    model.flex_documents = model.model.norm.weight.is_cuda
