"""Parquet and Arrow files: the same documents as the same rows in .jsonl, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from llamita.data import columns
from llamita.data.blocks import ParseSettings, compile_where
from llamita.data.build import build_data
from llamita.data.documents import parse_block, read_blocks
from llamita.data.sources import list_sources
from llamita.data.tokenizer import Tokenizer
from llamita.data.tokenizer_training import train_tokenizer
from llamita.errors import UserError
from tests.data.corpus import sentences, write_records


def write_parquet(file: Path, table: pa.Table) -> None:
    pq.write_table(table, file, row_group_size=70, compression="zstd")


def write_ipc_file(file: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=90)


def write_ipc_stream(file: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=90)


def write_feather(file: Path, table: pa.Table) -> None:
    pyarrow.feather.write_feather(table, str(file), compression="lz4", chunksize=90)


WRITERS: dict[str, tuple[str, Callable[[Path, pa.Table], None]]] = {
    "parquet": (".parquet", write_parquet),
    "ipc file": (".arrow", write_ipc_file),
    "ipc stream": (".arrow", write_ipc_stream),
    "feather": (".feather", write_feather),
}


def rows(count: int = 400) -> list[dict[str, Any]]:
    """Records with duplicates, blanks, nulls, non-ASCII text and nested fields."""
    found = []
    for number in range(count):
        text: str | None = sentences(number % 350, 1 + number % 5)
        if number % 50 == 3:
            text = " \n"
        if number % 100 == 7:
            text = None
        if number % 9 == 0:
            text = f"é 漢字 🦙 {number} {text}"
        meta = {"lang": ["en", "de", "fr"][number % 3], "author": f"a{number % 40}"}
        found.append({"id": number, "text": text, "meta": meta, "stars": number % 10 / 2})
    return found


def shards_of(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.glob("*.ds*"))}


def texts_of(source: Path, **settings: Any) -> tuple[list[str], list[str]]:
    parse = ParseSettings(**settings)
    blocks = read_blocks(list_sources(source).files, 1 << 20, parse)
    parsed = [parse_block(block, parse, compile_where(parse.where)) for block in blocks]
    texts = [document.text for block in parsed for document in block.documents]
    return texts, [reason for block in parsed for reason in block.first_bad]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"where": "meta.lang in [en, de] and stars >= 1", "split_by": "meta.author"},
    {"split_by": "meta"},
    {"where": "not (id < 100)", "dedup": False, "text_field": "text"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_rows_give_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, kind: str, options: dict[str, Any]
) -> None:
    suffix, write = WRITERS[kind]
    lines = write_records(tmp_path / "rows.jsonl", rows())
    file = tmp_path / f"rows{suffix}"
    write(file, pa.Table.from_pylist(rows()))
    settings = {"validation": 0.1, "num_workers": 0, **options}
    expected = build_data(lines, tmp_path / "lines", tokenizer, **settings)
    found = build_data(file, tmp_path / "columns", tokenizer, **settings)
    assert found.counts == expected.counts
    assert found.counts.bad >= 2
    assert found.counts.documents > 60
    assert min(split.documents for split in found.splits.values()) > 0
    assert shards_of(tmp_path / "columns") == shards_of(tmp_path / "lines")
    assert found.sources[0].records == found.counts.records


def test_the_number_of_workers_and_row_groups_changes_no_byte(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    table = pa.table({"text": [sentences(number, 150) for number in range(400)]})
    expected = None
    for workers, size in ((0, 10_000), (1, 10_000), (2, 7)):
        folder = tmp_path / f"{workers}-{size}"
        folder.mkdir()
        pq.write_table(table, folder / "a.parquet", row_group_size=size)
        build_data(folder / "a.parquet", folder / "out", tokenizer, num_workers=workers)
        found = shards_of(folder / "out")
        expected = expected or found
        assert found == expected
    assert len(expected["train-00000.ds"]) > 2 << 20  # several blocks, or workers had no choice


def test_folders_and_globs_mix_columns_with_text(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    write_records(root / "a.jsonl", [{"text": "one"}])
    write_parquet(root / "b.parquet", pa.table({"text": ["two", "three"]}))
    write_ipc_file(root / "c.arrow", pa.table({"text": ["four"]}))
    (root / "d.txt").write_text("five")
    assert [file.name for file in list_sources(root).files] == [
        f"corpus/{name}" for name in ("a.jsonl", "b.parquet", "c.arrow", "d.txt")
    ]
    assert texts_of(root)[0] == ["one", "two", "three", "four", "five"]
    assert texts_of(root / "*.parquet")[0] == ["two", "three"]


def test_strings_of_every_arrow_type_are_text(tmp_path: Path) -> None:
    texts = ["one", "two", "one"]
    plain = pa.array(texts)
    kinds = [plain, plain.cast(pa.large_string()), plain.dictionary_encode()]
    for column in [*kinds, plain.cast(pa.string_view())]:
        write_ipc_file(tmp_path / "a.arrow", pa.table({"text": column}))
        assert texts_of(tmp_path / "a.arrow") == (texts, [])


def test_text_and_conditions_reach_into_structs(tmp_path: Path) -> None:
    table = pa.table({"data": [{"body": "one", "n": 1, "x": 0}, {"body": "two", "n": 2, "x": 0}]})
    for name, write in (("a.parquet", write_parquet), ("a.arrow", write_ipc_stream)):
        write(tmp_path / name, table)
        found = texts_of(tmp_path / name, text_field="data.body", where=("data.n > 1",))
        assert found == (["two"], [])


def test_dates_and_decimals_compare_as_json_would_hold_them(tmp_path: Path) -> None:
    import datetime
    import decimal

    day = datetime.date(2024, 5, 1)
    table = pa.table(
        {
            "text": ["one", "two"],
            "day": [day, datetime.date(2023, 1, 1)],
            "price": [decimal.Decimal("1.50"), decimal.Decimal("2.50")],
            "raw": [b"x", b"y"],
        }
    )
    write_parquet(tmp_path / "a.parquet", table)
    assert texts_of(tmp_path / "a.parquet", where=('day >= "2024-01-01"',))[0] == ["one"]
    assert texts_of(tmp_path / "a.parquet", where=("price > 2",))[0] == ["two"]
    texts, bad = texts_of(tmp_path / "a.parquet", where=("raw == x",))
    assert texts == []
    assert bad[0] == "a.parquet, row 1: a value of type bytes, which no condition compares"
    assert len(bad) == 2


def test_only_the_needed_columns_are_decoded(tmp_path: Path) -> None:
    """A damaged column that nobody asks for is not looked at."""
    table = pa.table({"text": ["one " * 50, "two " * 50], "other": ["x" * 5000, "y" * 5000]})
    file = tmp_path / "a.parquet"
    pq.write_table(table, file, compression="zstd", use_dictionary=False)
    chunk = pq.read_metadata(file).row_group(0).column(1)
    data = bytearray(file.read_bytes())
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(data)
    assert len(texts_of(file)[0]) == 2
    with pytest.raises(UserError, match=r"a\.parquet cannot be read: .*; mend or remove it"):
        texts_of(file, where=("other != z",))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_column_is_named_beside_those_there(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    suffix, write = WRITERS[kind]
    file = tmp_path / f"a{suffix}"
    write(file, pa.table({"body": ["one"], "stars": [3]}))
    message = r"has no column 'text' \(columns: 'body', 'stars'\); name another with --text-field"
    with pytest.raises(UserError, match=message):
        build_data(file, tmp_path / "out", tokenizer)
    with pytest.raises(UserError, match=message):
        train_tokenizer(file, tmp_path / "tokenizer", 300)
    with pytest.raises(UserError, match=r"column 'stars' is int64, and text must be strings"):
        build_data(file, tmp_path / "out", tokenizer, text_field="stars")
    with pytest.raises(UserError, match=r"no column 'meta.lang' .* with --where or --split-by"):
        build_data(file, tmp_path / "out", tokenizer, text_field="body", where="meta.lang == en")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.95])
def test_truncated_files_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, kind: str, keep: float
) -> None:
    suffix, write = WRITERS[kind]
    file = tmp_path / f"a{suffix}"
    write(file, pa.table({"text": [sentences(number, 40) for number in range(300)]}))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=rf"a\{suffix} (cannot be read|is no|ends without)"):
        build_data(file, tmp_path / "out", tokenizer, validation=0)
    assert not (tmp_path / "out").exists()


def test_a_stream_cut_between_two_messages_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Arrow itself takes the end of the file for the end of the stream."""
    file = tmp_path / "a.arrow"
    write_ipc_stream(file, pa.table({"text": ["one", "two"]}))
    file.write_bytes(file.read_bytes()[:-8])
    with pa.memory_map(str(file)) as source:
        assert pa.ipc.open_stream(source).read_all().num_rows == 2
    with pytest.raises(UserError, match="without Arrow's mark of the end of a stream"):
        build_data(file, tmp_path / "out", tokenizer)


