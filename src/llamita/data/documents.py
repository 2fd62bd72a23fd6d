"""From files to documents, in bounded memory.

The reading side cuts files into blocks of about a megabyte at line ends or between rows; the
parsing side, in a worker, turns a block into documents. Blocks depend on the files alone, so that
the documents and their order are the same for any number of workers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, cast

from llamita.data.blocks import (
    MAX_LINE_BYTES,
    READ_BYTES,
    Block,
    Document,
    Parsed,
    ParseSettings,
    Part,
    PartReader,
    document_of,
)
from llamita.data.columns import ColumnReader, parse_columns
from llamita.data.dataset_sources import DatasetReader, SourceDataset
from llamita.data.sources import SNIFF_BYTES, Source, SourceFile
from llamita.data.where import Condition, FieldError, Record
from llamita.errors import UserError

_MIN_BLOCK_BYTES = 2 << 10
_MAX_BLOCK_BYTES = 1 << 20
_WANTED_BLOCKS = 1000
# Fewer files than this are divided, since one file in a hundred is the usual validation split.
_FEW_FILES = 100
_MAX_PARTS = 4096


def auto_block_bytes(files: Sequence[Source]) -> int:
    """Size of the blocks that a large text file is divided into.

    1 MiB; where all the text is in fewer than 100 files, a thousandth of it but at least 2 KiB, so
    that a validation split of 1% is some ten blocks. Compressed files count four times their size.
    """
    sizes = [file.size * (4 if file.compression else 1) for file in files if file.kind == "text"]
    if len(sizes) >= _FEW_FILES:
        return _MAX_BLOCK_BYTES
    return min(_MAX_BLOCK_BYTES, max(_MIN_BLOCK_BYTES, sum(sizes) // _WANTED_BLOCKS))


def read_blocks(
    files: Sequence[Source],
    block_bytes: int,
    settings: ParseSettings | None = None,
    finished: Callable[[Source, str], None] | None = None,
    advanced: Callable[[int], None] | None = None,
) -> Iterator[Block]:
    """Read files and datasets in order.

    Of columns, those that `settings` (default: `ParseSettings()`) looks at are read.
    `finished(file, BLAKE2b-256 of its bytes)` is called after each file (with "" after a dataset,
    which has no bytes of its own), `advanced(bytes)` after each read.

    Raises:
        UserError: a file cannot be read, is a damaged archive, or lacks a column.
    """
    settings = settings or ParseSettings()
    block, held = Block("text"), 0
    for number, file in enumerate(files):
        if (file.kind, file.source) != (block.kind, block.source):
            if block.parts or block.bad:
                yield block
            block, held = Block(file.kind, file.source), 0
        with _open(file, settings, advanced) as reader:
            try:
                for part in reader.parts(block_bytes):
                    block.last_file = number
                    if isinstance(part, str):
                        block.bad.append(part)
                    else:
                        block.parts.append(part)
                        held += len(part.data)
                    if held >= READ_BYTES or len(block.parts) + len(block.bad) >= _MAX_PARTS:
                        yield block
                        block, held = Block(file.kind, file.source), 0
                digest = reader.digest()
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(
                    f"{file.path} cannot be read: {error}; mend or remove it."
                ) from error
        if finished is not None:
            finished(file, digest)
    if block.parts or block.bad:
        yield block


def check_fields(files: Sequence[Source], settings: ParseSettings) -> None:
    """Look into the schema of whatever has one, before anything is built.

    Raises:
        UserError: a file is damaged, lacks a column, or its text column holds no strings.
    """
    fields = settings.fields()
    for file in files:
        if isinstance(file, SourceDataset):
            DatasetReader(file, fields).check()
        elif file.kind == "columns":
            with ColumnReader(file, fields) as reader:
                reader.check()


def parse_block(block: Block, settings: ParseSettings, where: Sequence[Condition]) -> Parsed:
    """The documents of a block. Broken UTF-8, NUL bytes in text files, malformed JSON, missing
    fields and values that are not strings are bad records; blank texts are empty ones."""
    found = Parsed()
    for reason in block.bad:
        found.records += 1
        found.add_bad(reason)
    for part in block.parts:
        if block.kind == "text":
            found.records += 1
            _parse_text(part, found)
        elif block.kind == "records":
            _parse_lines(part, settings, where, found)
        else:
            parse_columns(part, settings, where, found)
    return found


def _open(
    file: Source, settings: ParseSettings, advanced: Callable[[int], None] | None
) -> PartReader:
    if isinstance(file, SourceDataset):
        return DatasetReader(file, settings.fields(), advanced)
    if file.kind == "columns":
        return ColumnReader(file, settings.fields(), advanced)
    return _Reader(file, advanced)


class _Reader:
    """A file's bytes, decompressed, while hashing what lies on disk."""

    def __init__(self, file: SourceFile, advanced: Callable[[int], None] | None = None) -> None:
        self._file = file
        self._advanced = advanced
        try:
            self._raw = file.path.open("rb")
        except OSError as error:
            raise UserError(f"{file.path} cannot be read: {error.strerror}.") from error
        self._hash = hashlib.blake2b(digest_size=32)
        self._stream: IO[bytes] | None = None
        if file.compression == "gz":
            self._stream = gzip.GzipFile(fileobj=self)  # type: ignore[call-overload]
        elif file.compression == "zst":
            self._stream = _open_zstd(self, file)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def read(self, size: int = -1) -> bytes:
        """Bytes as they lie on disk: what the decompressor calls."""
        data = self._raw.read(size)
        self._hash.update(data)
        if self._advanced is not None:
            self._advanced(len(data))
        return data

    def text(self, size: int) -> bytes:
        """Up to `size` bytes of contents, b"" at the end."""
        if self._stream is None:
            return self.read(size)
        try:
            return self._stream.read(size)
        except Exception as error:
            # zstandard raises its own ZstdError, which is not imported where it is not installed
            if type(error).__name__ == "ZstdError":
                raise OSError(str(error)) from error
            raise

    def parts(self, block_bytes: int) -> Iterator[Part | str]:
        if self._file.kind == "records":
            return _record_parts(self._file.name, self)
        return _text_parts(self._file.name, self, block_bytes)

    def digest(self) -> str:
        while self.read(READ_BYTES):
            pass
        return self._hash.hexdigest()


