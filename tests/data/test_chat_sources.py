"""Chats out of files of every kind, and what is said of wrong rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llamita.data.chat_records import Conversation, Message, Preference
from llamita.data.chat_sources import RowTally, list_chat_sources, read_examples
from llamita.errors import UserError

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"{number}?"},
            {"role": "assistant", "content": f"{number}!"},
        ]
    }
    for number in range(30)
]
EXPECTED = [
    Conversation((Message("user", f"{number}?"), Message("assistant", f"{number}!")))
    for number in range(30)
]


def read(source: Any, tally: RowTally | None = None, **options: Any) -> list[tuple[str, Any]]:
    files = list_chat_sources(source).files
    return list(read_examples(files, RowTally() if tally is None else tally, **options))


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".gz"):
        inner = write(folder, name.removesuffix(".gz"))
        path.write_bytes(gzip.compress(inner.read_bytes()))
    elif name.endswith(".zst"):
        zstandard = pytest.importorskip("zstandard")
        inner = write(folder, name.removesuffix(".zst"))
        path.write_bytes(zstandard.compress(inner.read_bytes()))
    elif name.endswith(".jsonl") or name == "lines.json":
        path.write_bytes(lines(ROWS))
    elif name.endswith(".json"):
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode())
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([{**row, "prompt": None, "id": 7} for row in ROWS])
        if name.endswith(".parquet"):
            pq.write_table(table, path, row_group_size=7)
        elif name == "stream.arrow":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
        else:
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.json.zst"),
        *("lines.json", "a.parquet", "a.arrow", "stream.arrow"),
    ],
)
def test_files_of_every_kind(tmp_path: Path, name: str) -> None:
    tally = RowTally()
    found = read(write(tmp_path, name), tally)
    assert [example for _, example in found] == EXPECTED
    by_line = name.startswith("a.jsonl") or name == "lines.json"
    assert [where for where, _ in found][:2] == (
        [f"{name}:1", f"{name}:2"] if by_line else [f"{name}, row 1", f"{name}, row 2"]
    )
    assert (tally.rows, tally.wrong, tally.warnings()) == (30, 0, [])
    assert tally.forms == {name: "messages of role and content"}


def test_a_dataset_by_name_or_object(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list([{**row, "id": 7} for row in ROWS])
    made.save_to_disk(tmp_path / "saved")
    for source in (
        made,
        f"hf:{tmp_path / 'saved'}",
        tmp_path / "saved",
        made.to_iterable_dataset(),
    ):
        assert [example for _, example in read(source)] == EXPECTED
    assert read(made)[4][0].endswith(", row 5")


def test_a_folder_gives_its_rows_and_each_file_has_its_own_form(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    (tmp_path / "README.md").write_text("Not chats.")
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": "30?", "output": "30!"}]))
    tally = RowTally()
    found = read(tmp_path, tally)
    assert len(found) == 31
    assert found[-1][1].messages[1].content == "30!"
    assert list(tally.forms.values()) == [
        "messages of role and content",
        "Alpaca instruction, input and output",
    ]
    with pytest.raises(UserError, match=r"README.md is no file of rows; name .json, .jsonl"):
        read(tmp_path / "README.md")


def test_wrong_rows_are_counted_by_reason_and_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    bad = [
        b'{"messages": [\n',
        lines([{"messages": []}]),
        b"\n",
        lines([{"messages": [{"role": "narrator", "content": "a"}]}]),
        lines([{"messages": []}]),
        b'{"messages": "\xff"}\n',
        lines([7]),
    ]
    file.write_bytes(lines(ROWS[:2]) + b"".join(bad) + lines(ROWS[2:]))
    tally = RowTally()
    found = read(file, tally, max_bad_fraction=0.2)
    assert [example for _, example in found] == EXPECTED
    assert found[2][0] == "chats.jsonl:10"
    assert (tally.rows, tally.wrong) == (36, 6)
    assert tally.reasons["empty conversation"] == 2
    assert tally.first == [
        "chats.jsonl:3: malformed JSON: Expecting value, column 15",
        "chats.jsonl:4: empty conversation: messages has no messages",
        "chats.jsonl:6: unknown role 'narrator': messages[0]; roles are system, user, human, "
        "prompter, assistant, gpt, bot, model, chatgpt, tool, function, ipython, nothing else",
        "chats.jsonl:7: empty conversation: messages has no messages",
        "chats.jsonl:8: broken UTF-8: invalid start byte",
    ]
    [warning] = tally.warnings()
    assert warning.startswith("6 of 36 rows were left out as wrong:\n  2 × empty conversation")
    with pytest.raises(UserError, match=r"6 of 36 rows are wrong, more than .* 0.1 allows"):
        read(file, max_bad_fraction=0.1)
    # as many as are allowed
    assert len(read(file, max_bad_fraction=6 / 36)) == 30


def test_reading_ends_early_where_most_rows_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_bytes(lines(ROWS) + lines([{"messages": []}]) * 5000)
    tally = RowTally()
    with pytest.raises(UserError, match="970 of 1,000 rows are wrong"):
        read(file, tally)
    assert tally.rows == 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"text": 1},', r"a.json is no JSON array: .*; mend it, or write one row"),
        ("a.jsonl", b"{\n{\n", r"a.jsonl: malformed JSON: Expecting property name"),
        ("a.jsonl", b'{"mesages": []}\n', r"a.jsonl: no known form: .*Did you mean 'messages'"),
        ("a.jsonl", b"", "hold no row"),
        ("a.json", b"[]", "hold no row"),
        ("a.json.gz", b"no gzip", r"a.json.gz cannot be read: Not a gzipped file"),
        ("a.parquet", b"PAR1 no Parquet", r"a.parquet cannot be read: "),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_the_shared_sets_parse_and_the_rows_that_do_not_are_named(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "instruct"
    for name, count in (
        ("alpaca_en_demo.json", 999),
        ("identity.json", 91),
        ("v1_sft_demo.jsonl", 500),
    ):
        rows = (folder / name).read_text("utf-8")
        raw = json.loads(rows) if name.endswith(".json") else map(json.loads, rows.splitlines())
        answers = [
            row["messages"][-1]["content"][0]["value"] if "messages" in row else row["output"]
            for row in raw
        ]
        found = read(folder / name)
        assert len(found) == count
        assert [example.messages[-1].content for _, example in found] == answers
    pairs = read(folder / "dpo_en_demo.json", kind="preferences")
    raw = json.loads((folder / "dpo_en_demo.json").read_text("utf-8"))
    assert len(pairs) == len(raw) == 300
    for (_, pair), row in zip(pairs, raw, strict=True):
        assert isinstance(pair, Preference)
        assert [turn.content for turn in pair.prompt] == [
            turn["value"] for turn in row["conversations"]
        ]
        assert pair.chosen == (Message("assistant", row["chosen"]["value"]),)
        assert pair.rejected == (Message("assistant", row["rejected"]["value"]),)
