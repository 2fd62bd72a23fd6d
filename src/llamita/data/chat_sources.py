"""Chats and preference pairs out of files and datasets, a row at a time."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from llamita.data.blocks import ROW_MARK, json_like
from llamita.data.chat_records import (
    FORMS,
    ChatKind,
    Example,
    Form,
    RowError,
    parse_row,
    recognise,
)
from llamita.data.columns import pyarrow_for
from llamita.data.dataset_sources import SourceDataset
from llamita.data.documents import read_blocks
from llamita.data.sources import Given, Source, SourceFile, SourceList, list_sources
from llamita.errors import UserError

# Rows that are looked at to recognise a file's form.
_FIRST_ROWS = 20
_KEPT_REASONS = 5
_EARLY_ROWS = 1000
_BATCH_ROWS = 256
_COLUMNS = frozenset(
    (
        *("messages", "conversations", "system", "prompt", "completion", "text"),
        *("instruction", "input", "output", "history", "question", "chosen", "rejected"),
    )
)


@dataclass(slots=True)
class RowTally:
    """Rows that were read, and those that were wrong: how many for each reason, and the first few
    by where they stand. `special` counts rows whose speakers spell special tokens."""

    rows: int = 0
    wrong: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)
    special: int = 0

    def refuse(self, where: str, error: RowError) -> None:
        """Count a row that was read (`rows` has it already) as wrong."""
        self.wrong += 1
        self.reasons[error.reason] += 1
        if len(self.first) < _KEPT_REASONS:
            self.first.append(f"{where}: {error}")

    def check(self, max_bad_fraction: float) -> None:
        """Raise a UserError if more than that share of the rows is wrong, or if none is right."""
        if self.wrong and self.wrong > max_bad_fraction * self.rows:
            raise UserError(
                f"{self.wrong:,} of {self.rows:,} rows are wrong, more than max_bad_fraction "
                f"{max_bad_fraction:g} allows; mend or leave out those rows, or raise "
                f"--max-bad-fraction.\n{self.account()}"
            )
        if self.wrong == self.rows:
            raise UserError(
                f"no row of the sources is right.\n{self.account()}"
                if self.rows
                else "the sources hold no row; name files that have some."
            )

    def account(self) -> str:
        """Lines that say which reasons there were and name the first rows."""
        reasons = [f"  {count:,} × {reason}" for reason, count in self.reasons.most_common()]
        return "\n".join([*reasons, "The first ones:", *(f"  {line}" for line in self.first)])

    def warnings(self) -> list[str]:
        """What to say of a reading that was good enough."""
        said = []
        if self.wrong:
            said.append(
                f"{self.wrong:,} of {self.rows:,} rows were left out as wrong:\n{self.account()}"
            )
        if self.special:
            said.append(
                f"{self.special:,} rows have content that holds special tokens; they are read as "
                "those tokens, as Transformers reads them"
            )
        return said


def list_chat_sources(sources: Given | Sequence[Given]) -> SourceList:
    """Resolve sources (as `list_sources` does) to files and datasets of rows.

    `.json` files count besides `.jsonl`, `.ndjson`, `.parquet`, `.arrow` and `.feather`; other
    files of a folder or glob are passed over.

    Raises:
        UserError: as `list_sources`; or a source has no file of rows.
    """
    found = list_sources(sources)
    kept: list[Source] = []
    for source in found.files:
        if isinstance(source, SourceFile) and source.kind == "text" and not _is_json(source):
            found.ignored.append(source.name)
        else:
            kept.append(source)
    for number, name in enumerate(found.names):
        if not any(source.source == number for source in kept):
            raise UserError(
                f"{name} is no file of rows; name .json, .jsonl (these also as .gz or .zst), "
                ".parquet or .arrow files, or hf:NAME."
            )
    found.files = kept
    return found


def read_examples(
    sources: Iterable[Source],
    tally: RowTally,
    *,
    kind: ChatKind = "chats",
    max_bad_fraction: float = 0.01,
    advanced: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, Example]]:
    """Read sources in order: where a row stands ("file.jsonl:17") and what it holds.

    Wrong rows are left out and counted in `tally`, which says of each source too what form its
    rows have. `advanced(bytes)` is called as files are read.

    Raises:
        UserError: a file cannot be read, its rows are of no known form, or too many are wrong:
            at the end, or on the way once most of a thousand are.
    """
    for source in sources:
        rows = _raw_rows(source, advanced or (lambda _: None))
        first = list(islice(rows, _FIRST_ROWS))
        form = _recognised(source, [row for _, row in first], kind)
        if form is None:
            continue
        tally.forms[source.name] = FORMS[form]
        for where, row in chain(first, rows):
            tally.rows += 1
            try:
                if isinstance(row, RowError):
                    raise row
                example = parse_row(row, form)
            except RowError as error:
                tally.refuse(where, error)
                hopeless = tally.wrong > max(0.5, max_bad_fraction) * tally.rows
                if hopeless and tally.rows >= _EARLY_ROWS:
                    tally.check(max_bad_fraction)
            else:
                yield where, example
    tally.check(max_bad_fraction)


def _recognised(source: Source, rows: Sequence[Any], kind: ChatKind) -> Form | None:
    """The form of a source's rows, `None` of one without any."""
    if not rows:
        return None
    faults = [str(row) for row in rows if isinstance(row, RowError)]
    try:
        return recognise([row for row in rows if isinstance(row, Mapping)], kind)
    except RowError as error:
        reason = faults[0] if len(faults) == len(rows) else str(error)
        raise UserError(f"{source.name}: {reason}.") from error


