"""Reading and writing tokenizers; the oracles are Transformers and `tokenizers`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from tests.data.corpus import sentences

TEXTS = (
    "Hello world",
    "  two spaces\n\tand a tab\n",
    "a stop: </s> and <s> and <|im_start|> in the text",
    "naïve café — 日本語 🙂 \x00 end",
    "",
)


def test_llama2_ids_are_the_published_ones(shared_dir: Path) -> None:
    loaded = load_tokenizer(shared_dir / "data/tokenizers/llama2")
    assert loaded.encode_prompt("Hello world") == [1, 15043, 3186]
    assert loaded.encode("Hello world") == [15043, 3186]
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (1, 2, None)
    assert loaded.vocab_size == 32000


def test_special_strings_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one </s> two")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "one </s> two"
    assert tokenizer.encode_batch(["one </s> two"]) == [ids]


def test_prompts_and_chats_read_special_strings(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_prompt("one</s>")[0] == tokenizer.bos_id
    assert tokenizer.encode_prompt("one</s>")[-1] == tokenizer.eos_id
    assert tokenizer.encode_chat("<s>one")[0] == tokenizer.bos_id
    assert tokenizer.encode_chat("one")[0] != tokenizer.bos_id


@pytest.mark.parametrize("text", TEXTS)
def test_saved_directory_gives_the_same_ids_in_transformers(
    tokenizer: Tokenizer, tmp_path: Path, text: str
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert peer(text)["input_ids"] == tokenizer.encode_prompt(text)
    assert peer(text, add_special_tokens=False)["input_ids"] == tokenizer.encode_chat(text)
    assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id) == (0, 1, 2)


def test_llama2_saved_gives_the_same_ids_in_transformers(shared_dir: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    loaded = load_tokenizer(shared_dir / "data/tokenizers/llama2/tokenizer.json")
    loaded.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert peer(text)["input_ids"] == loaded.encode_prompt(text)
    assert (peer.bos_token_id, peer.eos_token_id) == (1, 2)


def test_directory_written_by_transformers_is_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    peer.chat_template = "{{ messages }}"
    peer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (0, 1, 2)
    assert loaded.chat_template == "{{ messages }}"
    assert loaded.encode_prompt(TEXTS[1]) == peer(TEXTS[1])["input_ids"]


def test_round_trip_keeps_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    Tokenizer(tokenizer.to_json(), bos_id=0, eos_id=1, pad_id=2, chat_template=template).save(
        tmp_path
    )
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (0, 1, 2)
    assert loaded.chat_template == template


def test_fingerprint_sees_meaning_not_layout(tokenizer: Tokenizer) -> None:
    content = json.loads(tokenizer.to_json())
    compact = Tokenizer(json.dumps(content, sort_keys=True))
    assert compact.fingerprint == tokenizer.fingerprint
    content["model"]["merges"] = content["model"]["merges"][:-1]
    assert Tokenizer(json.dumps(content)).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize("text", TEXTS[:2] + TEXTS[3:])
def test_token_bytes_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    table = tokenizer.token_bytes()
    assert len(table) == tokenizer.vocab_size
    assert b"".join(table[token] for token in tokenizer.encode(text)) == text.encode()


def test_token_bytes_of_llama2(shared_dir: Path) -> None:
    loaded = load_tokenizer(shared_dir / "data/tokenizers/llama2")
    table = loaded.token_bytes()
    text = "def f(x):\n    return '日🙂'"
    assert b"".join(table[token] for token in loaded.encode(text)) == b" " + text.encode()


def test_truncation_and_padding_of_a_file_are_off(tokenizer: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = sentences(1, 2)
    assert load_tokenizer(tmp_path).encode(text) == tokenizer.encode(text)


def test_ids_come_from_config_json_where_the_tokenizer_does_not_say(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"bos_token_id": 5, "eos_token_id": [7, 8]}')
    loaded = load_tokenizer(tmp_path)
    assert (loaded.bos_id, loaded.eos_id) == (5, 7)


def test_unreadable_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{not json")
    with pytest.raises(UserError, match=r"not a readable tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(UserError, match="cannot read"):
        load_tokenizer(tmp_path)


def test_a_special_token_that_is_not_in_the_vocabulary_is_named(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<begin>"}')
    with pytest.raises(UserError, match="<begin>"):
        load_tokenizer(tmp_path)
