"""Training tokenizers, pre-tokenizers by name, sentencepiece models."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamita.data.pre_tokenizers import PRE_TOKENIZERS, make_pre_tokenizer, pre_tokenizer_name
from llamita.data.tokenizer import load_tokenizer
from llamita.data.tokenizer_training import train_tokenizer
from llamita.errors import UserError
from tests.data.corpus import sentences

# The expressions in the tokenizer.json files of Llama 3 and Qwen 2 as their authors publish them.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
ODD = "I'LL  do 12345 things,\r\n\n  don't\twe?!\n x=  1 \u00a0\u2003é 日本語 🙂 ½ ²³ \n"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(sentences(3, 400) + "def f(x):\n    return x + 1\n" * 50, encoding="utf-8")
    return file


def test_trained_tokenizer_keeps_its_promises(text_file: Path, tmp_path: Path) -> None:
    trained = train_tokenizer(text_file, tmp_path / "tok", 320, chat_template="{{ messages }}")
    assert trained.vocab_size == 320
    assert [trained.token_of(number) for number in range(5)] == [
        "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>",
    ]  # fmt: skip
    assert (trained.bos_id, trained.eos_id, trained.pad_id) == (0, 1, 2)
    assert trained.encode_prompt("the")[0] == 0
    every_byte = bytes(range(256)).decode("latin-1") + ODD
    assert trained.decode(trained.encode(every_byte)) == every_byte
    loaded = load_tokenizer(tmp_path / "tok")
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.chat_template == "{{ messages }}"


def test_trained_tokenizer_gives_the_same_ids_in_transformers(
    text_file: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    for name in PRE_TOKENIZERS:
        trained = train_tokenizer(text_file, tmp_path / name, 300, pre_tokenizer=name)
        peer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        for text in (ODD, sentences(9, 3), "<|im_start|>user\nhi<|im_end|>\n"):
            assert peer(text)["input_ids"] == trained.encode_prompt(text)


def test_training_is_deterministic_across_processes(text_file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from llamita.data.tokenizer_training import train_tokenizer; "
        "print(train_tokenizer(sys.argv[1], sys.argv[2], 330).fingerprint)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(text_file), str(tmp_path / f"tok{number}")],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for number in range(2)
    }
    assert len(found) == 1


def test_max_bytes_draws_over_all_documents(tmp_path: Path) -> None:
    # Two files of which the second alone has the word: a head of the text would not meet it.
    for number in range(40):
        word = " zebra" * 40 if number >= 20 else " apple" * 40
        (tmp_path / f"{number:02}.txt").write_text(f"{number}{word}", encoding="utf-8")
    trained = train_tokenizer(tmp_path / "*.txt", tmp_path / "tok", 268, max_bytes=3000)
    assert len(trained.encode(" zebra")) < 6
    assert len(trained.encode(" apple")) < 6


def test_vocab_size_must_fit(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write 261 or more"):
        train_tokenizer(text_file, tmp_path / "tok", 200)
    with pytest.raises(UserError, match="more than the text gives"):
        train_tokenizer(text_file, tmp_path / "tok", 60_000)
    assert not (tmp_path / "tok").exists()
    with pytest.raises(UserError, match="Did you mean 'qwen2'"):
        train_tokenizer(text_file, tmp_path / "tok", 300, pre_tokenizer="qwen")


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_are_named(name: str, text_file: Path, tmp_path: Path) -> None:
    trained = train_tokenizer(text_file, tmp_path / "tok", 262, pre_tokenizer=name)
    assert pre_tokenizer_name(load_tokenizer(tmp_path / "tok").specification) == name
    assert trained.specification["pre_tokenizer"] is not None


def _published(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name in ("llama-bpe", "qwen2"):
        expression = LLAMA_3 if name == "llama-bpe" else QWEN_2
        split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
        return pre_tokenizers.Sequence([split, byte_level])
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_cut_as_the_published_ones(name: str) -> None:
    for text in (ODD, sentences(4, 5), "  \n\n\t a  1 22 333 4444  ", "x \r\n y's 'S"):
        ours = make_pre_tokenizer(name).pre_tokenize_str(text)
        assert ours == _published(name).pre_tokenize_str(text)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_published_pre_tokenizers_are_recognised(name: str) -> None:
    import json

    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = _published(name)
    assert pre_tokenizer_name(json.loads(backend.to_str())) == name


def test_other_pre_tokenizers_have_no_name() -> None:
    import json

    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    assert pre_tokenizer_name(json.loads(backend.to_str())) is None
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    assert pre_tokenizer_name(json.loads(backend.to_str())) is None


@pytest.mark.parametrize(
    "options",
    [
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
        },
        {"model_type": "bpe", "byte_fallback": True},
        {"model_type": "unigram"},
    ],
    ids=["llama", "bpe", "unigram"],
)
def test_sentencepiece_models_give_their_own_ids(tmp_path: Path, options: dict[str, Any]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(5, 300).splitlines()),
        model_writer=model,
        vocab_size=400 if options.get("byte_fallback") else 60,
        minloglevel=2,
        **options,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    peer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    loaded = load_tokenizer(tmp_path)
    for text in [*sentences(6, 20).splitlines(), "  New  words, 日本 🙂\tthe end "]:
        ids = peer.encode(text)
        assert loaded.encode(text) == ids
        if peer.unk_id() not in ids:  # sentencepiece writes the unknown token as ⁇
            assert loaded.decode(ids) == peer.decode(ids)
    assert (loaded.bos_id, loaded.eos_id) == (peer.bos_id(), peer.eos_id())
    assert loaded.encode_prompt("the") == [peer.bos_id(), *peer.encode("the")]


def test_a_damaged_sentencepiece_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\xff nonsense")
    with pytest.raises(UserError, match="not a readable sentencepiece model"):
        load_tokenizer(tmp_path)
