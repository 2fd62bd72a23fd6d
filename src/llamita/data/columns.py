"""Parquet and Arrow files (extra `parquet`): the columns that are needed, a few rows at a time.

Rows travel to the workers as small Arrow streams. So the reading side copies columns and never
makes a Python object of a row.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.data.blocks import (
    READ_BYTES,
    ROW_MARK,
    Parsed,
    ParseSettings,
    Part,
    document_of,
    json_like,
)
from llamita.data.where import Condition, FieldError
from llamita.errors import UserError

if TYPE_CHECKING:
    from llamita.data.sources import SourceFile

_MAX_ROWS = 4096
_IPC_FILE, _PARQUET, _FEATHER_1 = b"ARROW1", b"PAR1", b"FEA1"
# How an Arrow stream ends: a continuation mark and a length of 0 (Arrow's columnar format, IPC).
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def pyarrow_for(name: str) -> Any:
    """The module pyarrow.

    Raises:
        UserError: it is not installed; `name` is what needs it.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise UserError(
            f"{name} needs the package pyarrow: pip install 'llamita[parquet]'."
        ) from None
    return pyarrow


class ColumnReader:
    """The rows of one Parquet or Arrow file, while its bytes are hashed on another thread."""

    def __init__(
        self,
        file: SourceFile,
        fields: Sequence[str],
        advanced: Callable[[int], None] | None = None,
    ) -> None:
        self._file = file
        self._fields = fields
        self._advanced = advanced
        self._arrow = pyarrow_for(str(file.path))
        self._reported = 0
        self._hash = _FileHash(file.path)

    def __enter__(self) -> ColumnReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._hash.stop()

    def check(self) -> None:
        """Read the schema alone.

        Raises:
            UserError: the file is damaged, lacks a column, or its text column holds no strings.
        """
        self._guarded(lambda: next(iter(self._batches(schema_only=True)), None))

    def parts(self, block_bytes: int) -> Iterator[Part | str]:
        self._hash.start()
        batches = iter(self._batches())
        row = 1
        while (batch := self._guarded(lambda: next(batches, None))) is not None:
            yield from parts_of(batch, self._file.name, row)
            row += batch.num_rows

    def digest(self) -> str:
        self._report(1.0)
        return self._hash.result()

    def _guarded(self, step: Callable[[], Any]) -> Any:
        """`step()`, with what Arrow raises for a damaged file as a UserError."""
        try:
            return step()
        except (self._arrow.ArrowException, OSError, EOFError) as error:
            reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
            raise UserError(
                f"{self._file.path} cannot be read: {reason}; mend or remove it."
            ) from error

    def _batches(self, *, schema_only: bool = False) -> Iterator[Any]:
        with self._file.path.open("rb") as stream:
            head = stream.read(6)
        if head.startswith(_PARQUET):
            return self._parquet(schema_only)
        if head.startswith(_FEATHER_1):
            raise UserError(
                f"{self._file.path} is Feather of version 1, which is not read; write it again as "
                "version 2 (pyarrow.feather.write_feather)."
            )
        if self._file.path.suffix.lower() == ".parquet":
            raise UserError(
                f"{self._file.path} is no Parquet file (it does not begin with PAR1); mend or "
                "remove it."
            )
        if head == _IPC_FILE:
            return self._ipc_file(schema_only)
        return self._ipc_stream(schema_only)

    def _parquet(self, schema_only: bool) -> Iterator[Any]:
        import pyarrow.parquet as pq

        # Without pre-buffering and with a buffer, a row group of any size is read page by page.
        with pq.ParquetFile(
            str(self._file.path), pre_buffer=False, buffer_size=READ_BYTES
        ) as opened:
            columns = columns_for(opened.schema_arrow, self._fields, str(self._file.path))
            if schema_only:
                return
            done, whole = 0, max(opened.metadata.num_rows, 1)
            for number in range(opened.num_row_groups):
                group = opened.metadata.row_group(number)
                rows = _rows_of(_column_bytes(group, columns), group.num_rows)
                for batch in opened.iter_batches(
                    batch_size=rows, row_groups=[number], columns=columns, use_threads=False
                ):
                    done += batch.num_rows
                    self._report(done / whole)
                    yield batch

    def _ipc_file(self, schema_only: bool) -> Iterator[Any]:
        ipc = self._arrow.ipc
        with self._arrow.memory_map(str(self._file.path)) as source:
            schema = ipc.open_file(source).schema
            options = self._chosen(schema)
            if schema_only:
                return
            reader = ipc.open_file(source, options=options)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                _check_offsets(batch)
                self._report((number + 1) / reader.num_record_batches)
                yield batch

    def _ipc_stream(self, schema_only: bool) -> Iterator[Any]:
        ipc = self._arrow.ipc
        with self._file.path.open("rb") as stream:
            stream.seek(max(0, self._file.size - len(_END_OF_STREAM)))
            ended = stream.read() == _END_OF_STREAM
        with self._arrow.memory_map(str(self._file.path)) as source:
            options = self._chosen(ipc.open_stream(source).schema)
            if not ended:
                raise UserError(
                    f"{self._file.path} ends without Arrow's mark of the end of a stream, so a "
                    "part of it may be missing; write it again, and close its writer."
                )
            if schema_only:
                return
            source.seek(0)
            for batch in ipc.open_stream(source, options=options):
                _check_offsets(batch)
                self._report(source.tell() / max(self._file.size, 1))
                yield batch

    def _chosen(self, schema: Any) -> Any:
        """Options that leave all but the needed columns undecoded."""
        columns = columns_for(schema, self._fields, str(self._file.path))
        tops = {name if name in schema.names else name.split(".")[0] for name in columns}
        return self._arrow.ipc.IpcReadOptions(
            included_fields=sorted(schema.get_field_index(name) for name in tops),
            use_threads=False,
        )

    def _report(self, share: float) -> None:
        reached = int(share * self._file.size)
        if self._advanced is not None and reached > self._reported:
            self._advanced(reached - self._reported)
            self._reported = reached


