"""Files, folders and datasets as documents: nothing is left out, divided or altered unsaid."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamita.data.build import build_data
from llamita.data.chat_build import build_chats
from llamita.errors import UserError
from llamita.evaluation.text_files import find_texts
from tests.data.corpus import sentences, small_tokenizer, write_records
from tests.formats.gguf_models import words

TEXTS = [" naïve\n", "plain\r\ntext", "∑ 🙂"]


def texts_of(source: str | Path, **settings: str) -> dict[str, list[str]]:
    return {each.name: list(each.documents()) for each in find_texts(source, **settings)}


def records(texts: list[str], field: str = "text") -> str:
    return "".join(json.dumps({field: text, "other": 1}) + "\n" for text in texts)


def test_a_text_file_is_one_document_however_long(tmp_path: Path) -> None:
    long = sentences(1, 60_000)
    assert len(long) > 2 << 20, "longer than what `data build` would divide"
    (tmp_path / "long.txt").write_bytes(long.encode())
    assert texts_of(tmp_path / "long.txt") == {"long.txt": [long]}
    (source,) = find_texts(str(tmp_path / "long.txt"))
    assert source.num_bytes == len(long)


def test_records_are_a_document_each(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text(records([*TEXTS, "", " \n"]))
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write(records(TEXTS, "body"))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "columns.parquet")
    assert texts_of(tmp_path / "plain.jsonl") == {"plain.jsonl": TEXTS}
    assert texts_of(tmp_path / "columns.parquet") == {"columns.parquet": TEXTS}
    packed = texts_of(tmp_path / "packed.jsonl.gz", text_field="body")
    assert packed == {"packed.jsonl.gz": TEXTS}


def test_a_folder_is_searched(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "b.txt").write_text("b")
    (tmp_path / "a.jsonl").write_text(records(["a", "aa"]))
    (tmp_path / "c.md").write_text("c")
    (tmp_path / "model.safetensors").write_bytes(b"\0\1")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    build_data([tmp_path / "a.jsonl"], tmp_path / "z", small_tokenizer(), validation=0.5)
    found = texts_of(tmp_path)
    validation = found.pop("z", [])
    assert found == {"a.jsonl": ["a", "aa"], "c.md": ["c"], "inner/b.txt": ["b"]}
    assert set(validation) <= {"a", "aa"}


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_a_dataset_gives_back_its_validation_texts(tmp_path: Path, bos: bool, eos: bool) -> None:
    texts = [sentences(number, 1 + number % 3) for number in range(60)] + ["a</s>b", *TEXTS]
    source = write_records(tmp_path / "source.jsonl", [{"text": text} for text in texts])
    build_data([source], tmp_path / "data", small_tokenizer(), validation=0.5, bos=bos, eos=eos)
    (found,) = find_texts(tmp_path / "data")
    documents = list(found.documents())
    assert 5 < len(documents) < len(texts)
    assert set(documents) <= set(texts)
    assert len(set(documents)) == len(documents)
    assert found.name == "data"
    assert found.num_bytes == sum(len(each.encode()) for each in documents)


def test_a_dataset_with_characters_that_its_tokenizer_lacks(tmp_path: Path) -> None:
    source = write_records(tmp_path / "s.jsonl", [{"text": f"w5 什 {i}"} for i in range(20)])
    build_data([source], tmp_path / "data", words(40), validation=0.5)
    (found,) = find_texts(tmp_path / "data")
    with pytest.raises(UserError, match="document 1 has characters that its tokenizer does not"):
        list(found.documents())


def test_a_dataset_without_validation(tmp_path: Path) -> None:
    source = write_records(tmp_path / "s.jsonl", [{"text": "a"}])
    build_data([source], tmp_path / "data", small_tokenizer(), validation=0.0)
    with pytest.raises(UserError, match="no validation split; build it with --validation"):
        find_texts(tmp_path / "data")


def test_conversations_are_no_text(tmp_path: Path) -> None:
    chat = {"messages": [{"role": r, "content": r} for r in ("user", "assistant")]}
    source = write_records(tmp_path / "s.jsonl", [chat])
    settings = {"template": "zephyr", "validation": 0.0, "say": lambda _: None}
    build_chats([source], tmp_path / "data", small_tokenizer(), **settings)
    with pytest.raises(UserError, match="holds chats"):
        find_texts(tmp_path / "data")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (records(["a"]) + "{broken\n", r"bad\.jsonl:2: malformed JSON.*mend the file"),
        (records(["a"], "body"), r"bad\.jsonl:1: no field 'text' \(fields here: 'body', 'other'\)"),
        ('{"text": 7}\n', r"bad\.jsonl:1: field 'text' must be a string, it is int"),
        ('{"text": "\\ud800"}\n', r"bad\.jsonl:1: broken Unicode"),
    ],
)
def test_what_is_no_document_is_an_error(tmp_path: Path, contents: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(contents)
    (source,) = find_texts(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match=message):
        list(source.documents())


def test_other_things_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no source"):
        find_texts(tmp_path / "nothing.txt")
    with pytest.raises(UserError, match="holds no text; put"):
        find_texts(tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (source,) = find_texts(tmp_path)
    with pytest.raises(UserError, match="NUL bytes"):
        list(source.documents())
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt:1: broken UTF-8"):
        list(find_texts(tmp_path / "latin.txt")[0].documents())
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="text"):
        find_texts(tmp_path / "c.parquet")


def test_an_interrupted_build_is_said(tmp_path: Path) -> None:
    source = write_records(tmp_path / "s.jsonl", [{"text": f"{i}"} for i in range(20)])
    build_data([source], tmp_path / "data", small_tokenizer(), validation=0.5)
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(UserError, match="it is not a dataset, or not a whole one"):
        find_texts(tmp_path / "data")