def test_offsets_outside_the_file_do_not_crash(tmp_path: Path) -> None:
    texts = [f"text number {number}" for number in range(50)]
    file = tmp_path / "a.arrow"
    write_ipc_file(file, pa.table({"text": texts}))
    data = file.read_bytes()
    offsets = pa.array(texts).buffers()[1].to_pybytes()
    place = data.index(offsets[:64])
    file.write_bytes(data[: place + 40] + b"\x7f\xff\xff\x7f" + data[place + 44 :])
    with pytest.raises(UserError, match=r"a\.arrow cannot be read"):
        texts_of(file)


@pytest.mark.parametrize("kind", ["parquet", "ipc file", "ipc stream"])
def test_bad_rows_are_counted_and_named(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    suffix, write = WRITERS[kind]
    data = b"oneb\xffdthree" + b"x" * 40
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 3, 6, 6, 11)))
    column = pa.StringArray.from_buffers(
        4, offsets, pa.py_buffer(data), pa.py_buffer(bytes([0b1011]))
    )
    file = tmp_path / f"a{suffix}"
    write(file, pa.table({"text": column}))
    texts, bad = texts_of(file)
    assert texts == ["one", "three"[:5]]
    assert bad == [
        f"a{suffix}, row 2: broken UTF-8 (invalid start byte)",
        f"a{suffix}, row 3: field 'text' must be a string, it is NoneType",
    ]
    write(file, pa.table({"text": pa.array([None] * 100, pa.string())}))
    with pytest.raises(UserError, match=rf"(?s)100 of 100 records are bad.*a\{suffix}, row 1: "):
        build_data(file, tmp_path / "out", tokenizer)


