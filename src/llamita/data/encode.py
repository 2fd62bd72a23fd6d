"""From documents to tokens: what a worker does with a block."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.data.blocks import Block, ParseSettings, compile_where
from llamita.data.documents import parse_block
from llamita.data.fast_encode import FastEncoder
from llamita.data.tokenizer import Tokenizer

HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """All that a worker needs; picklable."""

    tokenizer_json: str
    bos_id: int | None
    eos_id: int | None
    token_bytes: int
    parse: ParseSettings


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """The documents of a block as arrays of one entry a document, `tokens` joined.

    `hashes` are BLAKE2b-128 of the texts; `split_keys` the first 64 bits of the hash that decides
    the split, as a number. `source` and `last_file` are the block's.
    """

    tokens: NDArray[Any]
    lengths: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    hashes: list[bytes]
    split_keys: NDArray[np.uint64]
    records: int
    filtered: int
    empty: int
    bad: int
    first_bad: list[str]
    source: int
    last_file: int


class BlockEncoder:
    """Encodes blocks; holds the tokenizer and the compiled conditions."""

    def __init__(self, settings: EncodeSettings) -> None:
        self._settings = settings
        self._where = compile_where(settings.parse.where)
        self._dtype = np.dtype("<u2" if settings.token_bytes == 2 else "<u4")
        self._encoder = FastEncoder(Tokenizer(settings.tokenizer_json), self._dtype)

    def __call__(self, block: Block) -> EncodedBlock:
        parsed = parse_block(block, self._settings.parse, self._where)
        documents = parsed.documents
        hashes = [_hash(document.encoded) for document in documents]
        keys = [
            hashes[number] if document.split_key is document.encoded else _hash(document.split_key)
            for number, document in enumerate(documents)
        ]
        tokens, lengths = self._encode([document.text for document in documents])
        return EncodedBlock(
            tokens=tokens,
            lengths=lengths,
            text_bytes=np.array([len(document.encoded) for document in documents], dtype=np.int64),
            hashes=hashes,
            split_keys=np.frombuffer(b"".join(key[:8] for key in keys), dtype="<u8"),
            records=parsed.records,
            filtered=parsed.filtered,
            empty=parsed.empty,
            bad=parsed.bad,
            first_bad=parsed.first_bad,
            source=block.source,
            last_file=block.last_file,
        )

    def _encode(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        settings = self._settings
        first = [] if settings.bos_id is None else [settings.bos_id]
        last = [] if settings.eos_id is None else [settings.eos_id]
        around = (np.array(first, dtype=self._dtype), np.array(last, dtype=self._dtype))
        pieces = self._encoder(texts)
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        lengths += len(first) + len(last)
        joined = [part for piece in pieces for part in (around[0], piece, around[1])]
        empty = np.empty(0, dtype=self._dtype)
        return np.concatenate(joined) if joined else empty, lengths


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()
