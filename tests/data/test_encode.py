"""The fast encoder gives the ids of `tokenizers`, whatever the text."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.data import fast_encode
from llamita.data.fast_encode import FastEncoder
from llamita.data.pre_tokenizers import PRE_TOKENIZERS, make_pre_tokenizer
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from tests.data.corpus import sentences, small_tokenizer

HARD = (
    "",
    " ",
    "\n\n \n  x \n",
    "I'LL don't 'Sx ſ's 1234567 ½²\u0663 x1y2\n\n\n\tz  \r\n\r\n end   ",
    "\u00a0\u2003\u3000 \u0085\u2028a\x1c\x1d \x0b\x0c b",
    "naïve Straße ΑΒΓ русский 日本語 한국어 \u0301\u0e33 ️⃣",
    "astral 🙂🏽 𝔘𝔫 \U0001e900 \U00010400",
    "</s> <s> <pad> ▁ ▁▁x <0x0A> <unk>",
    "a" * 300 + " " * 200 + "=" * 100,
)


def with_pre_tokenizer(name: str) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(small_tokenizer().to_json())
    backend.pre_tokenizer = make_pre_tokenizer(name)
    return Tokenizer(backend.to_str(), bos_id=0, eos_id=1, pad_id=2)


def assert_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoder = FastEncoder(tokenizer, np.dtype("<u2"))
    assert encoder.is_fast
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    backend.encode_special_tokens = True
    for text, ids in zip(texts, encoder(texts), strict=True):
        assert ids.tolist() == backend.encode(text, add_special_tokens=False).ids, text[:80]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_byte_level_ids(name: str) -> None:
    assert_same(with_pre_tokenizer(name), [*HARD, sentences(1, 20)])


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_byte_level_ids_of_every_character_in_context(name: str) -> None:
    # each character of the first plane between a letter, a space and a digit
    every = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x10000))]
    texts = [
        "".join(f"a{char} {char}1" for char in every[place : place + 512])
        for place in range(0, len(every), 512)
    ]
    assert_same(with_pre_tokenizer(name), texts)


@functools.cache
def encoders() -> list[tuple[FastEncoder, Tokenizer]]:
    made = [with_pre_tokenizer(name) for name in PRE_TOKENIZERS]
    return [(FastEncoder(tokenizer, np.dtype("<u2")), tokenizer) for tokenizer in made]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(
        st.one_of(st.sampled_from(" \n\r\ta1'sSlL.=é\u00a0½"), st.characters(codec="utf-8")),
        max_size=60,
    )
)
def test_byte_level_ids_of_any_text(text: str) -> None:
    for encoder, tokenizer in encoders():
        assert encoder([text])[0].tolist() == tokenizer.encode(text)


def test_llama2_ids(shared_dir: Path) -> None:
    tokenizer = load_tokenizer(shared_dir / "data/tokenizers/llama2")
    file = shared_dir / "data/corpora/nat-linux-doc.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 20)]
    assert_same(tokenizer, [*HARD, *texts])


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(" ▁\n\t\r09aéZ.,)»”²日🙂_-'\"</s>"), max_size=40))
def test_llama2_ids_of_any_text(shared_dir: Path, text: str) -> None:
    encoder, tokenizer = llama2(shared_dir)
    assert encoder([text])[0].tolist() == tokenizer.encode(text)


@functools.cache
def llama2(shared: Path) -> tuple[FastEncoder, Tokenizer]:
    tokenizer = load_tokenizer(shared / "data/tokenizers/llama2")
    return FastEncoder(tokenizer, np.dtype("<u2")), tokenizer


@pytest.mark.parametrize("merged", [("a", "."), (".", "a"), ("1", "1"), ("1", "."), ("é", ".")])
def test_words_are_not_cut_where_a_token_spans(merged: tuple[str, str]) -> None:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {token: 256 + place for place, token in enumerate("aé.1▁")}
    vocabulary |= {"".join(merged): 261, "<unk>": 262}
    model = tokenizers.models.BPE(
        vocabulary, [merged], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    assert_same(Tokenizer(backend.to_str()), ["a.a 1.1 11 .a1 é.é a", "".join(merged) * 3])


def test_a_full_table_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encode, "_CACHED_WORDS", 5)
    assert_same(with_pre_tokenizer("gpt-2"), [sentences(seed, 3) for seed in range(20)])


def test_other_tokenizers_are_left_to_tokenizers() -> None:
    backend = tokenizers.Tokenizer.from_str(small_tokenizer().to_json())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Punctuation(),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    encoder = FastEncoder(Tokenizer(backend.to_str()), np.dtype("<u2"))
    assert not encoder.is_fast
    backend.encode_special_tokens = True
    for text, ids in zip(HARD, encoder(HARD), strict=True):
        assert ids.tolist() == backend.encode(text, add_special_tokens=False).ids


def test_a_space_mark_inside_tokens_is_left_to_tokenizers() -> None:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {"a": 256, "▁": 257, "a▁": 258, "<unk>": 259}
    model = tokenizers.models.BPE(
        vocabulary, [("a", "▁")], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    encoder = FastEncoder(Tokenizer(backend.to_str()), np.dtype("<u2"))
    assert not encoder.is_fast
    assert encoder(["a a"])[0].tolist() == [258, 256]