def test_row_numbers_go_on_over_batches(tmp_path: Path) -> None:
    texts = [sentences(number, 2) for number in range(5000)]
    texts[4321] = None  # type: ignore[call-overload]
    write_parquet(tmp_path / "a.parquet", pa.table({"text": texts}))
    assert texts_of(tmp_path / "a.parquet")[1] == [
        "a.parquet, row 4322: field 'text' must be a string, it is NoneType"
    ]


def test_long_texts_are_bad_and_large_batches_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamita.data import blocks

    monkeypatch.setattr(blocks, "MAX_LINE_BYTES", 3 << 20)
    texts = ["a" * (1 << 19), "b" * (4 << 20), *("c" * (1 << 18) for _ in range(20))]
    write_ipc_file(tmp_path / "a.arrow", pa.table({"text": texts}))
    found, bad = texts_of(tmp_path / "a.arrow")
    assert found == [texts[0], *texts[2:]]
    assert bad == ["a.arrow, row 2: a text longer than 3 MiB"]
    settings = ParseSettings()
    files = list_sources(tmp_path / "a.arrow").files
    sizes = [
        sum(len(part.data) for part in block.parts) for block in read_blocks(files, 1, settings)
    ]
    assert max(sizes) < (4 << 20) + (2 << 20)
    assert len(sizes) > 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_reading_needs_little_memory(tmp_path: Path) -> None:
    """One row group of 200 MB of text is read with far less; the figure is the kernel's."""
    file = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{number} " + "text " * 1000 for number in range(40_000)]})
    pq.write_table(table, file, row_group_size=1_000_000, compression="none", use_dictionary=False)
    assert pq.read_metadata(file).num_row_groups == 1
    assert file.stat().st_size > 200e6
    code = (
        "import sys\n"
        "import pyarrow.parquet\n"
        "from llamita.data.documents import read_blocks\n"
        "from llamita.data.sources import list_sources\n"
        "def used():\n"
        "    lines = open('/proc/self/status')\n"
        "    return int(next(line for line in lines if 'VmHWM' in line).split()[1])\n"
        "before = used()\n"
        "for block in read_blocks(list_sources(sys.argv[1]).files, 1): pass\n"
        "print(used() - before)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) * 1024 < 100e6


def test_reuse_and_fingerprint_follow_the_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "a.parquet"
    table = pa.table({"text": [sentences(number, 3) for number in range(100)]})
    write_parquet(file, table)
    said: list[str] = []

    def build() -> str:
        said.clear()
        manifest = build_data(
            file, tmp_path / "out", tokenizer, progress=lambda state: said.append(state.message)
        )
        return manifest.fingerprint

    first = build()
    assert build() == first
    assert "reused" in said[-1]
    file.touch()
    assert build() == first
    assert "reused" in said[-1]
    write_parquet(file, table.slice(1))
    assert build() != first


def test_older_formats_and_double_compression_are_named(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + b"\0" * 100)
    with pytest.raises(UserError, match="Feather of version 1"):
        build_data(tmp_path / "a.feather", tmp_path / "out", tokenizer)
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(UserError, match="compressed once more"):
        build_data(tmp_path / "a.parquet.gz", tmp_path / "out", tokenizer)
    (tmp_path / "b.parquet").write_text(json.dumps({"text": "no parquet"}))
    with pytest.raises(UserError, match="is no Parquet file"):
        build_data(tmp_path / "b.parquet", tmp_path / "out", tokenizer)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", pa.table({"text": ["one"]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'llamita\[parquet\]'"):
        build_data(tmp_path / "a.parquet", tmp_path / "out", tokenizer)


def test_a_tokenizer_learns_the_same_from_columns(tmp_path: Path) -> None:
    records = [{"body": sentences(number, 5), "n": number} for number in range(60)]
    lines = write_records(tmp_path / "a.jsonl", records)
    write_parquet(tmp_path / "a.parquet", pa.Table.from_pylist(records))
    for source in (lines, tmp_path / "a.parquet"):
        train_tokenizer(
            source, tmp_path / source.suffix[1:], 320, text_field="body", where="n < 50"
        )
    found = [(tmp_path / kind / "tokenizer.json").read_bytes() for kind in ("jsonl", "parquet")]
    assert found[0] == found[1]


def test_rows_of_a_batch_hold_about_a_megabyte() -> None:
    assert columns._rows_of(10 << 20, 100) == 10
    assert columns._rows_of(0, 0) == 1
    assert columns._rows_of(100, 10**6) == 4096