def _raw_rows(source: Source, advanced: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """Where each row stands and what it is: a value, or a RowError where it cannot be read."""
    if isinstance(source, SourceDataset):
        return _dataset_rows(source, advanced)
    if source.kind == "columns":
        return _column_rows(source, advanced)
    if source.kind == "records":
        return _line_rows(source, advanced)
    return _json_rows(source, advanced)


def _line_rows(source: SourceFile, advanced: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    for block in read_blocks([source], 0, advanced=advanced):
        for reason in block.bad:
            where, _, what = reason.partition(": ")
            yield where, RowError(what)
        for part in block.parts:
            for number, line in enumerate(part.data.split(b"\n"), part.line):
                if line and not line.isspace():
                    yield f"{source.name}:{number}", _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RowError("broken UTF-8", error.reason)
    except json.JSONDecodeError as error:
        return RowError("malformed JSON", f"{error.msg}, column {error.colno}")
    except RecursionError:
        return RowError("nested too deeply")
    except ValueError as error:  # a number of more digits than Python reads
        return RowError("malformed JSON", str(error))


def _json_rows(source: SourceFile, advanced: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """The rows of one JSON array; a file that begins with an object holds one a line."""
    data = _contents(source)
    if not data.lstrip().startswith(b"["):
        yield from _line_rows(replace(source, kind="records"), advanced)
        return
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source.path} is no JSON array: {error}; mend it, or write one row a line as .jsonl."
        ) from error
    advanced(source.size)
    for number, row in enumerate(rows, 1):
        yield f"{source.name}{ROW_MARK}{number}", row


def _contents(source: SourceFile) -> bytes:
    try:
        data = source.path.read_bytes()
        if source.compression == "gz":
            data = gzip.decompress(data)
        elif source.compression == "zst":
            data = _unpacked_zst(source, data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{source.path} cannot be read: {error}; mend or remove it.") from error
    return data.removeprefix(b"\xef\xbb\xbf")


def _unpacked_zst(source: SourceFile, data: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{source.path} needs the package zstandard: pip install 'llamita[zstd]'."
        ) from None
    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
            found: bytes = stream.read()
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    return found


def _column_rows(source: SourceFile, advanced: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """Rows of a Parquet or Arrow file, of the columns that some form of chats has."""
    arrow = pyarrow_for(str(source.path))
    number = 0
    try:
        for batch in _batches(source, arrow):
            for row in _python_rows(batch):
                number += 1
                yield f"{source.name}{ROW_MARK}{number}", row
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"{source.path} cannot be read: {reason}; mend or remove it.") from error
    advanced(source.size)


def _batches(source: SourceFile, arrow: Any) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with source.path.open("rb") as stream:
        head = stream.read(6)
    if head.startswith(b"PAR1"):
        with pq.ParquetFile(str(source.path)) as opened:
            names = _chosen(opened.schema_arrow.names)
            yield from opened.iter_batches(batch_size=_BATCH_ROWS, columns=names)
        return
    with arrow.memory_map(str(source.path)) as mapped:
        if head == b"ARROW1":
            reader = arrow.ipc.open_file(mapped)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        else:
            yield from arrow.ipc.open_stream(mapped)


def _chosen(names: Sequence[str]) -> list[str]:
    """Of columns, those that are looked at; all, where none is, so that a message can name them."""
    return [name for name in names if name in _COLUMNS] or list(names)


def _python_rows(batch: Any) -> Iterator[Any]:
    names = _chosen(batch.schema.names)
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        try:
            yield from map(
                _without_nulls, batch.select(names).slice(start, _BATCH_ROWS).to_pylist()
            )
        except ValueError:  # one value among them is no Unicode; find out which
            for row in range(start, min(start + _BATCH_ROWS, batch.num_rows)):
                try:
                    yield _without_nulls(batch.select(names).slice(row, 1).to_pylist()[0])
                except ValueError as error:
                    yield RowError("broken UTF-8", str(error))


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns are there for every row, so that a field that a row has not is null."""
    return {name: value for name, value in row.items() if value is not None}


def _dataset_rows(
    source: SourceDataset, advanced: Callable[[int], None]
) -> Iterator[tuple[str, Any]]:
    dataset = source.dataset.with_format(None)
    if dataset.column_names is not None:
        dataset = dataset.select_columns(_chosen(dataset.column_names))
    a_row = 0 if source.streaming else source.size // max(len(dataset), 1)
    number = 0
    try:
        for row in dataset:
            number += 1
            advanced(a_row)
            try:
                value: Any = json_like(_without_nulls(row))
            except ValueError as error:
                value = RowError("a value that is no text", str(error))
            yield f"{source.name}{ROW_MARK}{number}", value
    except UserError:
        raise
    except Exception as error:  # whatever the library and its remote files raise
        if not source.from_name:
            raise  # an error of the caller's own code is the caller's to see
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            f"{source.name}: reading failed after {number:,} rows: {reason}; run the same command "
            "again."
        ) from error


def _is_json(source: SourceFile) -> bool:
    suffixes = [suffix.lower() for suffix in source.path.suffixes]
    if source.compression is not None:
        suffixes.pop()
    return suffixes[-1:] == [".json"]
