"""What passes between reading and encoding: parts, blocks, documents; and how a record becomes a
document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from llamita.data.where import Condition, FieldError, Record, field_of, fields_of, parse_where

READ_BYTES = 1 << 20
ROW_MARK = ", row "
# A longer line or text is a fault in the file, not a document: it is counted as bad.
MAX_LINE_BYTES = 32 << 20
_KEPT_REASONS = 5

Kind = Literal["text", "records", "columns"]


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one file: whole lines of records, rows as an Arrow stream, or one document of text.
    `line` is the number of the first line or row, from 1; `mark` stands before such a number."""

    name: str
    line: int
    data: bytes
    mark: str = ":"


class PartReader(Protocol):
    """An open file or dataset; a context manager that closes it."""

    def __enter__(self) -> PartReader: ...

    def __exit__(self, *_: object) -> None: ...

    def parts(self, block_bytes: int) -> Iterator[Part | str]:
        """What it holds, in order; a string is the reason of a record that had to be left out."""
        ...

    def digest(self) -> str:
        """BLAKE2b-256 (hex) of a file's bytes, once all parts were taken; "" of a dataset."""
        ...


@dataclass(slots=True)
class Block:
    """About a megabyte of parts of one kind and one source; `bad` names what the reader had to
    leave out. `last_file` is the place, in the list of files, of the last one with a part here."""

    kind: Kind
    source: int = 0
    last_file: int = 0
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

    def add(self, document: Document | None) -> None:
        """Count a record that could be read: `None` is one that `where` leaves out."""
        if document is None:
            self.filtered += 1
        elif document.text.isspace() or not document.text:
            self.empty += 1
        else:
            self.documents.append(document)


@dataclass(frozen=True, slots=True)
class ParseSettings:
    """How records become documents; picklable."""

    text_field: str = "text"
    where: tuple[str, ...] = ()
    split_by: str | None = None

    def fields(self) -> tuple[str, ...]:
        """The fields that are looked at, the text first, each once."""
        looked_at = [self.text_field]
        looked_at += [name for text in self.where for name in fields_of(text)]
        if self.split_by is not None:
            looked_at.append(self.split_by)
        return tuple(dict.fromkeys(looked_at))


def compile_where(where: Sequence[str]) -> list[Condition]:
    """Compile all conditions; each of them must hold."""
    return [parse_where(text) for text in where]


def document_of(
    record: Record, settings: ParseSettings, where: Sequence[Condition]
) -> Document | None:
    """The document of a record, `None` if a condition does not hold.

    Raises:
        FieldError: a field is missing, or the text is no string or above 32 MiB.
        UnicodeEncodeError: the text has a lone surrogate.
    """
    if not all(condition(record) for condition in where):
        return None
    text = field_of(record, settings.text_field)
    if not isinstance(text, str):
        raise FieldError(
            f"field {settings.text_field!r} must be a string, it is {type(text).__name__}"
        )
    encoded = text.encode("utf-8")
    if len(encoded) > MAX_LINE_BYTES:
        raise FieldError(f"a text longer than {MAX_LINE_BYTES >> 20} MiB")
    key = encoded if settings.split_by is None else _split_key(record, settings.split_by)
    return Document(text, encoded, key)


def _split_key(record: Record, path: str) -> bytes:
    return json.dumps(field_of(record, path), sort_keys=True).encode()


def json_like(value: Any) -> Any:
    """`value` of only what JSON has: dates and times as ISO 8601, decimals as numbers.

    Raises:
        FieldError: it is or holds something that JSON has no form for, such as bytes.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(name): json_like(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_like(inner) for inner in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__name__ == "Decimal":
        return float(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return json_like(value.tolist())
    raise FieldError(f"a value of type {type(value).__name__}, which no condition compares")
