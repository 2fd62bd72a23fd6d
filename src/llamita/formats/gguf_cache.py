"""GGUF files named as a MODEL: imported once, into a cache, and found again.

A hit needs no torch and no gguf: `llamita info` and plans go this way too.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from llamita.errors import UserError
from llamita.formats.model_cache import cache_root, make_room, used, waiting_lock

# Part of every name in the cache: to be raised when the same file would be imported otherwise.
_VERSION = 1
_ENDS = 1 << 20
_SAMPLE, _NUM_SAMPLES = 1 << 16, 64


def fingerprint(path: Path) -> str:
    """A hash of a file's size and contents, which of a large file reads 6 MB.

    Of a file of more than 8 MiB the first and last MiB count, and 64 pieces of 64 KiB spread over
    what is between. Training or quantising a model again changes every tensor, so that no two
    models agree in all of that.

    Raises:
        UserError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        with path.open("rb") as file:
            if size <= 8 * _ENDS:
                digest.update(file.read())
            else:
                step = (size - 2 * _ENDS) // _NUM_SAMPLES
                places = [_ENDS + number * step for number in range(_NUM_SAMPLES)]
                ends = ((0, _ENDS), (size - _ENDS, _ENDS))
                for place, length in (*ends, *((place, _SAMPLE) for place in places)):
                    file.seek(place)
                    digest.update(file.read(length))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def cached(path: Path) -> Path:
    """The Hugging Face directory of a GGUF file, imported first if it is not in the cache.

    In the cache (`model_cache`) lies one directory a file, in float32. Of several processes one
    imports and the others wait.

    Raises:
        UserError: the file cannot be imported, or the cache not be written.
    """
    place = cache_root() / f"{path.stem}-{fingerprint(path)}-v{_VERSION}"
    if not place.is_dir():
        otherwise = (
            f"{path} has to be imported: set XDG_CACHE_HOME to a directory that can, or run "
            f"`llamita import {path} --out DIR` and name DIR"
        )
        with waiting_lock(place, otherwise):
            if not place.is_dir():
                from llamita.formats.importing import import_model

                _say(f"{path.name} is imported once, into {place}")
                import_model(path, place, say=_say)
                make_room(place, _say)
    used(place)
    return place


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
