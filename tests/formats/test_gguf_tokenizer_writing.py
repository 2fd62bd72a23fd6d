"""Tokenizers into GGUF: llama.cpp gives our ids, and reading the file gives the tokenizer back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from llamita.data.pre_tokenizers import PRE_TOKENIZERS
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.data.tokenizer_training import train_tokenizer
from llamita.errors import UserError
from llamita.formats.gguf_file import GgufFile
from llamita.formats.gguf_tokenizer import read_tokenizer
from llamita.formats.gguf_tokenizer_writing import tokenizer_fields
from tests.formats.gguf_models import for_tokenizer, quiet, words, written
from tests.formats.llama_cpp import LlamaCpp, llama_cpp
from tests.formats.test_tokenizer import TEXTS, corpus

CHAT = "<|im_start|>user\nWhat is 12345 + 6?<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _compare(engine: LlamaCpp, tokenizer: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        assert engine.ids(text) == tokenizer.encode(text), text[:80]
        assert engine.ids(text, special=True) == tokenizer.encode_prompt(text), text[:80]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """A tokenizer of our own for each of the pre-tokenizers to train with."""
    folder = tmp_path_factory.mktemp("tokenizers")
    texts = [*TEXTS, *(f"{text} again, and again: {text}" for text in TEXTS)]
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if text.strip()))
    return {
        name: train_tokenizer(
            str(source), folder / name, 420, pre_tokenizer=name, chat_template=TEMPLATE
        )
        for name in PRE_TOKENIZERS
    }


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_self_trained(name: str, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Rows beyond the vocabulary are filled; ends of text and turn, BOS and template are told."""
    tokenizer = trained[name]
    path = written(tmp_path / "model.gguf", for_tokenizer(tokenizer, rows=28), tokenizer)
    with llama_cpp(path) as engine:
        _compare(engine, tokenizer, [*TEXTS, CHAT])
    file = GgufFile(path)
    assert file.fields["tokenizer.ggml.tokens"][420:422] == ["[PAD420]", "[PAD421]"]
    assert file.fields["tokenizer.ggml.eot_token_id"] == tokenizer.id_of("<|im_end|>")
    read = read_tokenizer(file, say=quiet)
    assert read.end_ids == (tokenizer.eos_id, tokenizer.id_of("<|im_end|>"))
    back = read.tokenizer
    assert (back.bos_id, back.eos_id, back.pad_id, back.vocab_size) == (0, 1, 2, 420)
    assert back.chat_template == TEMPLATE
    for text in (*TEXTS, CHAT):
        assert back.encode_prompt(text) == tokenizer.encode_prompt(text)
        assert back.encode(text) == tokenizer.encode(text)


