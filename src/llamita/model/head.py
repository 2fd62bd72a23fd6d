"""From the last hidden state to log-probabilities, without holding large logits whole.

Shapes: N tokens, C tokens of a chunk, H hidden size, V rows of the head's weight (padded),
of which the first `vocab_size` are tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llamita.architecture.memory import KEPT_LOGITS_BYTES, head_chunk_tokens

IGNORE = -100


def _logits(product: Tensor, vocab_size: int, scaling: float) -> Tensor:
    """hidden @ weight.T (C, V) to logits in float32, minus infinity in the padding's columns."""
    logits = product.to(torch.promote_types(product.dtype, torch.float32))
    if scaling != 1.0:
        logits = logits / scaling
    if vocab_size < product.shape[1]:
        padding = torch.arange(product.shape[1], device=logits.device) >= vocab_size
        logits = logits.masked_fill(padding, -torch.inf)
    return logits


def score_chunk(
    product: Tensor, targets: Tensor, vocab_size: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and log-normalizer, both (C,); 0 where ignored."""
    logits = _logits(product, vocab_size, scaling)
    counted = targets != IGNORE
    index = targets.masked_fill(~counted, 0)
    normalizers = logits.logsumexp(dim=-1)
    log_probs = logits.gather(1, index[:, None]).squeeze(1) - normalizers
    return log_probs.masked_fill(~counted, 0.0), normalizers.masked_fill(~counted, 0.0)


def chunk_gradient(
    product: Tensor,
    targets: Tensor,
    normalizers: Tensor,
    log_prob_grad: Tensor,
    normalizer_grad: Tensor,
    vocab_size: int,
    scaling: float,
) -> Tensor:
    """Gradient with respect to hidden @ weight.T, (C, V) in its type.

    d log p_t / d logits = onehot_t - p and d log Z / d logits = p.
    """
    logits = _logits(product, vocab_size, scaling)
    counted = targets != IGNORE
    index = targets.masked_fill(~counted, 0)
    on_target = log_prob_grad.masked_fill(~counted, 0.0) / scaling
    on_all = normalizer_grad.masked_fill(~counted, 0.0) / scaling - on_target
    probabilities = (logits - normalizers[:, None]).exp()
    columns = torch.arange(product.shape[1], device=logits.device)
    hit = columns == index[:, None]
    grad = probabilities * on_all[:, None] + torch.where(hit, on_target[:, None], 0.0)
    return grad.masked_fill(~counted[:, None], 0.0).to(product.dtype)


def add_share(total: Tensor, share: Tensor) -> Tensor:
    """total += share, which may be of a narrower type; compiled, without a wide copy of it."""
    return total.add_(share.to(total.dtype))


@dataclass(frozen=True)
class HeadFunctions:
    """What is done to a chunk beside products, plain or compiled."""

    score: Callable[..., tuple[Tensor, Tensor]] = score_chunk
    gradient: Callable[..., Tensor] = chunk_gradient
    add: Callable[[Tensor, Tensor], Tensor] = add_share

    @classmethod
    def compiled(cls, **options: Any) -> HeadFunctions:
        """By torch.compile; `options` go to it."""
        return cls(
            score=torch.compile(score_chunk, **options),
            gradient=torch.compile(chunk_gradient, **options),
            add=torch.compile(add_share, **options),
        )


def _weight_share(grad: Tensor, hidden: Tensor) -> Tensor:
    """(C, V) and (C, H) to (V, H), where the device can in float32."""
    if grad.is_cuda and grad.dtype == torch.bfloat16:
        return torch.mm(grad.t(), hidden, out_dtype=torch.float32)
    return grad.t() @ hidden


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        scaling: float,
        chunk_size: int,
        functions: HeadFunctions,
    ) -> tuple[Tensor, Tensor]:
        cast = weight.to(hidden.dtype)
        rows = zip(torch.split(hidden, chunk_size), torch.split(targets, chunk_size), strict=True)
        size = hidden.shape[0] * weight.shape[0] * hidden.element_size()
        keeps = any(ctx.needs_input_grad) and size <= KEPT_LOGITS_BYTES
        parts, products = [], []
        for h, t in rows:
            product = h @ cast.t()
            parts.append(functions.score(product, t, vocab_size, scaling))
            if keeps:
                products.append(product)
        log_probs = torch.cat([part[0] for part in parts])
        normalizers = torch.cat([part[1] for part in parts])
        ctx.save_for_backward(hidden, weight, targets, normalizers, *products)
        ctx.constants = (vocab_size, scaling, chunk_size, functions)
        return log_probs, normalizers

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalizers, *products = ctx.saved_tensors
        vocab_size, scaling, chunk_size, functions = ctx.constants
        cast = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad: Tensor | None = None
        for number, start in enumerate(range(0, hidden.shape[0], chunk_size)):
            part = slice(start, start + chunk_size)
            grad = functions.gradient(
                products[number] if products else hidden[part] @ cast.t(),
                targets[part],
                normalizers[part],
                grads[0][part],
                grads[1][part],
                vocab_size,
                scaling,
            )
            if hidden_grad is not None:
                torch.mm(grad, cast, out=hidden_grad[part])
            if ctx.needs_input_grad[1]:
                share = _weight_share(grad, hidden[part])
                if weight_grad is None:
                    weight_grad = share.to(torch.promote_types(share.dtype, torch.float32))
                else:
                    functions.add(weight_grad, share)
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
        return hidden_grad, weight_grad, None, None, None, None, None


def target_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    logits_scaling: float = 1.0,
    chunk_size: int = 1024,
    functions: HeadFunctions | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets and log-normalizers under softmax(hidden·Wᵀ / scaling).

    Logits stand for `chunk_size` tokens at a time, forward and backward. The backward computes them
    again, unless all of them take no more than `KEPT_LOGITS_BYTES` in the type of `hidden`. The
    softmax is in float32, products in the type of `hidden`.

    Args:
        hidden: (N, H).
        weight: (V, H), cast to the type of `hidden`; rows from `vocab_size` on are padding.
        targets: (N,) int64; `IGNORE` marks those that do not count.

    Returns:
        log_probs and log_normalizers, (N,) float32, both differentiable, both 0 and without
        gradient where the target is ignored.
    """
    scores: tuple[Tensor, Tensor] = _TargetLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        targets,
        vocab_size,
        logits_scaling,
        chunk_size,
        functions or HeadFunctions(),
    )
    return scores


class Answers(NamedTuple):
    """Of each token asked for, (K,): its log-probability, float32, and whether no other is
    likelier."""

    log_probs: Tensor
    likeliest: Tensor


def answers(
    hidden: Tensor,
    weight: Tensor,
    wanted: Tensor,
    *,
    vocab_size: int,
    logits_scaling: float = 1.0,
) -> Answers:
    """What the head says of one token at each place; not differentiable.

    Args:
        hidden: (K, H).
        weight: (V, H), cast to the type of `hidden`; rows from `vocab_size` on are padding.
        wanted: (K,) int64.
    """
    cast = weight.detach().to(hidden.dtype)
    size = head_chunk_tokens(hidden.device.type, vocab_size)
    log_probs, likeliest = [], []
    rows = zip(torch.split(hidden.detach(), size), torch.split(wanted, size), strict=True)
    for h, w in rows:
        logits = _logits(h @ cast.t(), vocab_size, logits_scaling)
        log_probs.append(logits.gather(1, w[:, None]).squeeze(1) - logits.logsumexp(dim=-1))
        likeliest.append(logits.argmax(dim=-1) == w)
    return Answers(torch.cat(log_probs), torch.cat(likeliest))
