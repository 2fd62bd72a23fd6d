"""What the decoder promises beyond its logits: masks, padding, master weights, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.architecture.counts import num_parameters
from llamita.model.attention import attention
from llamita.model.decoder import IGNORE, Decoder, TokenScores, compile_model
from llamita.model.initialization import initialize

CONFIG = ModelConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=112,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
MINICPM = CONFIG.replace(tie_word_embeddings=True, **minicpm_multipliers(64, 2, dim_model_base=32))


def _model(config: ModelConfig = CONFIG, **options: int) -> Decoder:
    model = Decoder(config, **options)
    initialize(model, "llama", seed=3, std=0.15)
    return model


def _tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


def _scores(model: Decoder, tokens: Tensor, targets: Tensor, **options: Tensor) -> TokenScores:
    scores = model(tokens, targets, **options)
    assert isinstance(scores, TokenScores)
    return scores


@pytest.mark.parametrize("lengths", [[20, 12, 1, 7], [40], [1] * 40])
def test_documents_are_as_if_alone(lengths: list[int]) -> None:
    model = _model()
    tokens, targets = _tokens(1, 40), _tokens(1, 40, seed=1)
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    together = _scores(model, tokens, targets, documents=numbers)
    pieces = zip(tokens.split(lengths, 1), targets.split(lengths, 1), strict=True)
    alone = torch.cat([_scores(model, t, y).log_probs for t, y in pieces], dim=1)
    torch.testing.assert_close(together.log_probs, alone, rtol=0, atol=5e-5)
    if len(lengths) > 1:
        apart = (together.log_probs - _scores(model, tokens, targets).log_probs).abs().max()
        assert apart > 0.01


def test_rows_have_their_own_documents() -> None:
    model = _model()
    tokens, targets = _tokens(2, 12), _tokens(2, 12, seed=1)
    documents = torch.tensor([[0] * 6 + [1] * 6, [4] * 12])
    scores = _scores(model, tokens, targets, documents=documents).log_probs
    whole = _scores(model, tokens, targets).log_probs
    torch.testing.assert_close(scores[1], whole[1])
    torch.testing.assert_close(scores[0, :6], whole[0, :6])
    assert (scores[0, 6:] - whole[0, 6:]).abs().max() > 0.01


@pytest.mark.parametrize("config", [CONFIG, MINICPM])
def test_padding_of_the_vocabulary_changes_nothing(config: ModelConfig) -> None:
    tokens, targets = _tokens(2, 16), _tokens(2, 16, seed=1)
    results = []
    for rows in (97, 128):
        model = _model(config, padded_vocab_size=rows)
        assert model.head_weight.shape[0] == rows
        scores = _scores(model, tokens, targets)
        (scores.log_probs.mean() + scores.log_normalizers.square().mean()).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        results.append((model(tokens), scores, grads))
    (logits, scores, grads), (padded_logits, padded_scores, padded_grads) = results
    assert padded_logits.shape[-1] == 97
    torch.testing.assert_close(padded_logits, logits)
    torch.testing.assert_close(padded_scores, scores)
    for name, grad in padded_grads.items():
        assert grad is not None
        torch.testing.assert_close(grad[: len(grads[name])], grads[name])
        assert not grad[len(grads[name]) :].any()


def test_ignored_targets() -> None:
    model = _model()
    tokens, targets = _tokens(2, 16), _tokens(2, 16, seed=1)
    some = targets.clone()
    some[0, 3:9] = IGNORE
    scores, whole = _scores(model, tokens, some), _scores(model, tokens, targets)
    assert not scores.log_probs[0, 3:9].any()
    assert not scores.log_normalizers[0, 3:9].any()
    kept = some != IGNORE
    torch.testing.assert_close(scores.log_probs[kept], whole.log_probs[kept])


def test_nothing_looks_ahead() -> None:
    model = _model(MINICPM)
    tokens = _tokens(1, 20)
    changed = tokens.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 97
    torch.testing.assert_close(model(tokens)[:, :12], model(changed)[:, :12])


def test_positions_are_relative() -> None:
    model = _model()
    tokens = _tokens(2, 20)
    shifted = torch.arange(20).expand(2, 20) + torch.tensor([[0], [500]])
    torch.testing.assert_close(model(tokens, positions=shifted), model(tokens), rtol=0, atol=1e-4)
    stretched = torch.arange(20) * 2
    assert (model(tokens, positions=stretched) - model(tokens)).abs().max() > 0.01


def test_bfloat16_keeps_float32_masters() -> None:
    model = _model(MINICPM)
    model.compute_dtype = torch.bfloat16
    seen: set[torch.dtype] = set()
    for block in model.model.layers:
        block.register_forward_hook(lambda _module, _inputs, out: seen.add(out.dtype))
    scores = _scores(model, _tokens(2, 16), _tokens(2, 16, seed=1))
    scores.log_probs.mean().backward()
    assert seen == {torch.bfloat16}
    assert scores.log_probs.dtype == torch.float32
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "head_dim": 24},
        {"qk_norm": True, "mlp_bias": True},
        {"attention_bias": True},
        {"attention_bias": True, "attention_output_bias": True},
    ],
)
def test_counts_are_the_built_model_s(changes: dict[str, object]) -> None:
    config = CONFIG.replace(**changes)
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(p.numel() for p in model.parameters()) == num_parameters(config)


def test_attention_scale_reaches_attention() -> None:
    # All weight on the best match for a huge scale, an average of all seen for a tiny one.
    q = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    v = torch.tensor([[[[2.0, 0.0], [0.0, 4.0]]]])
    sharp = attention(q, q, v, scale=1e4)
    torch.testing.assert_close(sharp[0, 0, 1], v[0, 0, 1])
    even = attention(q, q, v, scale=1e-9)
    torch.testing.assert_close(even[0, 0, 1], torch.tensor([1.0, 2.0]))


@pytest.mark.slow
def test_compiled_equals_plain() -> None:
    tokens, targets = _tokens(2, 32), _tokens(2, 32, seed=1)
    documents = torch.tensor([[0] * 10 + [1] * 22, [0] * 32])
    results = []
    for compiled in (False, True):
        model = _model(MINICPM)
        if compiled:
            compile_model(model)
        scores = _scores(model, tokens, targets, documents=documents)
        plain = _scores(model, tokens, targets)
        (scores.log_probs.mean() + plain.log_normalizers.square().mean()).backward()
        grads = [p.grad for p in model.parameters()]
        results.append((scores, plain, grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_checkpointed_blocks_give_the_same_bits(masked: bool) -> None:
    """And keep less for the backward pass."""
    tokens = torch.randint(0, 64, (2, 33), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(32) // 10).expand(2, -1) if masked else None
    grads, held = [], []
    for checkpointed in (False, True):
        model = _model()
        model.checkpoint_blocks = checkpointed
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = model(tokens[:, :-1], tokens[:, 1:], documents=documents)
        held.append(sum(kept.values()))
        scores.log_probs.sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    assert held[1] < held[0] / 2
