"""Directories that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamita import durable
from llamita.errors import UserError

# EFBIG: a limit on the size of files, as batch systems and containers set it.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def exclusive(out: Path, what: str) -> Iterator[None]:
    """Hold the lock of `out` (a hidden file beside it) against a second process.

    Raises:
        UserError: another process holds it, or the place cannot be written.
    """
    lock = out.with_name(f".{out.name}.lock")
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(
                f"{out} cannot be written ({error.strerror}); name another --out."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"another process is writing the {what} {out}; wait for it, or name another --out."
            ) from None
        # The holder before may have removed the file between our open and our lock.
        if lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino:
            break
        os.close(descriptor)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def fresh_directory(building: Path) -> Iterator[Path]:
    """An empty directory, removed again unless it was moved away; a full disk becomes a
    UserError."""
    if building.exists():
        shutil.rmtree(building)
    try:
        building.mkdir(parents=True)
        yield building
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(_full(building, error.strerror or "")) from error
        raise
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise UserError(_full(building, str(error))) from error
        raise
    finally:
        if building.exists():
            shutil.rmtree(building)


def publish(building: Path, out: Path) -> None:
    """Make `building`, already fsynced file by file, the directory `out`, replacing what is
    there."""
    durable.sync(building)
    old = out.with_name(f".{out.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    building.rename(out)
    durable.sync(out.parent)
    if old.exists():
        shutil.rmtree(old)


def sync_files(directory: Path) -> None:
    """Wait until every file of a directory, and its list of files, is on disk."""
    for file in directory.iterdir():
        durable.sync(file)
    durable.sync(directory)


def _full(building: Path, reason: str) -> str:
    return (
        f"no room on the disk of {building.parent} ({reason}); the unfinished files were removed. "
        "Free some space or name an --out on another disk."
    )
