"""Streamed text against the text taken whole."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference.text_stream import TextStream
from tests.data.corpus import small_tokenizer

TOKENIZER = small_tokenizer()
TEXT = "naïve 中文 — 🦙🏽 ok\n"
# Overlapping on purpose: beginnings of each other, repetitions, parts of characters.
STOPS = ("a", "ab", "aab", "aba", "bb", "é", "éb", "🦙", "🦙🦙a", "\ufffd", "\n\n", "the model")
# Ids of single bytes, so that anything can stand anywhere: half characters, stops, whole words.
BYTES = {data: number for number, data in enumerate(TOKENIZER.token_bytes())}


def pushed(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, stop)
    return [stream.push(token) for token in ids], stream


def cut(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """The oracle: the whole text up to the stop that ends first, of those the longest."""
    met = [(text.find(each) + len(each), -len(each), each) for each in stop if each in text]
    if not met:
        return text, None
    end, minus_length, which = min(met)
    return text[: end + minus_length], which


alphabet = st.sampled_from([*"aab\n ", "é", "🦙", "the", " model", "中"])
texts = st.lists(alphabet, max_size=14).map("".join)
as_bytes = texts.map(lambda text: [BYTES[bytes([byte])] for byte in text.encode()])
any_ids = st.lists(st.integers(0, TOKENIZER.vocab_size + 3), max_size=14)
ids = st.one_of(as_bytes, texts.map(TOKENIZER.encode), any_ids)


@settings(max_examples=400, deadline=None)
@given(ids=ids, stop=st.lists(st.sampled_from(STOPS), max_size=4).map(tuple))
def test_pieces_are_the_whole_text_cut_at_the_stop(ids: list[int], stop: tuple[str, ...]) -> None:
    pieces, stream = pushed(ids, stop)
    met_before_the_end = stream.stopped
    whole = b"".join(stream.bytes_of(token) for token in ids).decode("utf-8", "replace")
    wanted, which = cut(whole, stop)
    assert "".join(pieces) + stream.finish() == wanted
    assert stream.stopped == which
    assert met_before_the_end in (None, which)
    assert stream.finish() == ""


@settings(max_examples=200, deadline=None)
@given(text=texts, stop=st.lists(st.sampled_from(STOPS), max_size=4).map(tuple))
def test_nothing_is_held_back_without_need(text: str, stop: tuple[str, ...]) -> None:
    """What is not shown of whole characters is the beginning of a stop string, the longest."""
    stream, shown = TextStream(TOKENIZER, stop), ""
    for count, character in enumerate(text, start=1):
        for byte in character.encode():
            shown += stream.push(BYTES[bytes([byte])])
        if stream.stopped is not None:
            return
        held = text[len(shown) : count]
        longer = [text[start:count] for start in range(len(shown))]
        assert shown + held == text[:count]
        assert held == "" or any(each.startswith(held) for each in stop)
        assert not any(each != tail and each.startswith(tail) for tail in longer for each in stop)


def test_characters_are_never_broken() -> None:
    ids = TOKENIZER.encode(TEXT)
    assert len(ids) > len(TEXT)  # the tokenizer knows single bytes only for these
    pieces, stream = pushed(ids)
    assert "".join(pieces) == TEXT
    assert stream.finish() == ""
    assert all("\ufffd" not in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 5, "it did not stream"


def test_a_stop_across_tokens_is_never_shown() -> None:
    ids = TOKENIZER.encode("one END two")
    pieces, stream = pushed(ids, ("END",))
    assert "".join(pieces) == "one "
    assert stream.stopped == "END"
    assert stream.push(ids[0]) == stream.finish() == ""


def test_what_only_looked_like_a_stop_comes_late_but_comes() -> None:
    pieces, stream = pushed([BYTES[bytes([byte])] for byte in b"xEEN!"], ("EEND",))
    assert pieces == ["x", "", "", "", "EEN!"]
    pieces, stream = pushed([BYTES[bytes([byte])] for byte in b"xEEN"], ("EEND",))
    assert "".join(pieces) == "x"
    assert stream.finish() == "EEN"
    assert stream.stopped is None


def test_a_character_cut_off_at_the_end() -> None:
    pieces, stream = pushed(TOKENIZER.encode("a🦙")[:-1])
    assert "".join(pieces) == "a"
    assert stream.finish() == "\ufffd"


def test_special_and_unknown_ids_are_no_text() -> None:
    a, b = BYTES[b"a"], BYTES[b"b"]
    pieces, stream = pushed([0, a, 2, TOKENIZER.vocab_size + 5, b, 1])
    assert "".join(pieces) == "ab"
    assert [stream.bytes_of(token) for token in (a, 0, TOKENIZER.vocab_size + 5, -1)] == [
        b"a",
        b"",
        b"",
        b"",
    ]


def test_an_empty_stop_string() -> None:
    with pytest.raises(UserError, match="a stop string is empty"):
        TextStream(TOKENIZER, ("x", ""))


def test_two_tokenizers_keep_their_own_tables() -> None:
    other = Tokenizer(TOKENIZER.to_json().replace('"Ġ', '"Ċ'))
    space = next(number for text, number in BYTES.items() if text.startswith(b" t"))
    assert TextStream(TOKENIZER).push(space).startswith(" ")
    assert TextStream(other).push(space).startswith("\n")


def test_a_token_costs_little() -> None:
    ids = TOKENIZER.encode("the model learns to write short and plain text. " * 40)
    best = float("inf")
    for _ in range(5):
        stream = TextStream(TOKENIZER, ("\n\nUser:", "<|end|>", "</answer>", "###"))
        began = time.perf_counter()
        for token in ids:
            stream.push(token)
        best = min(best, (time.perf_counter() - began) / len(ids))
    assert best < 20e-6  # some 1.5 µs; the machine that runs this may be busy
