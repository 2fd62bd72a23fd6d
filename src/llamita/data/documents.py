"""From files to documents, in bounded memory.

The reading side cuts files into blocks of about a megabyte at line ends; the parsing side, in a
worker, turns a block into documents. Blocks depend on the files alone, so that the documents and
their order are the same for any number of workers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal, cast

from llamita.data.sources import SNIFF_BYTES, SourceFile
from llamita.data.where import Condition, FieldError, field_of, parse_where
from llamita.errors import UserError

READ_BYTES = 1 << 20
# A longer line is a fault in the file, not a document: it is counted as bad and not held.
MAX_LINE_BYTES = 32 << 20
_MIN_BLOCK_BYTES = 2 << 10
_MAX_BLOCK_BYTES = 1 << 20
_WANTED_BLOCKS = 1000
# Fewer files than this are divided, since one file in a hundred is the usual validation split.
_FEW_FILES = 100
_KEPT_REASONS = 5
_MAX_PARTS = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one file: whole lines of records, or one document of text."""

    name: str
    line: int
    data: bytes


@dataclass(slots=True)
class Block:
    """About a megabyte of parts of one kind; `bad` names what the reader had to leave out."""

    kind: Literal["text", "records"]
    parts: list[Part] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the value whose hash decides its split."""

    text: str
    encoded: bytes
    split_key: bytes


@dataclass(slots=True)
class Parsed:
    """The documents of a block, and what became of its other records."""

    documents: list[Document] = field(default_factory=list)
    records: int = 0
    filtered: int = 0
    empty: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)

    def add_bad(self, reason: str) -> None:
        self.bad += 1
        if len(self.first_bad) < _KEPT_REASONS:
            self.first_bad.append(reason)


@dataclass(frozen=True, slots=True)
class ParseSettings:
    """How records become documents; picklable."""

    text_field: str = "text"
    where: tuple[str, ...] = ()
    split_by: str | None = None


def auto_block_bytes(files: Sequence[SourceFile]) -> int:
    """Size of the blocks that a large text file is divided into.

    1 MiB; where all the text is in fewer than 100 files, a thousandth of it but at least 2 KiB, so
    that a validation split of 1% is some ten blocks. Compressed files count four times their size.
    """
    sizes = [file.size * (4 if file.compression else 1) for file in files if file.kind == "text"]
    if len(sizes) >= _FEW_FILES:
        return _MAX_BLOCK_BYTES
    return min(_MAX_BLOCK_BYTES, max(_MIN_BLOCK_BYTES, sum(sizes) // _WANTED_BLOCKS))


def read_blocks(
    files: Sequence[SourceFile],
    block_bytes: int,
    finished: Callable[[SourceFile, str], None] | None = None,
    advanced: Callable[[int], None] | None = None,
) -> Iterator[Block]:
    """Read files in order.

    `finished(file, BLAKE2b-256 of its bytes)` is called after each file, `advanced(bytes)` after
    each read from disk.

    Raises:
        UserError: a file cannot be read, or is a damaged archive.
    """
    block, held = Block("text"), 0
    for file in files:
        if file.kind != block.kind:
            if block.parts or block.bad:
                yield block
            block, held = Block(file.kind), 0
        with _Reader(file, advanced) as reader:
            try:
                for part in _parts(file, reader, block_bytes):
                    if isinstance(part, str):
                        block.bad.append(part)
                    else:
                        block.parts.append(part)
                        held += len(part.data)
                    if held >= READ_BYTES or len(block.parts) + len(block.bad) >= _MAX_PARTS:
                        yield block
                        block, held = Block(file.kind), 0
                digest = reader.digest()
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(
                    f"{file.path} cannot be read: {error}; mend or remove it."
                ) from error
        if finished is not None:
            finished(file, digest)
    if block.parts or block.bad:
        yield block


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
        else:
            _parse_lines(part, settings, where, found)
    return found


def compile_where(where: Sequence[str]) -> list[Condition]:
    """Compile all conditions; each of them must hold."""
    return [parse_where(text) for text in where]


class _Reader:
    """A file's bytes, decompressed, while hashing what lies on disk."""

    def __init__(self, file: SourceFile, advanced: Callable[[int], None] | None = None) -> None:
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


def _parts(file: SourceFile, reader: _Reader, block_bytes: int) -> Iterator[Part | str]:
    if file.kind == "records":
        return _record_parts(file.name, reader)
    return _text_parts(file.name, reader, block_bytes)


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
            document = _parse_record(line, settings, where)
        except (ValueError, RecursionError) as error:
            found.add_bad(f"{part.name}:{number}: {_reason(error)}")
            continue
        if document is None:
            found.filtered += 1
        elif document.text.isspace() or not document.text:
            found.empty += 1
        else:
            found.documents.append(document)


def _parse_record(
    line: bytes, settings: ParseSettings, where: Sequence[Condition]
) -> Document | None:
    record = json.loads(line.decode("utf-8"))
    if not isinstance(record, dict):
        raise FieldError(f"a record must be a JSON object, this is {type(record).__name__}")
    if not all(condition(record) for condition in where):
        return None
    text = field_of(record, settings.text_field)
    if not isinstance(text, str):
        raise FieldError(
            f"field {settings.text_field!r} must be a string, it is {type(text).__name__}"
        )
    encoded = text.encode("utf-8")
    key = encoded if settings.split_by is None else _split_key(record, settings.split_by)
    return Document(text, encoded, key)


def _split_key(record: dict[str, Any], path: str) -> bytes:
    return json.dumps(field_of(record, path), sort_keys=True).encode()


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
