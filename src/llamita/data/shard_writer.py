"""Writing shards in datatrove's layout."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.data.manifest import FileRecord, ShardRecord, SplitRecord


class _HashedFile:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.blake2b(digest_size=32)
        self._stream = path.open("wb")

    def write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> FileRecord:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return FileRecord(name=self.path.name, size=self.size, blake2b=self._hash.hexdigest())

    def abandon(self) -> None:
        self._stream.close()


class SplitWriter:
    """Writes one split as shards NAME-00000.ds, NAME-00001.ds ...; a document is never divided.

    A shard ends with the document that brings it to `shard_tokens`. `tokenizer_name` goes into the
    .metadata file, as datatrove writes it. With `marks`, .ds.learns says of each token whether it
    is learnt.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        token_bytes: int,
        shard_tokens: int,
        tokenizer_name: str,
        *,
        marks: bool = False,
    ) -> None:
        self._directory = directory
        self._name = name
        self._token_bytes = token_bytes
        self.dtype = np.dtype("<u2" if token_bytes == 2 else "<u4")
        self._shard_tokens = shard_tokens
        self._tokenizer_name = tokenizer_name
        self._endings = ("", ".index", ".bytes", *((".learns",) if marks else ()))
        self._shards: list[ShardRecord] = []
        self._files: tuple[_HashedFile, ...] | None = None
        self._tokens = self._documents = self._text_bytes = 0

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        for file in self._files or ():
            file.abandon()

    @property
    def num_documents(self) -> int:
        return self._documents + sum(shard.documents for shard in self._shards)

    @property
    def num_tokens(self) -> int:
        return self._tokens + sum(shard.tokens for shard in self._shards)

    def write(
        self,
        tokens: NDArray[Any],
        lengths: NDArray[np.int64],
        text_bytes: NDArray[np.int64],
        learns: NDArray[np.bool_] | None = None,
    ) -> None:
        """Append documents: their tokens joined, the length and text bytes of each, and with
        `marks` which of the tokens are learnt."""
        assert (learns is not None) == (".learns" in self._endings), "marks go with `marks`"
        ends = np.cumsum(lengths)
        first, start = 0, 0
        while first < len(lengths):
            room = self._shard_tokens - self._tokens
            # The document that reaches the limit still belongs to this shard.
            last = int(np.searchsorted(ends, start + room, side="left")) + 1
            last = min(last, len(lengths))
            end = int(ends[last - 1])
            marks = None if learns is None else learns[start:end]
            self._append(tokens[start:end], ends[first:last] - start, text_bytes[first:last], marks)
            if self._tokens >= self._shard_tokens:
                self._end_shard()
            first, start = last, end

    def finish(self) -> SplitRecord:
        """Close the last shard, everything fsynced."""
        if self._files is not None:
            self._end_shard()
        return SplitRecord(
            documents=sum(shard.documents for shard in self._shards),
            tokens=sum(shard.tokens for shard in self._shards),
            text_bytes=sum(shard.text_bytes for shard in self._shards),
            shards=tuple(self._shards),
        )

    def _append(
        self,
        tokens: NDArray[Any],
        ends: NDArray[np.int64],
        text_bytes: NDArray[np.int64],
        learns: NDArray[np.bool_] | None,
    ) -> None:
        if self._files is None:
            stem = self._directory / f"{self._name}-{len(self._shards):05d}.ds"
            self._files = tuple(
                _HashedFile(stem.with_name(stem.name + ending)) for ending in self._endings
            )
        self._files[0].write(tokens.tobytes())
        self._files[1].write((ends + self._tokens).astype("<u8").tobytes())
        self._files[2].write(text_bytes.astype("<u8").tobytes())
        if learns is not None:
            self._files[3].write(learns.astype("u1").tobytes())
        self._tokens += len(tokens)
        self._documents += len(ends)
        self._text_bytes += int(text_bytes.sum())

    def _end_shard(self) -> None:
        assert self._files is not None
        stem = self._files[0].path
        metadata = _HashedFile(stem.with_name(stem.name + ".metadata"))
        lines = (
            f"{self._tokenizer_name}|{self._token_bytes}",
            str(self._tokens),
            metric(self._tokens),
        )
        metadata.write("\n".join(lines).encode())
        records = [file.finish() for file in (*self._files, metadata)]
        self._files = None
        self._shards.append(
            ShardRecord(
                name=stem.name.removesuffix(".ds"),
                documents=self._documents,
                tokens=self._tokens,
                text_bytes=self._text_bytes,
                files=tuple(records),
            )
        )
        self._tokens = self._documents = self._text_bytes = 0


def metric(tokens: int) -> str:
    """A count of tokens in words, three digits, as datatrove has it: 1234567 -> "1.23 MT"."""
    value, place = float(tokens), 0
    prefixes = ("", "k", "M", "G", "T", "P")
    while value >= 1000 and place < len(prefixes) - 1:
        value, place = value / 1000, place + 1
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {prefixes[place]}T"
