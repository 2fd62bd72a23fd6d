"""The cache of models made from others: GGUF files imported, and GGUF files written for llama.cpp.

`$XDG_CACHE_HOME/llamita/gguf` (`~/.cache` where that is not set) holds a directory or a file a
model. Any of them may be deleted at any time. Together they have a bound; whenever one is added,
those that were not used for longest go. No torch.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llamita.errors import UserError

BOUND = "LLAMITA_CACHE_GB"
_DEFAULT_GB = 40.0  # three models of 3B in float32, or dozens of what runs on a laptop
# A process that reads a directory opens its files one after the other; whoever has not finished
# with them in this time has them open.
_IN_USE_SECONDS = 3600.0
_ABANDONED_SECONDS = 86400.0


def cache_root() -> Path:
    """Where cached models lie; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llamita" / "gguf"


def used(place: Path) -> None:
    """Notes that a cached model was used just now; its time of change says when it last was."""
    try:
        os.utime(place)
    except OSError:
        return  # a cache that may only be read is as good


@contextmanager
def waiting_lock(place: Path, otherwise: str) -> Iterator[None]:
    """Waits for whoever makes `place`. The lock file stays: removing it would let a third process
    lock another file of that name.

    Raises:
        UserError: the cache cannot be written; `otherwise` says what to do.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = place.with_name(f".{place.name}.lock-of-cache")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"the cache {place.parent} cannot be written ({error.strerror}); {otherwise}"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_room(kept: Path, say: Callable[[str], None]) -> None:
    """Removes what was not used for longest, until the cache is within its bound.

    Args:
        kept: what has just been added, which stays; so does what was used within the last hour.
        say: told of each model that goes, and of a bound that cannot be met.

    Raises:
        UserError: the bound in the environment is no number.
    """
    bound = _bound()
    now = time.time()
    entries = []
    for entry in kept.parent.iterdir():
        try:
            changed, size = entry.stat().st_mtime, _size(entry)
        except FileNotFoundError:
            continue  # another process is making room too
        if entry.name.startswith("."):
            if entry.is_dir() and now - changed > _ABANDONED_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        else:
            entries.append((changed, size, entry))
    total = sum(size for _, size, _ in entries)
    for changed, size, entry in sorted(entries):
        if total <= bound or now - changed < _IN_USE_SECONDS:
            break
        if entry != kept:
            _remove(entry)
            total -= size
            say(f"removed {entry.name} ({size / 1e9:.1f} GB) from the cache: unused for longest")
    if total > bound:
        say(
            f"the cache {kept.parent} holds {total / 1e9:.1f} GB, more than its {bound / 1e9:.1f}: "
            f"all of it is in use (${BOUND} sets the bound)"
        )


def _bound() -> float:
    """In bytes."""
    text = os.environ.get(BOUND, "")
    try:
        asked = float(text) if text else _DEFAULT_GB
    except ValueError:
        asked = -1.0
    if not asked >= 0:
        raise UserError(f"{BOUND} is {text!r}; write a number of GB, such as {_DEFAULT_GB:g}")
    return asked * 1e9


def _size(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(entry: Path) -> None:
    """Renamed first, so that nobody finds half of it."""
    going = entry.with_name(f".{entry.name}.old")
    try:
        entry.rename(going)
    except FileNotFoundError:
        return
    if going.is_dir():
        shutil.rmtree(going, ignore_errors=True)
    else:
        going.unlink(missing_ok=True)
