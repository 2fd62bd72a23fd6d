"""Exact deduplication by hash, on disk, in bounded memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CACHE_KIB = 32 << 10


class SeenHashes:
    """The set of hashes met so far: a SQLite table with a 32 MiB page cache.

    Its file needs about 30 bytes a document and no durability: it dies with the build.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._database = sqlite3.connect(file, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, hashes: Sequence[bytes]) -> NDArray[np.bool_]:
        """Add hashes in order; `True` for those not met before."""
        new = np.empty(len(hashes), dtype=np.bool_)
        execute = self._database.execute
        for place, value in enumerate(hashes):
            new[place] = execute("INSERT OR IGNORE INTO seen VALUES (?)", (value,)).rowcount == 1
        return new

    def close(self) -> None:
        self._database.close()
        self._file.unlink(missing_ok=True)
