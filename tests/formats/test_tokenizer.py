"""Tokenizers out of GGUF against the tokenizers that were written into it."""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from transformers.integrations.gguf import gguf_tokenizer_mapping

from llamita.data.pre_tokenizers import READ_PRE_TOKENIZERS, make_pre_tokenizer
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.formats.gguf_file import GgufFile
from llamita.formats.gguf_tokenizer import ReadTokenizer, read_tokenizer
from tests.formats.gguf_files import finish

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CORPORA = ("code-rust-src", "nat-chitchat", "nat-linux-doc", "nat-python-doc")
TEXTS = (
    "",
    " ",
    "Hello world",
    "  Two  spaces,   tabs\tand\r\nlines\n\n\n  indented   ",
    "def f(x: int) -> str:\n    return f'{x!r}' * 2  # 1234567890 and 12 345,67",
    "naïve café, Straße, ΕΛΛΗΝΙΚΆ ελληνικά, русский, 日本語です, 한국어, हिन्दी, ไทย, ١٢٣ ½ ⅷ",
    "🙂🏽 👩‍👩‍👧 \u200b \ufeff end\u00a0of it",
    "HTMLParser camelCase XMLHttpRequest I'M we'LL it's don'T 'sOmething",
    "$5+3=8 <tag/> {a|b} ~x^2 `code` path/to/file.txt http://a.b/c?d=e&f=g",
    "a" * 50 + "=" * 33 + "\n" * 5 + " " * 17 + "x",
    "<s>not special</s> ▁ mark <0x0A>",
)


def told(file: GgufFile) -> tuple[ReadTokenizer, list[str]]:
    said: list[str] = []
    return read_tokenizer(file, say=said.append), said


def write(path: Path, model: str, tokens: list[str], types: list[int], **fields: Any) -> GgufFile:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, value in fields.items():
        kind = gguf.GGUFValueType.get_type(value)
        if key.endswith("_id"):
            kind = gguf.GGUFValueType.UINT32
        place = "tokenizer." if key == "chat_template" else "tokenizer.ggml."
        writer.add_key_value(place + key, value, kind)
    finish(writer)
    return GgufFile(path)


