"""The CPU's own paths against SDPA, and the seam's masks against attention written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.model.attention import attention, document_mask
from llamita.model.blocked_attention import BLOCK, applies, blocked_attention

Heads = tuple[int, int]


def _inputs(heads: Heads, queries: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(number: int, length: int) -> Tensor:
        values = torch.randn(2, length, number, 16, generator=generator, dtype=torch.float64)
        return values.to(dtype).transpose(1, 2).requires_grad_()

    return draw(heads[0], queries), draw(heads[1], keys), draw(heads[1], keys)


def _written_out(q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor) -> Tensor:
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(24, 24), (1, 24), (7, 24)])
def test_the_last_queries_are_aligned_with_the_last_keys(
    heads: Heads, queries: int, keys: int
) -> None:
    q, k, v = _inputs(heads, queries, keys, torch.float32)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    expected = _written_out(q, k, v, 0.3, visible)
    torch.testing.assert_close(attention(q, k, v, scale=0.3), expected)


def test_traced_for_any_length() -> None:
    """A compiled block that meets a second length is traced with symbolic sizes."""
    traced = torch.compile(attention, dynamic=True, fullgraph=True, backend="eager")
    for length, held in ((7, 7), (9, 9), (3, 9), (1, 5)):
        q, k, v = (torch.randn(2, heads, n, 8) for heads, n in ((4, length), (2, held), (2, held)))
        expected = attention(q, k, v, scale=0.3)
        assert torch.equal(traced(q, k, v, scale=0.3), expected)


def test_document_mask() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1, 1], [5, 5, 5, 5]]))
    first = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == first
    assert torch.equal(mask[1, 0], torch.ones(4, 4, dtype=torch.bool).tril())


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("block", [32, 96])
def test_blocked_equals_sdpa(heads: Heads, block: int) -> None:
    q, k, v = _inputs(heads, 96, 96, torch.float32)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    actual = blocked_attention(q, k, v, scale=0.3, block=block)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-6)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(actual, (q, k, v), upstream)
    theirs = torch.autograd.grad(expected, (q, k, v), upstream)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def test_blocked_in_bfloat16_is_as_near_as_eager() -> None:
    q, k, v = _inputs((4, 2), 96, 96, torch.bfloat16)
    visible = torch.ones(96, 96, dtype=torch.bool).tril()
    exact = _written_out(q.double(), k.double(), v.double(), 0.25, visible)
    ours = blocked_attention(q, k, v, scale=0.25, block=32)
    eager = _written_out(q, k, v, 0.25, visible)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() <= (eager - exact).abs().mean()


def test_uncompiled_attention_is_sdpa() -> None:
    q, k, _ = _inputs((4, 2), BLOCK, BLOCK, torch.bfloat16)
    assert not applies(q, k)


@pytest.mark.slow
def test_compiled_bfloat16_takes_the_blocked_path(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _inputs((4, 2), 2 * BLOCK, 2 * BLOCK, torch.bfloat16)
    expected = attention(q.float(), k.float(), v.float(), scale=0.25)
    theirs = torch.autograd.grad(expected.square().sum(), (q, k, v))

    def refuse(*_args: object, **_options: object) -> Tensor:
        raise AssertionError("SDPA was called")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    compiled = torch.compile(attention, fullgraph=True)
    actual = compiled(q, k, v, scale=0.25)
    ours = torch.autograd.grad(actual.float().square().sum(), (q, k, v))
    assert (actual - expected).abs().mean() < 2e-3
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).abs().mean() < 1e-2 * their.abs().mean().clamp(min=1.0)


@pytest.mark.slow
def test_compiled_blocks_keep_no_scores() -> None:
    """The compiler keeps what it recognises in the backward; scores must not be among it."""
    length = 4 * BLOCK
    q, k, v = _inputs((4, 2), length, length, torch.bfloat16)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    compiled = torch.compile(attention, fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compiled(q, k, v, scale=0.25)
    assert kept
    assert max(kept) <= q.numel()
