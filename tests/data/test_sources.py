"""Files to documents: listing, cutting into blocks, parsing, conditions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llamita.data import documents as reading
from llamita.data.blocks import ParseSettings, compile_where
from llamita.data.documents import auto_block_bytes, parse_block, read_blocks
from llamita.data.sources import list_sources
from llamita.data.where import FieldError, fields_of, parse_where
from llamita.errors import UserError
from tests.data.corpus import sentences, write_records


def read_texts(source: Path | list[Path], block_bytes: int = 1 << 20, **settings: Any) -> list[str]:
    parse = ParseSettings(**settings)
    blocks = read_blocks(list_sources(source).files, block_bytes)
    parsed = [parse_block(block, parse, compile_where(parse.where)) for block in blocks]
    return [document.text for block in parsed for document in block.documents]


def test_a_folder_is_walked_in_order_and_binaries_are_ignored(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    (root / "b").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "b/two.py").write_text("two")
    (root / "a.md").write_text("one")
    (root / "README").write_text("three")
    (root / "picture").write_bytes(b"\x89PNG\x00\x00")
    (root / ".git/config").write_text("hidden")
    (root / ".hidden.txt").write_text("hidden")
    listed = list_sources(root)
    assert [file.name for file in listed.files] == [
        "corpus/README",
        "corpus/a.md",
        "corpus/b/two.py",
    ]
    assert listed.ignored == ["corpus/picture"]
    assert read_texts(root) == ["three", "one", "two"]


def test_built_datasets_in_a_folder_are_no_sources(tmp_path: Path) -> None:
    (tmp_path / "data/mine").mkdir(parents=True)
    (tmp_path / "data/mine/manifest.json").write_text("{}")
    (tmp_path / "data/mine/train-00000.ds.index").write_bytes(b"")
    (tmp_path / "a.txt").write_text("text")
    assert [file.path.name for file in list_sources(tmp_path).files] == ["a.txt"]


def test_globs_and_files_are_listed_once(tmp_path: Path) -> None:
    for name in ("x.txt", "y.txt", "z.md"):
        (tmp_path / name).write_text(name)
    listed = list_sources([tmp_path / "y.txt", tmp_path / "*.txt"])
    assert [(file.source, file.name) for file in listed.files] == [(0, "y.txt"), (1, "x.txt")]
    assert listed.names == ["y.txt", "*.txt"]


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    for source, message in (
        ([], "no sources"),
        (tmp_path / "nowhere", "there is no source"),
        (tmp_path / "*.txt", "holds no text"),
        (tmp_path, "holds no text"),
    ):
        with pytest.raises(UserError, match=message):
            list_sources(source)


@pytest.mark.parametrize("size", [64, 1000, 5000])
def test_blocks_join_to_the_file_and_end_at_line_ends(tmp_path: Path, size: int) -> None:
    text = sentences(1, 500)
    (tmp_path / "a.txt").write_text(text)
    blocks = read_texts(tmp_path / "a.txt", size)
    assert "".join(blocks) == text
    assert all(block.endswith("\n") for block in blocks)
    assert max(map(len, blocks)) <= 2 * size
    assert len(blocks) >= len(text) // (2 * size)


def test_a_file_without_line_ends_is_cut_between_characters(tmp_path: Path) -> None:
    text = "é日🙂x" * 3000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    blocks = read_texts(tmp_path / "a.txt", 100)
    assert "".join(blocks) == text
    assert max(len(block.encode()) for block in blocks) <= 200


def test_blocks_of_one_file_are_about_a_thousandth(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 10_000_000)
    assert auto_block_bytes(list_sources(tmp_path).files) == 10_000
    (tmp_path / "a.txt").write_bytes(b"x" * 1000)
    assert auto_block_bytes(list_sources(tmp_path).files) == 2048
    for number in range(100):
        (tmp_path / f"{number}.txt").write_text("x")
    assert auto_block_bytes(list_sources(tmp_path).files) == 1 << 20


def test_compressed_and_plain_files_read_alike(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    plain = "".join(json.dumps({"text": sentences(n, 30)}) + "\n" for n in range(50)).encode()
    (tmp_path / "a.jsonl").write_bytes(plain)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    half = plain.index(b"\n", len(plain) // 2) + 1
    frames = [zstandard.compress(plain[:half]), zstandard.compress(plain[half:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    expected = [sentences(n, 30) for n in range(50)]
    for suffix in ("", ".gz", ".zst"):
        assert read_texts(tmp_path / f"a.jsonl{suffix}") == expected
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"plain text"))
    assert read_texts(tmp_path / "b.txt.gz") == ["plain text"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_archive_is_named(tmp_path: Path, suffix: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    data = write_records(tmp_path / "x", [{"text": sentences(n, 9)} for n in range(99)])
    compress = gzip.compress if suffix == ".gz" else zstandard.compress
    whole = compress(data.read_bytes())
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(b"nonsense" + whole)
    with pytest.raises(UserError, match=r"a\.jsonl.* cannot be read"):
        read_texts(file)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b'{"text": "one"}\n' * 1000)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz cannot be read"):
        read_texts(file)


def test_records_out_of_many_reads_keep_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_BYTES", 97)
    records: list[dict[str, Any]] = [{"text": f"{n} " * (n % 40 + 1)} for n in range(200)]
    file = write_records(tmp_path / "a.jsonl", records)
    file.write_bytes(file.read_bytes().rstrip(b"\n") + b"\n{broken\n")
    assert read_texts(file) == [record["text"] for record in records]
    blocks = read_blocks(list_sources(file).files, 1 << 20)
    parsed = [parse_block(block, ParseSettings(), ()) for block in blocks]
    assert [reason for block in parsed for reason in block.first_bad] == [
        "a.jsonl:201: malformed JSON (Expecting property name enclosed in double quotes, column 2)"
    ]


def test_a_gigantic_line_is_a_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(reading, "READ_BYTES", 1 << 16)
    file = tmp_path / "a.jsonl"
    long = json.dumps({"text": "x" * (3 << 20)})
    file.write_text(f'{{"text": "one"}}\n{long}\n{{"text": "three"}}\n{{"text": 4}}\n')
    assert read_texts(file) == ["one", "three"]
    blocks = list(read_blocks(list_sources(file).files, 1 << 20))
    bad = [parse_block(block, ParseSettings(), ()).first_bad for block in blocks]
    flat = [reason for reasons in bad for reason in reasons]
    assert flat[0].startswith("a.jsonl:2: a line longer than")
    assert flat[1] == "a.jsonl:4: field 'text' must be a string, it is int"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x"', "malformed JSON"),
        (b'{"text": "\xff"}', "broken UTF-8"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'["text"]', "must be a JSON object"),
        (b'{"body": "x", "id": 3}', "no field 'text' (fields here: 'body', 'id')"),
        (b'{"text": null}', "must be a string, it is NoneType"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    (block,) = read_blocks(list_sources(file).files, 1 << 20)
    parsed = parse_block(block, ParseSettings(), ())
    assert (parsed.records, parsed.bad, len(parsed.documents)) == (2, 1, 1)
    assert parsed.first_bad[0].startswith("a.jsonl:2: ")
    assert reason in parsed.first_bad[0]


def test_broken_and_binary_text_files_are_bad_records(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nbroken \xff\n")
    (tmp_path / "b.txt").write_bytes(b"MZ\0\0 binary")
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    (tmp_path / "d.txt").write_bytes(b" \n\n")
    (block,) = read_blocks(list_sources(tmp_path).files, 1 << 20)
    parsed = parse_block(block, ParseSettings(), ())
    assert [document.text for document in parsed.documents] == ["with a mark"]
    assert (parsed.records, parsed.bad, parsed.empty) == (4, 2, 1)
    assert any("b.txt: a binary file" in reason for reason in parsed.first_bad)
    assert any("a.txt:2: broken UTF-8" in reason for reason in parsed.first_bad)


RECORD = {"meta": {"set": "RedPajamaGithub", "stars": 12}, "lang": "en", "ok": True, "a.b": None}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("meta.set != RedPajamaGithub", False),
        ("meta.set == 'RedPajamaGithub'", True),
        ("meta.stars >= 12", True),
        ("meta.stars < 1.2e1", False),
        ("meta.stars == 12", True),
        ("meta.stars != '12'", True),
        ("lang in [de, en]", True),
        ("lang not in (de, en)", False),
        ("ok == true", True),
        ("ok == 1", False),
        ("a.b == null", True),
        ("lang == de or meta.stars > 10 and ok == true", True),
        ("(lang == de or meta.stars > 10) and ok == false", False),
        ("not lang == de", True),
        ("lang > de", True),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    assert parse_where(condition)(RECORD) is holds


@pytest.mark.parametrize(
    "condition",
    ["", "lang", "lang =", "lang = en", "lang == ", "== en", "lang in en", "lang == en de",
     "(lang == en", "lang == 'en", "and == en", "lang in [en"],
)  # fmt: skip
def test_malformed_conditions_are_refused(condition: str) -> None:
    with pytest.raises(UserError, match="where"):
        parse_where(condition)


def test_conditions_on_absent_fields_and_wrong_types_are_bad_records() -> None:
    with pytest.raises(FieldError, match=r"no field 'meta.source' \(fields here: 'set', 'stars'\)"):
        parse_where("meta.source == x")(RECORD)
    with pytest.raises(FieldError, match="cannot order bool"):
        parse_where("ok > 3")(RECORD)


def test_where_filters_records(tmp_path: Path) -> None:
    records = [{"text": f"text {n}", "meta": {"n": n}} for n in range(6)]
    file = write_records(tmp_path / "a.jsonl", records)
    found = read_texts(file, where=("meta.n >= 2", "meta.n != 4"))
    assert found == ["text 2", "text 3", "text 5"]


def test_conditions_name_their_fields() -> None:
    assert fields_of("a == 1 and not ('b c' in [a, d] or e.f != 2) and a > 0") == (
        "a",
        "b c",
        "e.f",
    )
