"""Attention inside documents on the CPU: against SDPA with a dense mask, and each by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.model.attention import attention, document_mask
from llamita.model.decoder import IGNORE, Decoder, TokenScores, compile_model
from llamita.model.document_attention import BLOCK, _blocks, document_starts
from llamita.model.initialization import initialize

Lengths = list[list[int]]

LAYOUTS: dict[str, Lengths] = {
    "several": [[70, 5, 3, 61, 40, 21], [1, 129, 64, 6]],
    "one": [[200], [200]],
    "tiny": [[1, 2, 3, 4] * 20, [2] * 100],
    "multiples of a block": [[BLOCK, 2 * BLOCK, 8], [BLOCK // 2] * 6 + [8]],
}


def _documents(lengths: Lengths) -> Tensor:
    rows = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    return torch.stack(rows).int()


def _inputs(heads: int, kv_heads: int, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, length, number, 16, generator=generator).to(dtype).transpose(1, 2)
        for number in (heads, kv_heads, kv_heads, heads)
    )


def _differentiated(
    q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, **options: Any
) -> tuple[Tensor, ...]:
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = attention(q, k, v, scale=0.3, **options)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), upstream)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_sdpa_with_a_dense_mask(layout: str, heads: tuple[int, int]) -> None:
    documents = _documents(LAYOUTS[layout])
    inputs = _inputs(*heads, documents.shape[1], torch.float32)
    actual = _differentiated(*inputs, mask=document_starts(documents))
    expected = _differentiated(*inputs, mask=document_mask(documents))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_one_document_is_causal() -> None:
    inputs = _inputs(6, 2, 200, torch.float32)
    actual = _differentiated(*inputs, mask=document_starts(_documents(LAYOUTS["one"])))
    for ours, theirs in zip(actual, _differentiated(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_as_near_as_eager() -> None:
    """Transformers' `eager`: products in bfloat16, softmax in float32."""
    documents = _documents(LAYOUTS["several"])
    q, k, v, upstream = _inputs(6, 2, documents.shape[1], torch.bfloat16)
    exact = _differentiated(
        *(x.double() for x in (q, k, v, upstream)), mask=document_mask(documents)
    )
    actual = _differentiated(q, k, v, upstream, mask=document_starts(documents))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    scores = q @ k.repeat_interleave(3, 1).transpose(2, 3) * 0.3
    scores = scores.masked_fill(~document_mask(documents), -torch.inf)
    out = scores.softmax(-1, dtype=torch.float32).bfloat16() @ v.repeat_interleave(3, 1)
    eager = (out, *torch.autograd.grad(out, (q, k, v), upstream))
    for ours, theirs, right in zip(actual, eager, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - right).abs().mean() < 1.02 * (theirs - right).abs().mean()


