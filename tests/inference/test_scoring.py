"""Bits per byte against plain log-softmax."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llamita.architecture.config import ModelConfig
from llamita.data.shards import TokenStream, open_dataset
from llamita.inference.scoring import HeldOut, Score, held_out, score_text
from llamita.model.decoder import Decoder
from llamita.model.initialization import initialize


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = ModelConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = Decoder(config, padded_vocab_size=320)
    initialize(model, "llama", seed=1, std=0.3)
    return model


def text(count: int, seed: int = 0) -> HeldOut:
    generator = np.random.default_rng(seed)
    return HeldOut(generator.integers(0, 300, count), num_bytes=3 * count)


@torch.no_grad()
def slowly(model: Decoder, ids: list[int], length: int) -> float:
    """Each window by itself, in float64 from the logits on."""
    total = 0.0
    for start in range(0, len(ids) - 1, length):
        window = ids[start : start + length + 1]
        logits = model(torch.tensor([window[:-1]]))[0].double()
        for row, target in zip(logits.log_softmax(-1), window[1:], strict=True):
            total -= float(row[target])
    return total


@pytest.mark.parametrize("count", [2, 31, 32, 33, 34, 65, 200])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_against_log_softmax(model: Decoder, count: int, rows: int) -> None:
    held = text(count)
    score = score_text(model, held, sequence_length=32, rows=rows)
    assert score.num_tokens == count - 1
    assert score.nats == pytest.approx(slowly(model, held.tokens.tolist(), 32), rel=1e-5)
    assert score.bits_per_byte == score.nats / math.log(2) / (3 * count)
    assert score.loss == score.nats / (count - 1)


@pytest.mark.parametrize("count", [2, 31, 33, 34, 40, 41, 42, 65, 200])
@pytest.mark.parametrize("stride", [1, 8, 13, 32])
@torch.no_grad()
def test_overlapping_windows_score_each_token_once(model: Decoder, count: int, stride: int) -> None:
    held, length = text(count), 32
    ids, expected = held.tokens.tolist(), 0.0
    for place in range(1, count):
        # The first window that ends at or behind the token's place.
        start = max(0, -(-(place - length) // stride)) * stride
        logits = model(torch.tensor([ids[start:place]]))[0, -1].double()
        expected -= float(logits.log_softmax(-1)[ids[place]])
    score = score_text(model, held, sequence_length=length, rows=3, stride=stride)
    assert score.num_tokens == count - 1
    assert score.nats == pytest.approx(expected, rel=1e-5)


def test_rows_change_nothing(model: Decoder) -> None:
    scores = [score_text(model, text(500), sequence_length=16, rows=r).nats for r in (1, 2, 7, 64)]
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-6)


def test_an_untrained_uniform_model_needs_log2_of_its_vocabulary() -> None:
    config = ModelConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    held = text(101)  # weights are zeros
    score = score_text(Decoder(config), held, sequence_length=32, rows=2)
    assert score.loss == pytest.approx(math.log(300), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(100 * math.log2(300) / 303, rel=1e-6)


def test_nothing_to_score(model: Decoder) -> None:
    for count in (0, 1):
        assert score_text(model, text(count), sequence_length=8, rows=2).num_tokens == 0


def test_scores_add_up() -> None:
    both = Score(10.0, 4, 8) + Score(20.0, 6, 12)
    assert (both.nats, both.num_tokens, both.num_bytes) == (30.0, 10, 20)
    assert both.bits_per_byte == 30 / math.log(2) / 20


@pytest.fixture(scope="module")
def stream(tiny_data: Path) -> TokenStream:
    return open_dataset(tiny_data / "prose").validation


def test_whole_documents_from_the_front(stream: TokenStream) -> None:
    everything = held_out(stream)
    assert len(everything.tokens) == stream.num_tokens
    assert everything.num_bytes == stream.num_bytes
    some = held_out(stream, 200)
    assert 200 <= len(some.tokens) < stream.num_tokens
    assert some.tokens[0] == 0  # <s>
    assert some.tokens[-1] == 1  # </s>
    assert np.array_equal(some.tokens, everything.tokens[: len(some.tokens)])
    ends = int((some.tokens == 1).sum())
    assert some.num_bytes == sum(stream.document_bytes(i) for i in range(ends))
    before = sum(len(stream.document(i)) for i in range(ends - 1))
    assert before < 200, "one document more than needed"
