"""Is a dataset still what its sources, tokenizer and settings would make?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamita.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    BuildSettings,
    Manifest,
    TokenizerRecord,
    digest_of,
)
from llamita.data.shards import open_dataset
from llamita.data.sources import SourceFile, SourceList
from llamita.durable import replace_synced
from llamita.errors import UserError

LISTING_NAME = "sources.json"


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A source file as it was read: what sources.json keeps of it."""

    source: int
    name: str
    size: int
    mtime_ns: int
    blake2b: str


def fingerprint_of(
    files: Sequence[ReadFile], tokenizer: TokenizerRecord, settings: BuildSettings
) -> str:
    """SHA-256 (hex) over names and contents of the files, the tokenizer and the settings."""
    return digest_of(
        {
            "format": FORMAT_VERSION,
            "files": [[file.source, file.name, file.size, file.blake2b] for file in files],
            "tokenizer": tokenizer.model_dump(),
            "settings": settings.model_dump(),
        }
    )


def listing_text(files: Sequence[ReadFile]) -> str:
    """The contents of sources.json, one file a line."""
    lines = ",\n".join(json.dumps(asdict(file), ensure_ascii=False) for file in files)
    return f"[\n{lines}\n]\n"


def find_reusable(
    out: Path, sources: SourceList, tokenizer: TokenizerRecord, settings: BuildSettings
) -> Manifest | None:
    """The manifest of `out` if building again would give the same, else `None`.

    A file of the same size and modification time is taken as unchanged; one of the same size and
    another time is read and its hash compared.
    """
    try:
        manifest = open_dataset(out).manifest
        old = [ReadFile(**entry) for entry in _read_listing(out)]
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return None  # damaged or interrupted: it is built again
    if (manifest.tokenizer, manifest.settings) != (tokenizer, settings):
        return None
    new = sources.files
    if [(file.source, file.name, file.size) for file in old] != [
        (file.source, file.name, file.size) for file in new
    ]:
        return None
    touched = False
    for before, now in zip(old, new, strict=True):
        if before.mtime_ns != now.mtime_ns:
            if _hash_file(now) != before.blake2b:
                return None
            touched = True
    if manifest.fingerprint != fingerprint_of(old, tokenizer, settings):
        return None
    if touched:
        files = [
            ReadFile(old_file.source, old_file.name, old_file.size, file.mtime_ns, old_file.blake2b)
            for old_file, file in zip(old, new, strict=True)
        ]
        replace_synced(out / LISTING_NAME, listing_text(files))
    return manifest


def relabelled(out: Path, manifest: Manifest, name: str, licence: str | None) -> Manifest:
    """The manifest with this name and licence, written if it had others: no token depends on
    them."""
    sources = tuple(source.model_copy(update={"licence": licence}) for source in manifest.sources)
    changed = manifest.model_copy(update={"name": name, "sources": sources})
    if changed != manifest:
        replace_synced(out / MANIFEST_NAME, changed.model_dump_json(indent=2) + "\n")
    return changed


def _read_listing(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / LISTING_NAME).read_text(encoding="utf-8"))
    return found


def _hash_file(file: SourceFile) -> str:
    digest = hashlib.blake2b(digest_size=32)
    try:
        with file.path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{file.path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
