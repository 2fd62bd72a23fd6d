"""Chunked log-probabilities against plain log_softmax and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamita.model import head
from llamita.model.head import IGNORE, HeadFunctions, chunk_gradient, score_chunk, target_log_probs

VOCAB, HIDDEN, TOKENS = 23, 12, 17


def _inputs(dtype: torch.dtype, padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB + padding, HIDDEN, generator=generator, dtype=dtype)
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    targets[[2, 9]] = IGNORE
    return hidden, weight.requires_grad_(), targets


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor, scaling: float) -> tuple[Tensor, ...]:
    logits = hidden @ weight[:VOCAB].t() / scaling
    counted = targets != IGNORE
    chosen = logits.log_softmax(-1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(counted, chosen, 0), torch.where(counted, logits.logsumexp(-1), 0)


@pytest.mark.parametrize("chunk_size", [1, 5, 17, 1024])
@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("scaling", [1.0, 2.5])
def test_values_and_gradients(chunk_size: int, padding: int, scaling: float) -> None:
    hidden, weight, targets = _inputs(torch.float64, padding)
    expected = _plain(hidden, weight, targets, scaling)
    actual = target_log_probs(
        hidden,
        weight,
        targets,
        vocab_size=VOCAB,
        logits_scaling=scaling,
        chunk_size=chunk_size,
    )
    generator = torch.Generator().manual_seed(1)
    mix = [torch.randn(TOKENS, generator=generator, dtype=torch.float64) for _ in range(2)]
    grads = []
    for scores in (expected, actual):
        total = (scores[0] * mix[0]).sum() + (scores[1] * mix[1]).square().sum()
        grads.append(torch.autograd.grad(total, (hidden, weight)))
    for ours, theirs in zip((*actual, *grads[1]), (*expected, *grads[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert not actual[0][[2, 9]].any()
    assert not grads[1][0][[2, 9]].any()
    assert not grads[1][1][VOCAB:].any()


def test_gradcheck() -> None:
    hidden, weight, targets = _inputs(torch.float64, padding=3)

    def scores(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return target_log_probs(h, w, targets, vocab_size=VOCAB, logits_scaling=1.7, chunk_size=4)

    assert torch.autograd.gradcheck(scores, (hidden, weight))


def test_weight_gradient_is_summed_in_float32() -> None:
    # 64 chunks of equal gradients: a bfloat16 sum would stop growing at 2^8 of them.
    hidden = torch.ones(4096, 2, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(4, 2, requires_grad=True)
    targets = torch.zeros(4096, dtype=torch.int64)
    log_probs, _ = target_log_probs(hidden, weight, targets, vocab_size=4, chunk_size=1)
    log_probs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(weight.grad[0], torch.full((2,), 4096 * 0.75))


def test_large_logits_never_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "KEPT_LOGITS_BYTES", 4 * 17 * VOCAB - 1)
    hidden, weight, targets = _inputs(torch.float32)
    seen: list[int] = []

    def score(product: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        seen.append(product.numel())
        return score_chunk(product, *rest)  # type: ignore[arg-type]

    def gradient(product: Tensor, *rest: object) -> Tensor:
        seen.append(product.numel())
        return chunk_gradient(product, *rest)  # type: ignore[arg-type]

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape != weight.shape:
            seen.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_probs, _ = target_log_probs(
            hidden,
            weight,
            targets,
            vocab_size=VOCAB,
            chunk_size=4,
            functions=HeadFunctions(score, gradient),
        )
    log_probs.sum().backward()
    assert max(seen) == max(4 * VOCAB, hidden.numel())


@pytest.mark.parametrize("limit", [0, 10**9])
def test_kept_logits_give_the_same_bits(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept or computed again, a product is the same product; kept ones are not computed again."""
    products = 0
    multiply = Tensor.__matmul__

    def counted(left: Tensor, right: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return multiply(left, right)

    hidden, weight, targets = _inputs(torch.float32)
    expected, _ = target_log_probs(hidden, weight, targets, vocab_size=VOCAB, chunk_size=4)
    wanted = torch.autograd.grad(expected.sum(), (hidden, weight))
    monkeypatch.setattr(head, "KEPT_LOGITS_BYTES", limit)
    monkeypatch.setattr(Tensor, "__matmul__", counted)
    found, _ = target_log_probs(hidden, weight, targets, vocab_size=VOCAB, chunk_size=4)
    chunks = -(-len(targets) // 4)
    assert products == chunks
    grads = torch.autograd.grad(found.sum(), (hidden, weight))
    assert products == chunks * (2 if limit else 3)  # the weight's gradient is one, too
    assert torch.equal(found, expected)
    for ours, theirs in zip(grads, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_bfloat16_products_float32_softmax() -> None:
    hidden, weight, targets = _inputs(torch.float32)
    exact, _ = _plain(hidden, weight, targets, 1.0)
    rounded, normalizers = target_log_probs(
        hidden.bfloat16(), weight, targets, vocab_size=VOCAB, chunk_size=5
    )
    assert rounded.dtype == normalizers.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1
    # Scores that all lay on bfloat16's grid would have been rounded after the softmax.
    assert not torch.equal(rounded, rounded.bfloat16().float())