def corpus(shared: Path, characters: int = 30_000) -> list[str]:
    texts = list(TEXTS)
    for name in CORPORA:
        left = characters
        with gzip.open(shared / "corpora" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"][:left]
                texts.append(text)
                left -= len(text)
                if left <= 0:
                    break
    return texts


@pytest.fixture(scope="module")
def llama2(shared_dir: Path) -> str:
    return (shared_dir / "data/tokenizers/llama2/tokenizer.json").read_text(encoding="utf-8")


def llama2_fields(text: str) -> tuple[list[str], list[int], list[float]]:
    """As `_set_vocab_sentencepiece` writes them. The scores are not in tokenizer.json, but its
    merges are sorted by them."""
    model = json.loads(text)["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 259)
    best: dict[str, float] = {}
    for rank, pair in enumerate(model["merges"]):
        best.setdefault("".join(pair), -1.0 - rank)
    return tokens, types, [best.get(token, 0.0) for token in tokens]


@pytest.fixture(scope="module")
def llama2_file(llama2: str, tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    tokens, types, scores = llama2_fields(llama2)
    path = tmp_path_factory.mktemp("llama2") / "llama2.gguf"
    return write(path, "llama", tokens, types, scores=scores)


def test_sentencepiece(llama2: str, llama2_file: GgufFile, shared_dir: Path) -> None:
    read, said = told(llama2_file)
    assert not said
    ours, theirs = read.tokenizer, tokenizers.Tokenizer.from_str(llama2)
    theirs.encode_special_tokens = True
    for text in corpus(shared_dir / "data"):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, text[:80]
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.encode_prompt("Hello world") == [1, 15043, 3186]
    assert ours.encode_prompt("a</s>b") == [1, 263, 2, 289]
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 2, None)
    assert read.end_ids == (2,)


def test_without_the_leading_space(llama2: str, llama2_file: GgufFile) -> None:
    changed = copy.copy(llama2_file)
    keys = {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True}
    changed.fields = {
        **llama2_file.fields,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }
    ours = told(changed)[0].tokenizer
    vocabulary = json.loads(llama2)["model"]["vocab"]
    assert ours.encode_prompt("Hello world") == [vocabulary["Hello"], vocabulary["▁world"], 2]
    assert ours.decode(ours.encode(" Hello")) == " Hello"


@pytest.fixture(scope="module")
def byte_level() -> tokenizers.Tokenizer:
    """Trained on Python's source, split as Llama 3 does."""
    backend = tokenizers.Tokenizer(models.BPE())
    split = gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|begin|>", "<|end|>", "<|eot|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = [Path(module.__file__).read_text() for module in (argparse, logging, gzip)]
    backend.train_from_iterator(sources, trainer=trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return backend


def bpe_fields(backend: tokenizers.Tokenizer) -> tuple[list[str], list[int], list[str]]:
    size = backend.get_vocab_size()
    tokens = [str(backend.id_to_token(number)) for number in range(size)]
    types = [CONTROL] * 4 + [NORMAL] * (size - 5) + [USER_DEFINED]
    merges = [" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    return tokens, types, merges


IDS = {"bos_token_id": 0, "eos_token_id": 1, "eot_token_id": 2, "padding_token_id": 3}


def test_byte_level(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    tokens, types, merges = bpe_fields(byte_level)
    fields = {"pre": "llama-bpe", "merges": merges, "chat_template": "{{ messages }}", **IDS}
    read, said = told(write(tmp_path / "m.gguf", "gpt2", tokens, types, **fields))
    assert not said
    ours = read.tokenizer
    plain = Path(json.__file__).read_text()
    for text in (*TEXTS, plain):
        prompt = byte_level.encode(text, add_special_tokens=False).ids
        assert ours.encode_chat(text) == prompt
        assert ours.encode_prompt(text) == [0, *prompt]  # llama-bpe: unless the file says not to
        assert ours.decode(prompt) == text
    assert read.end_ids == (1, 2)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 3)
    assert ours.chat_template == "{{ messages }}"
    # A user-defined token is one in any text; a control token only where they are read.
    thought = byte_level.token_to_id("<think>")
    assert ours.encode("<think><|end|>")[0] == thought
    assert 1 not in ours.encode("<think><|end|>")
    assert ours.encode_chat("<think><|end|>") == [thought, 1]
    assert ours.special_ids == {0, 1, 2, 3}


def test_bos_and_eos_as_the_file_says(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    tokens, types, merges = bpe_fields(byte_level)
    ids = byte_level.encode("import os").ids
    for before, after in ((True, True), (False, True), (False, False)):
        fields = {"pre": "gpt-2", "merges": merges, **IDS}
        fields |= {"add_bos_token": before, "add_eos_token": after}
        file = write(tmp_path / "m.gguf", "gpt2", tokens, types, **fields)
        expected = [0] * before + ids + [1] * after
        assert told(file)[0].tokenizer.encode_prompt("import os") == expected
    quiet = write(tmp_path / "m.gguf", "gpt2", tokens, types, pre="gpt-2", merges=merges, **IDS)
    assert told(quiet)[0].tokenizer.encode_prompt("import os") == ids


def test_saved_for_transformers(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokens, types, merges = bpe_fields(byte_level)
    fields = {"pre": "llama-bpe", "merges": merges, **IDS}
    ours = told(write(tmp_path / "m.gguf", "gpt2", tokens, types, **fields))[0].tokenizer
    ours.save(tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert theirs(text).input_ids == ours.encode_prompt(text)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == tuple(
        tokens[n] for n in (0, 1, 3)
    )


def test_words_taken_whole(tmp_path: Path) -> None:
    """Llama 3's vocabulary has words that its merges do not reach."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abab"]
    types = [NORMAL] * len(tokens)
    for pre, expected in (("llama-bpe", [257]), ("gpt-2", [256, 256])):
        file = write(tmp_path / "m.gguf", "gpt2", tokens, types, pre=pre, merges=["a b"])
        read, said = told(file)
        assert read.tokenizer.encode("abab") == expected
        # llama-bpe puts BOS in front, but there is none here.
        assert ("has no effect" in "".join(said)) == (pre == "llama-bpe")


def pieces(splitter: Any, text: str) -> list[str]:
    return [piece for piece, _ in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    "name", sorted({*gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS} & {*READ_PRE_TOKENIZERS})
)
def test_pre_tokenizers_of_transformers(name: str) -> None:
    split = Regex(gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS[name])
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in TEXTS:
        assert pieces(make_pre_tokenizer(name), text) == pieces(theirs, text)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("gpt-2", "phi-2", "olmo"), []),
        (("smollm", "starcoder", "command-r"), [pre_tokenizers.Digits(individual_digits=True)]),
    ],
)
def test_pre_tokenizers_of_published_files(names: tuple[str, ...], steps: list[Any]) -> None:
    """GPT-2's tokenizer.json has ByteLevel alone, SmolLM2's and StarCoder's digits before it."""
    theirs = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    for name in names:
        for text in TEXTS:
            assert pieces(make_pre_tokenizer(name), text) == pieces(theirs, text)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("default", "x=12345$ `a`", ["x", "=", "123", "45", "$", "Ġ`", "a", "`"]),
        ("falcon", "x=12345$ `a`", ["x", "=", "123", "45", "$", "Ġ", "`", "a", "`"]),
        ("deepseek-coder", "go  to\n1.25", ["go", "Ġ", "Ġto", "Ċ", "1", ".", "2", "5"]),
        ("viking", "one, two3", ["one", ",", "Ġtwo", "3"]),
        ("poro-chat", "one, two3", ["one", ",", "Ġtwo3"]),
        ("minicpm5", "x12345", ["x", "123", "45"]),
    ],
)
def test_pre_tokenizers_by_hand(name: str, text: str, expected: list[str]) -> None:
    assert pieces(make_pre_tokenizer(name), text) == expected


def test_none_named_is_said(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    tokens, types, merges = bpe_fields(byte_level)
    read, said = told(write(tmp_path / "m.gguf", "gpt2", tokens, types, merges=merges, **IDS))
    assert "'default' is taken" in said[0]
    assert read.kind == "byte-level BPE, default"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pre": "lama-bpe"}, "does not know. Did you mean 'llama-bpe'.* Known: llama-bpe, gpt-2"),
        ({"merges": ["q# zz"]}, "its merges do not fit its tokens"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
    ],
)
def test_what_is_refused(
    fields: dict[str, Any],
    message: str,
    byte_level: tokenizers.Tokenizer,
    tmp_path: Path,
) -> None:
    tokens, types, merges = bpe_fields(byte_level)
    changed = {"pre": "gpt-2", "merges": merges, **IDS, **fields}
    given = {key: value for key, value in changed.items() if value is not None}
    file = write(tmp_path / "m.gguf", "gpt2", tokens, types, **given)
    with pytest.raises(UserError, match=message):
        told(file)


def test_ids_outside_and_tokens_twice(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    tokens, types, merges = bpe_fields(byte_level)
    fields = {"pre": "gpt-2", "merges": merges, **IDS, "padding_token_id": 4_294_967_295}
    read, said = told(write(tmp_path / "m.gguf", "gpt2", tokens, types, **fields))
    assert read.tokenizer.pad_id is None
    assert "padding_token_id 4294967295 is outside" in said[0]
    tokens[700] = tokens[701]
    with pytest.raises(UserError, match="holds a token twice"):
        told(write(tmp_path / "m.gguf", "gpt2", tokens, types, **fields))


def test_fast_encoding_still_works(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    """Names that only GGUF has must not be taken for ones that data building can cut by."""
    from llamita.data.fast_encode import FastEncoder

    tokens, types, merges = bpe_fields(byte_level)
    types[-1] = NORMAL
    for name in ("tekken", "starcoder", "default", "llama3"):
        fields = {"pre": name, "merges": merges, **IDS}
        ours: Tokenizer = told(write(tmp_path / "m.gguf", "gpt2", tokens, types, **fields))[
            0
        ].tokenizer
        found = FastEncoder(ours, np.dtype("u2"))(TEXTS)
        assert [ids.tolist() for ids in found] == [ours.encode(text) for text in TEXTS]
