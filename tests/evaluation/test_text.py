"""Bits per byte against one token at a time, against Transformers, and where mathematics says."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llamita.architecture.config import ModelConfig
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from llamita.evaluation.text import difference, score_documents, unknown_id
from llamita.inference.scoring import cut_windows
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model, save_model
from llamita.model.initialization import initialize
from tests.data.corpus import sentences, small_tokenizer
from tests.formats.gguf_models import words

TEXTS = ["", "a", sentences(3, 1), sentences(1, 3), "naïve ∑ text 🙂\n", sentences(2, 2), " "]


def decoder(vocab_size: int, *, std: float = 0.3, **changes: Any) -> Decoder:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **changes,
    }
    model = Decoder(ModelConfig(vocab_size=vocab_size, **shape))
    if std:
        initialize(model, "llama", seed=5, std=std)
    return model


def bytes_tokenizer(**special: int) -> Tokenizer:
    """A token for each byte: 256 of them, without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend.to_str(), **special)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models of some thousand weights gain nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    return decoder(tokenizer.vocab_size)


@torch.no_grad()
def slowly(model: Decoder, ids: Sequence[int], context: int, stride: int) -> float:
    """Nats of ids[1:], a forward pass for each: from the first window on that reaches the token."""
    total = 0.0
    for place in range(1, len(ids)):
        start = 0
        while place > start + context:
            start = min(start + stride, len(ids) - 1 - context)
        logits = model(torch.tensor([ids[start:place]]))[0, -1].double()
        total -= float(logits.log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (16, 16), (10, 3), (1, 1)])