def test_the_same_bits_each_time() -> None:
    documents = _documents(LAYOUTS["several"])
    inputs = _inputs(6, 2, documents.shape[1], torch.float32)
    first, second = (_differentiated(*inputs, mask=document_starts(documents)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_starts() -> None:
    documents = torch.tensor([[4, 4, 4, 2, 2, 9], [0, 0, 1, 1, 7, 7]])
    assert document_starts(documents).starts.tolist() == [[0, 0, 0, 3, 3, 5], [0, 0, 2, 2, 4, 4]]
    counts = torch.tensor([[0, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0]]).bool()
    expected = [[0, 0, -1, -1, -1, 5], [0, 0, 2, 2, -1, -1]]
    assert document_starts(documents, counts).starts.tolist() == expected


def test_what_nobody_reads_gets_zeros_and_changes_nothing() -> None:
    documents = _documents(LAYOUTS["several"])
    counts = torch.rand(documents.shape, generator=torch.Generator().manual_seed(0)) < 0.02
    counts[1, -80:] = False
    starts = document_starts(documents, counts)
    unread = (starts.starts < 0)[:, None, :, None]
    assert 0 < unread.sum() < unread.numel()
    q, k, v, upstream = _inputs(6, 2, documents.shape[1], torch.float32)
    upstream = upstream * counts[:, None, :, None]
    actual = _differentiated(q, k, v, upstream, mask=starts)
    expected = _differentiated(q, k, v, upstream, mask=document_mask(documents))
    assert torch.equal(actual[0], actual[0].masked_fill(unread, 0.0))
    torch.testing.assert_close(actual[0], expected[0].masked_fill(unread, 0.0))
    for ours, theirs in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for grad in actual[1:]:
        assert torch.equal(grad, grad.masked_fill(unread, 0.0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_costs_what_the_documents_cost(layout: str) -> None:
    """Scores computed for a document of n: half of n², and half a block more for each query; at
    most a block for each query of a short one."""
    starts = document_starts(_documents(LAYOUTS[layout])).starts
    blocks = _blocks(starts)
    assert sum(block.end - block.first for block in blocks) == starts.numel()
    scores = sum((block.end - block.first) * (block.end - block.key) for block in blocks)
    sizes = [size for row in LAYOUTS[layout] for size in row]
    assert scores <= sum(size * max(BLOCK, (size + BLOCK) / 2) for size in sizes)


def test_blocks_end_with_their_row() -> None:
    """What is read of the second row begins at the place where that of the first ends."""
    documents = _documents([[10, 10], [10, 10]])
    counts = torch.zeros(2, 20, dtype=torch.bool)
    counts[0, 9] = counts[1, 19] = True
    blocks = _blocks(document_starts(documents, counts).starts)
    assert [tuple(block) for block in blocks] == [(0, 0, 0, 10), (1, 10, 10, 20)]


def test_nothing_that_grows_with_the_square_of_a_row_is_kept() -> None:
    """q, k, v and the output, and a float32 for each query of each head."""
    documents = _documents(LAYOUTS["several"])
    q, k, v, _ = (x.requires_grad_() for x in _inputs(6, 2, documents.shape[1], torch.float32))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(q, k, v, scale=0.3, mask=document_starts(documents))
    normalizers = q.numel() // q.shape[3]
    assert sum(kept.values()) == 2 * q.numel() + 2 * k.numel() + normalizers + documents.numel()


CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)


def _packed(lengths: Lengths, length: int) -> dict[str, Tensor]:
    """Rows of documents, filled up with padding; the last but one token of each is not learnt."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(lengths), length)
    batch = {
        "tokens": torch.zeros(shape, dtype=torch.int64),
        "targets": torch.full(shape, IGNORE),
        "documents": torch.full(shape, 99, dtype=torch.int32),
        "positions": torch.zeros(shape, dtype=torch.int32),
    }
    for row, sizes in enumerate(lengths):
        end = 0
        for number, size in enumerate(sizes):
            here = (row, slice(end, end := end + size))
            tokens = torch.randint(50, (size + 1,), generator=generator)
            batch["tokens"][here], batch["targets"][here] = tokens[:-1], tokens[1:]
            batch["documents"][here] = number
            batch["positions"][here] = torch.arange(size)
            batch["targets"][row, max(0, end - 2)] = IGNORE
    return batch


def _model(*, checkpointed: bool = False) -> Decoder:
    model = Decoder(CONFIG)
    initialize(model, "llama", seed=3, std=0.15)
    model.checkpoint_blocks = checkpointed
    return model


def _learn(model: Decoder, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    scores = model(**batch)
    assert isinstance(scores, TokenScores)
    model.zero_grad()
    scores.log_probs.sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return scores.log_probs.detach(), {n: g.clone() for n, g in grads.items() if g is not None}


def _learn_one_by_one(model: Decoder, batch: dict[str, Tensor]) -> Any:
    """What `_learn` gives, of each document in a row of its own and without any mask."""
    log_probs = torch.zeros(batch["targets"].shape)
    sums: dict[str, Tensor] = {}
    for row, documents in enumerate(batch["documents"]):
        for number in documents.unique().tolist():
            here = documents == number
            alone = {name: batch[name][row, here][None] for name in ("tokens", "targets")}
            found, grads = _learn(model, alone)
            log_probs[row, here] = found[0]
            sums = {name: sums.get(name, 0) + grad for name, grad in grads.items()}
    return log_probs, sums


@pytest.mark.parametrize(
    "backend", [None, "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_decoder_scores_packed_documents_as_each_alone(
    backend: str | None, checkpointed: bool
) -> None:
    """Compiled, one graph serves all rows, whatever lies in them."""
    plain, model = _model(), _model(checkpointed=checkpointed)
    if backend is not None:
        torch.compiler.reset()
        compile_model(model, backend=backend)
    layouts = [[[70, 5, 3, 40], [100, 29]], [[129], [128]], [[3] * 40, [64, 64]]]
    _learn(model, _packed(layouts[0], 130))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in layouts:
            batch = _packed(lengths, 130)
            log_probs, grads = _learn(model, batch)
            expected_log_probs, expected_grads = _learn_one_by_one(plain, batch)
            torch.testing.assert_close(log_probs, expected_log_probs, rtol=1e-5, atol=1e-5)
            assert grads.keys() == expected_grads.keys()
            for name, grad in grads.items():
                torch.testing.assert_close(grad, expected_grads[name], rtol=1e-4, atol=1e-4)
