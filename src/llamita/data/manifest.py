"""The manifest: what a dataset holds, and what it was made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llamita.errors import UserError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """One file of the dataset: its name in the directory, size in bytes, BLAKE2b-256 (hex)."""

    name: str
    size: int
    blake2b: str


class ShardRecord(_Record):
    """One shard: NAME.ds, NAME.ds.index, NAME.ds.bytes, NAME.ds.metadata, and of chats and
    preferences NAME.ds.learns."""

    name: str
    documents: int
    tokens: int
    text_bytes: int
    files: tuple[FileRecord, ...]


class SplitRecord(_Record):
    """One split; `text_bytes` counts the UTF-8 bytes of its documents, of chats and preferences
    those of the text that is learnt."""

    documents: int
    tokens: int
    text_bytes: int
    shards: tuple[ShardRecord, ...]


class DatasetRecord(_Record):
    """What a source that is a dataset of the library `datasets` says of itself: a folder that it
    saved, an object with a length (`map-style`), or a stream."""

    kind: Literal["saved", "map-style", "streaming"]
    name: str | None
    config: str | None
    split: str | None
    revision: str | None
    fingerprint: str | None
    rows: int | None
    licence: str | None


class SourceRecord(_Record):
    """One source as it was given (without the path to it), with its size on disk in bytes and the
    number of records read of it (`None` in datasets built before these were counted)."""

    name: str
    files: int
    bytes: int
    licence: str | None
    records: int | None = None
    dataset: DatasetRecord | None = None


class TokenizerRecord(_Record):
    """The tokenizer that made the tokens."""

    fingerprint: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None


class BuildSettings(_Record):
    """Settings that decide the tokens; the number of workers does not."""

    text_field: str
    where: tuple[str, ...]
    validation: float
    split_by: str | None
    bos: bool
    eos: bool
    dedup: bool
    shard_tokens: int
    block_bytes: int | None
    max_bad_fraction: float
    max_documents: int | None = None
    max_tokens: int | None = None

    def for_fingerprint(self) -> dict[str, Any]:
        """All settings; a bound that is not set is left out, as before there were any."""
        values = self.model_dump()
        for bound in ("max_documents", "max_tokens"):
            if values[bound] is None:
                del values[bound]
        return values


class ChatSettings(_Record):
    """Settings that decide the tokens of chats and preferences."""

    kind: Literal["chats", "preferences"]
    template_sha256: str
    learn: Literal["assistant", "last", "all"]
    validation: float
    dedup: bool
    max_bad_fraction: float
    max_examples: int | None = None
    held_out: int = 0
    """So many sources, the first, are the validation split; 0 where it is taken by hash."""

    def for_fingerprint(self) -> dict[str, Any]:
        """All settings."""
        return self.model_dump()


Settings = BuildSettings | ChatSettings


class ChatRecord(_Record):
    """How chats or preferences became tokens.

    template: the name of the chat template; its text is in tokenizer/chat_template.jinja.
    forms: the form that each source was recognised to have.
    learning_tokens: by split, how many tokens are learnt.
    wrong: how many rows were left out for which reason.
    """

    template: str
    template_sha256: str
    learn: Literal["assistant", "last", "all"]
    forms: tuple[str, ...]
    learning_tokens: dict[str, int]
    wrong: dict[str, int]


class Counts(_Record):
    """What became of the records read. Of preferences, `documents` counts pairs."""

    records: int
    documents: int
    duplicates: int
    filtered: int
    empty: int
    bad: int
    ignored_files: int


class Manifest(_Record):
    """manifest.json. `fingerprint` depends on contents, tokenizer and settings alone: not on time,
    machine paths or number of workers. `cut` says that a bound ended the build before the sources
    did. `kind` says what a document is: a text, a chat, or one side of a preference (2j chosen,
    2j + 1 rejected); `chats` is there for the last two."""

    format_version: int
    name: str
    created_by: str
    fingerprint: str
    sources: tuple[SourceRecord, ...]
    tokenizer: TokenizerRecord
    settings: Settings
    validation_fraction: float
    token_bytes: int
    counts: Counts
    first_bad: tuple[str, ...]
    notes: tuple[str, ...]
    splits: dict[str, SplitRecord]
    cut: bool = False
    kind: Literal["text", "chats", "preferences"] = "text"
    chats: ChatRecord | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all splits."""
        return sum(split.tokens for split in self.splits.values())


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Read DIRECTORY/manifest.json.

    Raises:
        UserError: there is none (the build did not end), or it cannot be read.
    """
    file = directory / MANIFEST_NAME
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(_missing(directory)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}; build the dataset again.") from error
    try:
        raw = json.loads(text)
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{file} has format_version {version}, this llamita reads {FORMAT_VERSION}; "
                "build the dataset again with `llamita data build`."
            )
        return Manifest.model_validate_json(text)
    except UserError:
        raise
    except (ValidationError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); build the dataset again.") from error


def building_directory(out: Path) -> Path:
    """Where a build of `out` stands until it is whole."""
    return out.with_name(f".{out.name}.building")


def _missing(directory: Path) -> str:
    again = "run the same `llamita data build` again"
    if building_directory(directory).is_dir():
        return f"the build of {directory} was interrupted and never became whole; {again}."
    if directory.is_dir():
        return (
            f"{directory} has no {MANIFEST_NAME}: it is not a dataset, or not a whole one; "
            f"make one with `llamita data build SOURCES --out {directory}`."
        )
    return (
        f"there is no dataset at {directory}; make one with "
        f"`llamita data build SOURCES --out {directory}`."
    )