def test_one_token_at_a_time(
    model: Decoder, tokenizer: Tokenizer, context: int, stride: int
) -> None:
    found = score_documents(model, tokenizer, TEXTS, context=context, stride=stride)
    assert (found.context, found.stride, found.prefix, found.unknown) == (context, stride, "bos", 0)
    assert found.bytes == tuple(len(text.encode()) for text in TEXTS)
    assert found.tokens == tuple(len(tokenizer.encode(text)) for text in TEXTS)
    for text, nats in zip(TEXTS, found.nats, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        assert nats == pytest.approx(slowly(model, ids, context, stride), rel=1e-5)
    assert found.bits_per_byte.value == pytest.approx(
        sum(found.nats) / math.log(2) / sum(found.bytes)
    )
    assert found.bits_per_byte.n == len(TEXTS) - 1
    assert found.perplexity.value == pytest.approx(math.exp(sum(found.nats) / sum(found.tokens)))
    assert found.perplexity.low < found.perplexity.value < found.perplexity.high


@pytest.mark.parametrize("predicted", [1, 2, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("last_full", [False, True])
def test_windows_count_each_token_once_with_enough_before_it(
    predicted: int, last_full: bool
) -> None:
    for length, stride in [(8, 8), (8, 3), (8, 1), (1, 1)]:
        starts, first = cut_windows(predicted, length, stride, last_full=last_full)
        counted = [
            (start + place, place)
            for start, skipped in zip(starts.tolist(), first.tolist(), strict=True)
            for place in range(skipped, length)
            if start + place < predicted
        ]
        assert [token for token, _ in counted] == list(range(predicted))
        # inputs that a prediction sees, its own included
        assert all(before + 1 >= min(token + 1, length - stride + 1) for token, before in counted)
        if last_full and predicted >= length:
            assert starts[-1] + length == predicted


def test_batches_and_pools_change_nothing(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [TEXTS[number % len(TEXTS)] + str(number) for number in range(20)]
    whole = score_documents(model, tokenizer, several, context=32)
    for batch_tokens, pool in [(1, 64), (100, 64), (100, 1)]:
        monkeypatch.setattr("llamita.evaluation.text._POOL_BATCHES", pool)
        parts = score_documents(
            model, tokenizer, iter(several), context=32, batch_tokens=batch_tokens
        )
        assert parts.nats == pytest.approx(whole.nats, rel=1e-5)
        assert (parts.tokens, parts.bytes, parts.ids) == (whole.tokens, whole.bytes, whole.ids)


def test_passes_hold_no_more_than_they_may(model: Decoder, tokenizer: Tokenizer) -> None:
    shapes: list[tuple[int, int]] = []

    def look(_module: object, args: tuple[torch.Tensor, ...]) -> None:
        shapes.append((args[0].shape[0], args[0].shape[1]))

    hook = model.register_forward_pre_hook(look)
    score_documents(model, tokenizer, TEXTS * 4, context=32, batch_tokens=100)
    hook.remove()
    assert max(rows * length for rows, length in shapes) <= 100
    assert max(rows for rows, _ in shapes) > 3
    assert [length for _, length in shapes] == sorted((each for _, each in shapes), reverse=True)


@torch.no_grad()
def test_transformers_says_the_same(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Documents within the context by its loss; longer ones by windows with labels of −100."""
    save_model(tmp_path, model)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    context, stride = 32, 16
    found = score_documents(model, tokenizer, TEXTS, context=context, stride=stride)
    for text, nats in zip(TEXTS, found.nats, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        expected, seen = 0.0, 0
        starts = [0]
        while starts[-1] + context < len(ids) - 1:
            starts.append(min(starts[-1] + stride, len(ids) - 1 - context))
        for start in starts if len(ids) > 1 else []:
            window = torch.tensor([ids[start : start + context + 1]])
            labels = window.clone()
            labels[:, : seen + 1 - start] = -100
            count = int((labels[:, 1:] != -100).sum())
            expected += float(theirs(window, labels=labels).loss) * count
            seen = start + window.shape[1] - 1
        assert nats == pytest.approx(expected, rel=1e-4)


def test_two_tokenizers_of_one_text() -> None:
    """A model that knows nothing needs log2 of its vocabulary for each token."""
    texts = [sentences(number, 1 + number % 3) for number in range(12)]
    merged, plain = small_tokenizer(), bytes_tokenizer(bos_id=0)
    first = score_documents(decoder(300, std=0), merged, texts)
    second = score_documents(decoder(256, std=0), plain, texts, context=20)
    size = sum(len(text.encode()) for text in texts)
    count = sum(len(merged.encode(text)) for text in texts)
    assert first.bits_per_byte.value == pytest.approx(count * math.log2(300) / size, rel=1e-5)
    assert second.bits_per_byte.value == pytest.approx(8.0, rel=1e-5)
    assert first.perplexity.value == pytest.approx(300, rel=1e-5)
    assert second.perplexity.value == pytest.approx(256, rel=1e-5)
    found = difference(first, second)
    assert found.value == pytest.approx(count * math.log2(300) / size - 8, rel=1e-4)
    assert found.n == 12
    assert not found.includes_zero
    assert found.low > first.bits_per_byte.low - second.bits_per_byte.high - 1e-9
    with pytest.raises(UserError, match=r"different texts \(12 and 11 documents\)"):
        difference(first, score_documents(decoder(256, std=0), plain, texts[1:]))


def test_what_stands_before_a_document(model: Decoder) -> None:
    text = sentences(4, 2)
    for special, prefix, token in [
        ({"bos_id": 7, "eos_id": 9}, "bos", 7),
        ({"eos_id": 9}, "eos", 9),
    ]:
        plain = bytes_tokenizer(**special)
        found = score_documents(model, plain, [text])
        assert found.prefix == prefix
        ids = [token, *plain.encode(text)]
        assert found.nats[0] == pytest.approx(slowly(model, ids, 64, 32), rel=1e-5)


def test_without_bos_and_eos_the_first_token_is_any() -> None:
    plain = bytes_tokenizer()
    model = decoder(260)
    found = score_documents(model, plain, [sentences(4, 2), "a", ""])
    assert found.prefix is None
    expected = slowly(model, plain.encode(sentences(4, 2)), 64, 32) + math.log(260)
    assert found.nats == pytest.approx((expected, math.log(260), 0.0), rel=1e-5)
    assert found.tokens[1:] == (1, 0)


def test_special_tokens_in_a_text_are_text(model: Decoder, tokenizer: Tokenizer) -> None:
    found = score_documents(model, tokenizer, ["a</s>b"])
    assert found.tokens[0] == len(tokenizer.encode("a</s>b")) > 3
    assert found.bytes == (6,)


def test_unknown_tokens_are_counted() -> None:
    known = words(40)
    assert unknown_id(known) == known.id_of("<unk>")
    # without pre-tokenisation the first of them is one word that there is not
    found = score_documents(decoder(40), known, ["w5 什 w7", "w8"])
    assert found.unknown == 2
    assert found.tokens == (1, 1)
    assert unknown_id(small_tokenizer()) == -1
    unigram = tokenizers.Tokenizer(models.Unigram([("<none>", 0.0), ("a", -1.0)], unk_id=0))
    assert unknown_id(Tokenizer(unigram.to_str())) == 0


@pytest.mark.parametrize("pool", [1, 64])
def test_progress_counts_bytes(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, pool: int
) -> None:
    monkeypatch.setattr("llamita.evaluation.text._POOL_BATCHES", pool)
    told: list[int] = []
    long = sentences(9, 60)
    score_documents(
        model, tokenizer, [*TEXTS, long], context=16, batch_tokens=64, progress=told.append
    )
    assert sum(told) == sum(len(text.encode()) for text in [*TEXTS, long])
    assert min(told) >= 0
    assert max(told) < len(long) // 4  # within a document, too


def test_as_an_evaluation_holds_it(model: Decoder, tokenizer: Tokenizer) -> None:
    found = score_documents(model, tokenizer, [*TEXTS, TEXTS[3]])
    bits, perplexity = found.task_scores("notes")
    assert bits.metric == "bits_per_byte"
    assert perplexity.metric == "perplexity"
    assert not bits.higher_is_better
    assert bits.task == perplexity.task == "notes"
    assert bits.ids == perplexity.ids
    assert bits.ids[2] + "#2" == bits.ids[-1], "a document that comes again"
    assert bits.estimate == found.bits_per_byte
    assert perplexity.estimate == found.perplexity
    assert bits.config == {"context": 64, "stride": 32, "prefix": "bos"}


def test_scores_of_several_files_join(model: Decoder, tokenizer: Tokenizer) -> None:
    parts = [score_documents(model, tokenizer, part) for part in (TEXTS[:4], TEXTS[4:])]
    both, whole = parts[0] + parts[1], score_documents(model, tokenizer, TEXTS)
    assert both.nats == pytest.approx(whole.nats, rel=1e-5)
    assert (both.ids, both.tokens, both.bytes) == (whole.ids, whole.tokens, whole.bytes)
    with pytest.raises(AssertionError, match="scored differently"):
        _ = parts[0] + score_documents(model, tokenizer, TEXTS, context=32)


def test_the_default_context_is_the_models_up_to_2048(tokenizer: Tokenizer) -> None:
    for longest, context in [(64, 64), (1, 1), (8192, 2048)]:
        short = decoder(300, max_position_embeddings=longest)
        found = score_documents(short, tokenizer, ["a"])
        assert (found.context, found.stride) == (context, max(1, context // 2))


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        (["a"], {"context": 65}, "context of 65 tokens is outside what the model reads, 1 to 64"),
        (["a"], {"context": 0}, "context of 0"),
        (["a"], {"context": 16, "stride": 17}, "stride of 17 tokens"),
        (["a"], {"stride": 0}, "stride of 0"),
        (["a", "b\ud800c"], {}, "document 2 has a lone surrogate at character 2"),
    ],
)
def test_what_cannot_be_scored(
    model: Decoder, tokenizer: Tokenizer, texts: list[str], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score_documents(model, tokenizer, texts, **settings)


def test_a_tokenizer_of_another_model(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"document 2 has the token \d+, the model has 100"):
        score_documents(decoder(100), tokenizer, ["", sentences(1, 2)])


def test_a_tokenizer_that_drops_text() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match="document 1 has 2 bytes and no tokens"):
        score_documents(decoder(4), Tokenizer(backend.to_str()), ["\n\n"])


def test_nothing_but_empty_documents(model: Decoder, tokenizer: Tokenizer) -> None:
    for texts in ([], ["", ""]):
        found = score_documents(model, tokenizer, texts)
        with pytest.raises(UserError, match="holds no text to score"):
            _ = found.bits_per_byte


def test_a_model_that_gives_no_numbers_has_no_score(tokenizer: Tokenizer) -> None:
    broken = decoder(300)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="no finite number"):
        _ = score_documents(broken, tokenizer, ["a"]).bits_per_byte


def test_llama_2_and_bytes_on_the_same_text(shared_dir: Path) -> None:
    """Its tokens begin with a space that the text does not have; the bytes are the text's."""
    llama = load_tokenizer(shared_dir / "data" / "tokenizers" / "llama2")
    texts = ["Hello world", " Hello", sentences(5, 3), "naïve ∑ 🙂"]
    found = score_documents(decoder(32000, std=0, hidden_size=8), llama, texts)
    assert found.prefix == "bos"
    assert found.tokens[:1] == (2,)
    assert found.bytes == tuple(len(text.encode()) for text in texts)
    plain = score_documents(decoder(256, std=0), bytes_tokenizer(bos_id=0), texts)
    expected = sum(found.tokens) * math.log2(32000) / sum(found.bytes) - 8
    assert difference(found, plain).value == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_as_transformers_scores_it(tmp_path: Path) -> None:
    named = os.environ.get("LLAMITA_SMOLLM2_GGUF")
    if not named or not Path(named).is_file():
        pytest.skip("no SmolLM2 weights: set LLAMITA_SMOLLM2_GGUF")
    pytest.importorskip("accelerate", reason="Transformers needs accelerate to read a GGUF file")
    gguf = Path(named)
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    theirs.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    texts = [sentences(1, 2), "The capital of France is Paris. It lies on the Seine.", "naïve 🙂"]
    found = score_documents(load_model(tmp_path), tokenizer, texts)
    for text, nats, count in zip(texts, found.nats, found.tokens, strict=True):
        ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
        assert nats == pytest.approx(float(theirs(ids, labels=ids).loss) * count, rel=1e-4)
    assert 0.3 < found.bits_per_byte.value < 3