class _FileHash:
    """BLAKE2b-256 of a file, on its own thread: hashing lets go of the interpreter's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._digest = ""
        self._error: OSError | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="llamita-hash", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def result(self) -> str:
        assert self._thread is not None
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest

    def _run(self) -> None:
        digest = hashlib.blake2b(digest_size=32)
        try:
            with self._path.open("rb") as stream:
                while not self._stopped.is_set() and (chunk := stream.read(READ_BYTES)):
                    digest.update(chunk)
        except OSError as error:
            self._error = error
        self._digest = digest.hexdigest()


def columns_for(schema: Any, fields: Sequence[str], name: str) -> list[str]:
    """The columns, or parts of nested ones, that `fields` need; the text's field comes first.

    Raises:
        UserError: one is not there, or the first has a type that is not of strings.
    """
    for number, path in enumerate(fields):
        found = _type_of(schema, path)
        if found is None:
            columns = ", ".join(map(repr, schema.names[:12])) or "none"
            option = "--text-field" if number == 0 else "--where or --split-by"
            raise UserError(
                f"{name} has no column {path!r} (columns: {columns}); name another with {option}, "
                "or leave this source out."
            )
        if number == 0 and not _holds_strings(found):
            raise UserError(
                f"{name}: column {path!r} is {found}, and text must be strings; name another "
                "column with --text-field."
            )
        if schema.names.count(path) > 1:
            raise UserError(f"{name} has several columns {path!r}; give each its own name.")
    return list(fields)


def _type_of(schema: Any, path: str) -> Any:
    """The Arrow type at a column or, with dots, inside a struct; `None` where there is none."""
    import pyarrow as pa

    if path in schema.names:
        return schema.types[schema.names.index(path)]
    first, *rest = path.split(".")
    if first not in schema.names or not rest:
        return None
    found = schema.types[schema.names.index(first)]
    for part in rest:
        if not pa.types.is_struct(found) or found.get_field_index(part) < 0:
            return None
        found = found.field(part).type
    return found


def _holds_strings(kind: Any) -> bool:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    view = getattr(types, "is_string_view", lambda _: False)
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind) or view(kind)
    )


def _column_bytes(group: Any, columns: Sequence[str]) -> int:
    """Uncompressed size of these columns in a Parquet row group."""
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in columns)
    )


def _rows_of(num_bytes: int, num_rows: int) -> int:
    """Rows that are about a megabyte, where so many are so large."""
    return min(_MAX_ROWS, max(1, READ_BYTES * num_rows // max(num_bytes, 1)))


def _check_offsets(batch: Any) -> None:
    """Raise ArrowInvalid if a column of a damaged file points outside its own memory."""
    import pyarrow as pa

    for column in batch.columns:
        # Broken UTF-8 is a fault of one row and found later; only where strings lie counts here.
        if pa.types.is_string(column.type):
            column = column.cast(pa.binary())
        elif pa.types.is_large_string(column.type):
            column = column.cast(pa.large_binary())
        column.validate(full=True)


def parts_of(batch: Any, name: str, first_row: int) -> Iterator[Part]:
    """A record batch as parts of about a megabyte, each an Arrow stream."""
    import pyarrow as pa

    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    rows = min(_MAX_ROWS, _rows_of(batch.nbytes, batch.num_rows))
    for start in range(0, batch.num_rows, rows):
        piece = batch.slice(start, rows)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, piece.schema) as writer:
            writer.write_batch(piece)
        yield Part(name, first_row + start, sink.getvalue().to_pybytes(), ROW_MARK)


class _Unreadable:
    """Stands for a value that Arrow cannot turn into a Python object."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def parse_columns(
    part: Part, settings: ParseSettings, where: Sequence[Condition], found: Parsed
) -> None:
    """Add the documents of a part that `parts_of` made: what a worker does."""
    import pyarrow as pa

    with pa.ipc.open_stream(part.data) as stream:
        batch = stream.read_next_batch()
    names = batch.schema.names
    values = [_values(column) for column in batch.columns]
    for row, entries in enumerate(zip(*values, strict=True), part.line):
        found.records += 1
        try:
            for entry in entries:
                if isinstance(entry, _Unreadable):
                    raise FieldError(entry.reason)
            record = dict(zip(names, entries, strict=True))
            found.add(document_of(record, settings, where))
        except ValueError as error:
            found.add_bad(f"{part.name}{part.mark}{row}: {error}")


def _values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        # Some value among them is at fault; find out which.
        values = list(map(_value, column))
    if all(isinstance(value, str) for value in values):
        return values
    return [_json_like(value) for value in values]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return _Unreadable(f"broken UTF-8 ({error.reason})")
    except (ValueError, OverflowError) as error:
        return _Unreadable(str(error))


def _json_like(value: Any) -> Any:
    if isinstance(value, _Unreadable):
        return value
    try:
        return json_like(value)
    except FieldError as error:
        return _Unreadable(str(error))


def rows_in_order(tables: Iterable[Any]) -> Iterator[Any]:
    """The record batches of tables."""
    return itertools.chain.from_iterable(table.to_batches() for table in tables)