@pytest.fixture(scope="module")
def llama2(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    tokenizer = load_tokenizer(shared_dir / "data/tokenizers/llama2/tokenizer.json")
    path = tmp_path_factory.mktemp("llama2") / "model.gguf"
    written(path, for_tokenizer(tokenizer), tokenizer, quantize="q8_0")
    with llama_cpp(path) as engine:
        yield tokenizer, path, engine


def test_sentencepiece(llama2: Any, shared_dir: Path) -> None:
    tokenizer, path, engine = llama2
    texts = corpus(shared_dir / "data", characters=1500)
    _compare(engine, tokenizer, [text for text in texts if text])
    back = read_tokenizer(GgufFile(path), say=quiet).tokenizer
    for text in texts:
        assert back.encode_prompt(text) == tokenizer.encode_prompt(text)


def test_words_are_whole_or_merged_by_name(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Llama 3 takes a word that is a token whole; its expression alone has another name."""
    specification = json.loads(trained["llama-bpe"].to_json())
    config = for_tokenizer(trained["llama-bpe"]).config
    found = tokenizer_fields(trained["llama-bpe"], config, say=quiet)
    assert found["tokenizer.ggml.pre"] == "dbrx"
    specification["model"]["ignore_merges"] = True
    whole = Tokenizer(json.dumps(specification), bos_id=0, eos_id=1)
    assert tokenizer_fields(whole, config, say=quiet)["tokenizer.ggml.pre"] == "llama-bpe"
    specification["pre_tokenizer"] = json.loads(trained["gpt-2"].to_json())["pre_tokenizer"]
    with pytest.raises(UserError, match=r"take.* words that are tokens whole \(ignore_merges\)"):
        tokenizer_fields(Tokenizer(json.dumps(specification)), config, say=quiet)


def _changed(tokenizer: Tokenizer, **changes: Any) -> Tokenizer:
    return Tokenizer(json.dumps({**json.loads(tokenizer.to_json()), **changes}), eos_id=2)


def _part(part: Any) -> Any:
    backend = tokenizers.Tokenizer(models.BPE())
    if isinstance(part, normalizers.Normalizer):
        backend.normalizer = part
    else:
        backend.pre_tokenizer = part
    parsed = json.loads(backend.to_str())
    return parsed["normalizer"] or parsed["pre_tokenizer"]


def test_what_llama_cpp_has_no_name_for(trained: dict[str, Tokenizer]) -> None:
    ours = trained["qwen2"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other = pre_tokenizers.Split(Regex(r"\d"), behavior="isolated")
    spaced = pre_tokenizers.ByteLevel(add_prefix_space=True)
    model = json.loads(ours.to_json())["model"]
    pieces = [["<s>", 0.0], ["</s>", 0.0], ["<pad>", 0.0]]
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": pieces}
    split = _part(pre_tokenizers.Sequence([other, byte_level]))
    cases = [
        ({"pre_tokenizer": split}, r"by '\\\\d', for"),
        ({"pre_tokenizer": _part(spaced)}, "by ByteLevel, with settings of its own"),
        ({"pre_tokenizer": _part(pre_tokenizers.Whitespace())}, "by Whitespace"),
        ({"normalizer": _part(normalizers.Lowercase())}, r"before it splits it \(Lowercase\)"),
        ({"model": {**model, "end_of_word_suffix": "</w>"}}, "BPE has end_of_word_suffix"),
        ({"model": unigram}, "is a Unigram model"),
    ]
    config = for_tokenizer(ours).config
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            tokenizer_fields(
                _changed(ours, added_tokens=[], post_processor=None, **changes), config, say=quiet
            )
    with pytest.raises(UserError, match="tokenizer has 420 tokens and the model only 97"):
        tokenizer_fields(ours, for_tokenizer(words()).config, say=quiet)


def _scores(merges: list[tuple[str, str]], pieces: str) -> dict[str, float]:
    """By piece, as a tokenizer of these merges is written."""
    tokens = ["<unk>", "<s>", "</s>", *pieces.split()]
    vocabulary = {piece: number for number, piece in enumerate(tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.add_special_tokens(["<s>", "</s>"])
    config = for_tokenizer(words(len(tokens))).config
    found = tokenizer_fields(Tokenizer(backend.to_str(), eos_id=2), config, say=quiet)
    return dict(zip(tokens, found["tokenizer.ggml.scores"], strict=True))


def test_merges_without_scores() -> None:
    """sentencepiece merges by what comes of it, whatever it is made of."""
    pieces = "▁ a b c d ab bc abc bcd abcd"
    whole = [
        ("b", "c"),
        ("a", "b"),
        ("ab", "c"),
        ("a", "bc"),
        ("bc", "d"),
        ("abc", "d"),
        ("a", "bcd"),
    ]
    found = _scores(whole, pieces)
    assert found["bc"] > found["ab"] > found["abc"] > found["bcd"] > found["abcd"]
    assert found["abcd"] > max(found[piece] for piece in ("▁", "a", "d", "<s>"))
    # "abcd" is "a bcd" by these merges, and would be "abc d" by any scores of pieces
    apart = [*whole[:3], whole[4], whole[3], *whole[5:]]
    for merges in (whole[:6], apart):
        with pytest.raises(UserError, match="order that no scores of pieces give"):
            _scores(merges, pieces)


def test_runs_of_one_character() -> None:
    """As the spaces in Llama 2's tokenizer.json: ranks apart, and the same ids all the same."""
    pieces = "▁ ▁▁ ▁▁▁ ▁▁▁▁"
    one, two, three = "▁", "▁▁", "▁▁▁"
    merges = [(one, one), (two, two), (two, one), (three, one), (one, two), (one, three)]
    found = _scores(merges, pieces)
    assert found["▁▁"] > found["▁▁▁▁"] > found["▁▁▁"]
    # five are four and one by these merges, and would be two and three by scores
    other = [(one, one), (one, two), (two, two), (two, one), (three, one), (one, three)]
    with pytest.raises(UserError, match="order that no scores"):
        _scores(other, pieces)


def test_what_llama_cpp_does_otherwise_is_said(trained: dict[str, Tokenizer]) -> None:
    ours, said = trained["qwen2"], list[str]()
    config = for_tokenizer(ours).config
    tokenizer_fields(_changed(ours, normalizer=_part(normalizers.NFC())), config, say=said.append)
    added = json.loads(ours.to_json())["added_tokens"]
    added[0]["lstrip"] = True
    tokenizer_fields(_changed(ours, added_tokens=added), config, say=said.append)
    plain = Tokenizer(ours.to_json(), bos_id=0)
    tokenizer_fields(plain, config.replace(eos_token_id=None), say=said.append)
    broken = Tokenizer(ours.to_json(), eos_id=1, chat_template="{{ messages[0].content }}")
    tokenizer_fields(broken, config, say=said.append)
    listed = config.replace(eos_token_id=[1, 5, 6, 7])
    tokenizer_fields(ours, listed, say=said.append)
    expected = ("NFC", "spaces beside", "no token that ends", "ends a turn", "left out: [6, 7]")
    assert len(said) == len(expected)
    assert all(part in text for part, text in zip(expected, said, strict=True))


def test_post_processors(trained: dict[str, Tokenizer]) -> None:
    """BOS in front is the tokenizer's own; another template is refused by what it makes."""
    ours = trained["smollm"]
    config = for_tokenizer(ours).config
    found = tokenizer_fields(ours, config, say=quiet)
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_eos_token"] is False
    plain = tokenizer_fields(_changed(ours, post_processor=None), config, say=quiet)
    assert plain["tokenizer.ggml.add_bos_token"] is False
    doubled = tokenizers.processors.TemplateProcessing(
        single=["<s>", "<s>", "$A", "</s>"], special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.post_processor = doubled
    changed = _changed(ours, post_processor=json.loads(backend.to_str())["post_processor"])
    with pytest.raises(UserError, match="one token before a text and one after"):
        tokenizer_fields(changed, config, say=quiet)


def test_user_defined_tokens(tmp_path: Path, trained: dict[str, Tokenizer]) -> None:
    """Added tokens that are not special are read in any text, here and in llama.cpp."""
    backend = tokenizers.Tokenizer.from_str(trained["gpt-2"].to_json())
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer = Tokenizer(backend.to_str(), bos_id=0, eos_id=1)
    path = written(tmp_path / "model.gguf", for_tokenizer(tokenizer), tokenizer)
    with llama_cpp(path) as engine:
        assert engine.ids("a<tool>b") == tokenizer.encode("a<tool>b")
    assert tokenizer.vocab_size - 1 in tokenizer.encode("a<tool>b")