def _open_zstd(reader: _Reader, file: SourceFile) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{file.path} needs the package zstandard: pip install 'llamita[zstd]'."
        ) from None
    stream: IO[bytes] = zstandard.ZstdDecompressor().stream_reader(
        cast("IO[bytes]", reader), read_across_frames=True
    )
    return stream


def _record_parts(name: str, reader: _Reader) -> Iterator[Part | str]:
    rest = b""
    line = 1
    skipping = False
    while chunk := reader.text(READ_BYTES):
        if skipping:
            end = chunk.find(b"\n")
            if end < 0:
                continue
            chunk, skipping, line = chunk[end + 1 :], False, line + 1
        end = chunk.rfind(b"\n")
        if end >= 0:
            data = rest + chunk[: end + 1]
            yield Part(name, line, data)
            line += data.count(b"\n")
            rest = chunk[end + 1 :]
        else:
            rest += chunk
        if len(rest) > MAX_LINE_BYTES:
            yield f"{name}:{line}: a line longer than {MAX_LINE_BYTES >> 20} MiB"
            rest, skipping = b"", True
    if rest:
        yield Part(name, line, rest)


def _text_parts(name: str, reader: _Reader, block_bytes: int) -> Iterator[Part | str]:
    rest = reader.text(READ_BYTES)
    if b"\0" in rest[:SNIFF_BYTES]:
        yield f"{name}: a binary file (it has NUL bytes)"
        return
    rest = rest.removeprefix(b"\xef\xbb\xbf")
    line = 1
    more = True
    while True:
        while more and len(rest) <= 2 * block_bytes:
            chunk = reader.text(READ_BYTES)
            more = bool(chunk)
            rest += chunk
        start = 0
        while len(rest) - start > (2 * block_bytes if more else block_bytes):
            end = _cut(rest, start, block_bytes)
            data = rest[start:end]
            yield Part(name, line, data)
            line += data.count(b"\n")
            start = end
        rest = rest[start:]
        if not more:
            break
    if rest or line == 1:  # an empty file is a record too, to be counted as empty
        yield Part(name, line, rest)


def _cut(data: bytes, start: int, size: int) -> int:
    """End of a block from `start`: after the last line end within `size`, else after the first one
    up to twice as far, else between two characters."""
    end = data.rfind(b"\n", start, start + size) + 1
    if end:
        return end
    end = data.find(b"\n", start + size, start + 2 * size) + 1
    if end:
        return end
    end = start + size
    while end > start + size - 3 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _parse_text(part: Part, found: Parsed) -> None:
    where = part.name if part.line == 1 else f"{part.name}:{part.line}"
    if b"\0" in part.data:
        found.add_bad(f"{where}: binary (it has NUL bytes)")
        return
    try:
        text = part.data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = part.line + part.data.count(b"\n", 0, error.start)
        found.add_bad(f"{part.name}:{line}: broken UTF-8 ({error.reason})")
        return
    if not text or text.isspace():
        found.empty += 1
        return
    found.documents.append(Document(text, part.data, part.data))


def _parse_lines(
    part: Part, settings: ParseSettings, where: Sequence[Condition], found: Parsed
) -> None:
    for number, line in enumerate(part.data.split(b"\n"), part.line):
        if not line or line.isspace():
            continue
        found.records += 1
        try:
            found.add(document_of(_record(line), settings, where))
        except (ValueError, RecursionError) as error:
            found.add_bad(f"{part.name}{part.mark}{number}: {_reason(error)}")


def _record(line: bytes) -> Record:
    record = json.loads(line.decode("utf-8"))
    if not isinstance(record, dict):
        raise FieldError(f"a record must be a JSON object, this is {type(record).__name__}")
    return record


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"malformed JSON ({error.msg}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"broken UTF-8 ({error.reason})"
    if isinstance(error, UnicodeEncodeError):
        return "broken Unicode (a lone surrogate)"
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    return str(error)
