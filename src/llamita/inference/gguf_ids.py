"""A GGUF whose tokens are all control tokens, so that llama.cpp gives every id as it comes.

llama.cpp streams text: of a character that is spread over several tokens it gives the id of the
last one and drops the others, log-probabilities too, and of a stop string it gives none. Control
tokens have no text, so nothing is held back; the text is made from the ids (text_stream.py).
Neither the weights nor the ids at which llama.cpp ends depend on a token's type.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llamita.errors import UserError
from llamita.formats.model_cache import cache_root

_TYPES = b"tokenizer.ggml.token_type"
_CONTEXT = b".context_length"
# Of the format (ggml's gguf.md): how values are marked; and of llama.cpp: LLAMA_TOKEN_TYPE_CONTROL.
_UINT32, _INT32, _ARRAY = 4, 5, 9
_CONTROL = struct.pack("<i", 3)
_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where in a GGUF the types of its tokens stand, how many tokens there are, and the context
    that the model was trained for, in tokens."""

    types_offset: int
    size: int
    context: int


def read_vocabulary(gguf: Path) -> Vocabulary:
    """What a GGUF says of its vocabulary, found by the keys (0.1 ms; a whole header takes 0.2 s).

    Raises:
        UserError: the file cannot be read, or is no GGUF of a model with a vocabulary.
    """
    try:
        with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != b"GGUF":
                raise UserError(f"{gguf} is not a GGUF file: it does not begin with GGUF")
            types = _after(data, _TYPES, struct.pack("<II", _ARRAY, _INT32))
            context = _after(data, _CONTEXT, struct.pack("<I", _UINT32))
            if types is None or context is None:
                missing = _TYPES if types is None else _CONTEXT
                raise UserError(
                    f"{gguf} says nothing of {missing.decode()}, which llama.cpp needs here: "
                    "convert the model again (llamita export MODEL --to gguf)"
                )
            (size,) = struct.unpack_from("<Q", data, types)
            (length,) = struct.unpack_from("<I", data, context)
            return Vocabulary(types + 8, size, length)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{gguf} cannot be read: {error}") from None


def _after(data: mmap.mmap, key: bytes, kind: bytes) -> int | None:
    place = data.find(key + kind)
    return None if place < 0 else place + len(key) + len(kind)


@contextmanager
def giving_ids(gguf: Path, vocabulary: Vocabulary) -> Iterator[str]:
    """A path under which llama.cpp finds `gguf` with control tokens only, while it loads.

    A copy without a name, in llamita's cache: it is gone when nothing has it open or mapped any
    more, however the process ends. A file that is of this kind already is given as it is.

    Raises:
        UserError: the cache cannot be written, or the disk is full.
    """
    try:
        copy = _copy(gguf, vocabulary)
    except OSError as error:
        raise UserError(
            f"llama.cpp is given a copy of {gguf} ({gguf.stat().st_size / 1e6:,.0f} MB), and it "
            f"cannot be written ({error.strerror or error}): make room, or set XDG_CACHE_HOME to a "
            "directory that has some"
        ) from None
    if copy is None:
        yield str(gguf)
        return
    with copy:
        yield f"/dev/fd/{copy.fileno()}"


def _copy(gguf: Path, vocabulary: Vocabulary) -> IO[bytes] | None:
    types, place = _CONTROL * vocabulary.size, cache_root()
    place.mkdir(parents=True, exist_ok=True)
    with gguf.open("rb") as file, ExitStack() as if_it_fails:
        file.seek(vocabulary.types_offset)
        if file.read(len(types)) == types:
            return None
        file.seek(0)
        copy = if_it_fails.enter_context(tempfile.TemporaryFile(dir=place))
        shutil.copyfileobj(file, copy, _AT_ONCE)
        copy.seek(vocabulary.types_offset)
        copy.write(types)
        copy.flush()
        if_it_fails.pop_all()
        return copy
