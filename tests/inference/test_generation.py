"""Writing reproducibly, to an end, and text that never breaks a character."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference import generation
from llamita.inference.generation import continue_prompt, generate_tokens, stream_text
from llamita.inference.sampling import Sampling
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
