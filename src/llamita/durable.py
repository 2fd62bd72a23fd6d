"""Files that are on disk before anything relies on them."""

from __future__ import annotations

import os
from pathlib import Path

from llamita.errors import UserError


def sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, text: str) -> None:
    """Write a small file and wait until it is on disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def replace_synced(path: Path, text: str) -> None:
    """Replace a small file so that a reader, or a crash, sees the old text or the new one.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_synced(temporary, text)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}") from error
