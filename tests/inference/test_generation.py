"""Drawing tokens as Transformers does, reproducibly, and text that never breaks a character."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llamita.architecture.config import ModelConfig
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference import generation
from llamita.inference.generation import (
    Sampling,
    continue_prompt,
    draw,
    generate_tokens,
    stream_text,
)
from llamita.model.decoder import Decoder
from llamita.model.initialization import initialize
from tests.data.corpus import small_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=48,
    )
    model = Decoder(config)
    initialize(model, "llama", seed=1, std=0.3)
    return model


def transformers_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What Transformers' generate would draw from."""
    processors = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    ids = torch.zeros(1, 1, dtype=torch.long)
    return processors(ids, logits[None].clone())[0].softmax(-1)


def our_probabilities(
    logits: Tensor, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """What `draw` hands to the dice."""
    seen: list[Tensor] = []

    def multinomial(probabilities: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
        seen.append(probabilities)
        return torch.zeros(count, dtype=torch.long)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "multinomial", multinomial)
        draw(logits, sampling, torch.Generator())
    return seen[0]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
def test_the_distribution_is_transformers(
    temperature: float, top_k: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature, top_k, top_p)
    for scale in (0.1, 2.0, 10.0):
        logits = scale * torch.randn(100, generator=generator)
        ours = our_probabilities(logits, sampling, monkeypatch)
        theirs = transformers_probabilities(logits, sampling)
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs)


def test_ties_at_the_edge_of_top_k_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    sampling = Sampling(1.0, top_k=2, top_p=1.0)
    ours = our_probabilities(logits, sampling, monkeypatch)
    torch.testing.assert_close(ours, transformers_probabilities(logits, sampling))
    assert int((ours > 0).sum()) == 3


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    generator = torch.Generator().manual_seed(5)
    sampling = Sampling(temperature=1.0, top_k=3, top_p=1.0)
    drawn = torch.tensor([draw(logits, sampling, generator) for _ in range(4000)])
    counts = torch.bincount(drawn, minlength=4).double()
    expected = 4000 * transformers_probabilities(logits, sampling).double()
    assert counts[3] == 0
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 18.4  # 2 degrees of freedom: beyond it once in 10,000


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.tensor([0.0, 5.0, 4.9])
    assert draw(logits, Sampling(temperature=0), torch.Generator()) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_values_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]


def tokens(model: Decoder, sampling: Sampling, count: int = 20, **more: object) -> list[int]:
    return list(generate_tokens(model, [0, 5, 9], max_tokens=count, sampling=sampling, **more))


def test_a_seed_fixes_the_text(model: Decoder) -> None:
    one, two, other = (tokens(model, Sampling(1.0, 0, 1.0, seed=s)) for s in (3, 3, 4))
    assert one == two
    assert one != other
    torch.manual_seed(0)  # the process's own random numbers play no part
    assert tokens(model, Sampling(1.0, 0, 1.0, seed=3)) == one
    unseeded = {tuple(tokens(model, Sampling(1.0, 0, 1.0))) for _ in range(3)}
    assert len(unseeded) == 3


def test_the_cache_changes_nothing(model: Decoder) -> None:
    """Greedy against a whole forward pass for every token."""
    wanted = [0, 5, 9]
    for _ in range(20):
        with torch.no_grad():
            logits = model(torch.tensor([wanted]))
        assert isinstance(logits, Tensor)
        wanted.append(int(logits[0, -1].argmax()))
    assert tokens(model, Sampling(temperature=0)) == wanted[3:]


def test_it_stops_at_a_stop_token(model: Decoder) -> None:
    free = tokens(model, Sampling(1.0, 0, 1.0, seed=3))
    stop = free[7]
    assert tokens(model, Sampling(1.0, 0, 1.0, seed=3), stop=[stop]) == free[: free.index(stop)]


def test_it_stops_at_the_contexts_end(model: Decoder) -> None:
    assert len(tokens(model, Sampling(temperature=0), count=1000)) == 48 - 3
    assert tokens(model, Sampling(temperature=0), count=0) == []
    with pytest.raises(UserError, match="48 tokens and the model's context holds 48"):
        next(generate_tokens(model, [1] * 48, max_tokens=1, sampling=Sampling()))
    with pytest.raises(UserError, match="prompt is empty"):
        next(generate_tokens(model, [], max_tokens=1, sampling=Sampling()))


def test_the_models_and_the_tokenizers_end_both_stop(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def generate(model: Decoder, prompt: list[int], **named: object) -> list[int]:
        seen.append(named["stop"])  # type: ignore[arg-type]
        assert prompt == tokenizer.encode_prompt("the")
        return tokenizer.encode("a plain text")

    monkeypatch.setattr(generation, "generate_tokens", generate)
    monkeypatch.setattr(model, "config", model.config.replace(eos_token_id=[7, 8]))
    assert "".join(continue_prompt(model, tokenizer, "the")) == "a plain text"
    assert set(seen[0]) == {7, 8, tokenizer.eos_id}


TEXT = "naïve 中文 — 🦙🏽 ok\n"


def test_characters_are_never_broken(tokenizer: Tokenizer) -> None:
    """The tokenizer knows single bytes only for these characters."""
    ids = tokenizer.encode(TEXT)
    assert len(ids) > len(TEXT)
    pieces = list(stream_text(tokenizer, iter(ids)))
    assert "".join(pieces) == TEXT
    assert all("\ufffd" not in piece and piece for piece in pieces)
    assert len(pieces) > 5, "it did not stream"


def test_text_comes_as_soon_as_it_is_whole(tokenizer: Tokenizer) -> None:
    given: list[int] = []

    def ids() -> object:
        for token in tokenizer.encode("the model learns"):
            given.append(token)
            yield token

    stream = stream_text(tokenizer, ids())  # type: ignore[arg-type]
    first = next(stream)
    assert first
    assert len(given) == 1


def test_a_character_cut_off_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🦙")[:-1]
    assert "".join(stream_text(tokenizer, iter(ids))) == "a\ufffd"


def test_special_and_unknown_ids_are_no_text(tokenizer: Tokenizer) -> None:
    """A model may have more rows than its tokenizer has tokens."""
    ids = [0, *tokenizer.encode("a"), 2, tokenizer.vocab_size + 5, *tokenizer.encode("b"), 1]
    assert "".join(stream_text(tokenizer, iter(ids))) == "ab"
