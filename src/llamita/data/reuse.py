"""Is a dataset still what its sources, tokenizer and settings would make?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llamita.data.dataset_sources import SourceDataset
from llamita.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    DatasetRecord,
    Manifest,
    Settings,
    TokenizerRecord,
    digest_of,
)
from llamita.data.shards import open_dataset
from llamita.data.sources import Source, SourceFile, SourceList
from llamita.durable import replace_synced
from llamita.errors import UserError

LISTING_NAME = "sources.json"


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A source file or dataset as it was read: what sources.json keeps of it.

    Of a dataset, `size` and `blake2b` are over the documents that became of it, in order, and
    `token` is what its library knows it by (`None` of a file).
    """

    source: int
    name: str
    size: int
    mtime_ns: int
    blake2b: str
    token: str | None = None

    def content(self) -> list[int | str]:
        """What the dataset's fingerprint takes of it. A dataset counts by its documents alone, so
        that a stream and the same rows on disk are one."""
        name = self.name if self.token is None else "dataset"
        return [self.source, name, self.size, self.blake2b]

    def is_surely(self, now: Source) -> bool:
        """Is it of the same name and size, and if a dataset, one whose library vouches for it?"""
        if isinstance(now, SourceDataset):
            same = (self.source, self.name, self.token) == (now.source, now.name, now.token)
            return same and bool(self.token)
        same = (self.source, self.name, self.size) == (now.source, now.name, now.size)
        return same and self.token is None


def fingerprint_of(
    files: Sequence[ReadFile], tokenizer: TokenizerRecord, settings: Settings
) -> str:
    """SHA-256 (hex) over names and contents of the files, the tokenizer and the settings."""
    return digest_of(
        {
            "format": FORMAT_VERSION,
            "files": [file.content() for file in files],
            "tokenizer": tokenizer.model_dump(),
            "settings": settings.for_fingerprint(),
        }
    )


def listing_text(files: Sequence[ReadFile]) -> str:
    """The contents of sources.json, one file a line."""
    entries = ({k: v for k, v in asdict(file).items() if v is not None} for file in files)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f"[\n{lines}\n]\n"


def find_reusable(
    out: Path, sources: SourceList, tokenizer: TokenizerRecord, settings: Settings
) -> Manifest | None:
    """The manifest of `out` if building again would give the same, else `None`.

    A file of the same size and modification time is taken as unchanged; one of the same size and
    another time is read and its hash compared. A dataset is taken as unchanged if its library
    knows it by the same fingerprint; a stream has none, unless a commit is named.
    """
    try:
        manifest = open_dataset(out).manifest
        old = [ReadFile(**entry) for entry in _read_listing(out)]
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return None  # damaged or interrupted: it is built again
    if (manifest.tokenizer, manifest.settings) != (tokenizer, settings):
        return None
    # A build that a bound ended read no further than its last file.
    new = sources.files[: len(old)] if manifest.cut else sources.files
    if len(old) != len(new) or not all(
        before.is_surely(now) for before, now in zip(old, new, strict=True)
    ):
        return None
    touched = False
    for before, now in zip(old, new, strict=True):
        if before.mtime_ns != now.mtime_ns and isinstance(now, SourceFile):
            if hash_file(now) != before.blake2b:
                return None
            touched = True
    if manifest.fingerprint != fingerprint_of(old, tokenizer, settings):
        return None
    if touched:
        files = [
            replace(old_file, mtime_ns=file.mtime_ns)
            for old_file, file in zip(old, new, strict=True)
        ]
        replace_synced(out / LISTING_NAME, listing_text(files))
    return manifest


def relabelled(out: Path, manifest: Manifest, name: str, licence: str | None) -> Manifest:
    """The manifest with this name and licence, written if it had others: no token depends on
    them."""
    sources = tuple(
        source.model_copy(update={"licence": licence_of(licence, source.dataset)})
        for source in manifest.sources
    )
    changed = manifest.model_copy(update={"name": name, "sources": sources})
    if changed != manifest:
        replace_synced(out / MANIFEST_NAME, changed.model_dump_json(indent=2) + "\n")
    return changed


def licence_of(given: str | None, dataset: DatasetRecord | None) -> str | None:
    """The licence that was given, else the one that the dataset names itself."""
    return given or (dataset.licence if dataset is not None else None)


def _read_listing(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / LISTING_NAME).read_text(encoding="utf-8"))
    return found


def hash_file(file: SourceFile) -> str:
    """BLAKE2b-256 (hex) of a file's bytes."""
    digest = hashlib.blake2b(digest_size=32)
    try:
        with file.path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{file.path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
