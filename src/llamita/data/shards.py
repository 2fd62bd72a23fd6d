"""Reading a dataset: memory-mapped shards in datatrove's layout, vouched for by the manifest.

A shard is NAME.ds (tokens, little-endian u16 or u32), NAME.ds.index (u64 end of each document in
tokens), NAME.ds.metadata (tokenizer, count) and, of our own, NAME.ds.bytes (u64 UTF-8 bytes of
each document's text).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamita.data.manifest import Manifest, SplitRecord, read_manifest
from llamita.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

Integers = NDArray[Any]


class _Shard:
    def __init__(self, stem: Path, tokens: int, documents: int, dtype: np.dtype[Any]) -> None:
        self.tokens = _map(stem, dtype, tokens)
        self.ends = _map(stem.with_name(stem.name + ".index"), np.dtype("<u8"), documents)
        self.bytes = _map(stem.with_name(stem.name + ".bytes"), np.dtype("<u8"), documents)

    def window_documents(self, start: int, length: int) -> Integers:
        """Number of the document, counted from 0 at the window's start: (length,) int32."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, start + length - 1, side="right"))
        numbers = np.zeros(length, dtype=np.int32)
        # An empty document has its end where the one before ends: it moves the number on too.
        np.add.at(numbers, self.ends[first:last].astype(np.int64) - start, 1)
        return np.cumsum(numbers, dtype=np.int32)


class TokenStream:
    """One split of a dataset: `num_documents` documents in order, in one or more shards.

    A window of T is T+1 successive tokens of one shard, so that inputs and targets are its two
    ends; window i+1 of the same shard starts at the last token of window i.
    """

    def __init__(self, directory: Path, split: SplitRecord, token_bytes: int) -> None:
        self.num_tokens = split.tokens
        self.num_bytes = split.text_bytes
        self.num_documents = split.documents
        self.dtype = np.dtype("<u2" if token_bytes == 2 else "<u4")
        self._shards = [
            _Shard(directory / f"{shard.name}.ds", shard.tokens, shard.documents, self.dtype)
            for shard in split.shards
        ]
        self._sizes = np.array([shard.tokens for shard in split.shards], dtype=np.int64)
        counts = [shard.documents for shard in split.shards]
        self._first_documents = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))

    def num_windows(self, sequence_length: int) -> int:
        """Windows of `sequence_length`: the sum over shards of (tokens - 1) // sequence_length."""
        return int(self._first_windows(sequence_length)[-1])

    def window(self, index: int, sequence_length: int) -> Integers:
        """Tokens of one window: (T+1,), memory-mapped, in the shard's own type."""
        shard, start = self._locate(index, sequence_length)
        return self._shards[shard].tokens[start : start + sequence_length + 1]

    def windows(
        self,
        indices: Sequence[int] | Integers,
        sequence_length: int,
        dtype: DTypeLike = np.int64,
    ) -> Integers:
        """Tokens of n windows: (n, T+1) of `dtype`, copied.

        Raises:
            IndexError: an index is outside 0..num_windows(T)-1.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        shards, starts = self._locate_all(wanted, sequence_length)
        found = np.empty((len(wanted), sequence_length + 1), dtype=dtype)
        for number in np.unique(shards):
            rows = np.flatnonzero(shards == number)
            tokens = self._shards[number].tokens
            for row, start in zip(rows.tolist(), starts[rows].tolist(), strict=True):
                found[row] = tokens[start : start + sequence_length + 1]
        return found

    def window_documents(self, index: int, sequence_length: int) -> Integers:
        """The number of the document that each token belongs to: (T+1,) int32, from 0 on."""
        shard, start = self._locate(index, sequence_length)
        return self._shards[shard].window_documents(start, sequence_length + 1)

    def windows_documents(
        self, indices: Sequence[int] | Integers, sequence_length: int
    ) -> Integers:
        """`window_documents` of n windows: (n, T+1) int32."""
        wanted = np.asarray(indices, dtype=np.int64)
        shards, starts = self._locate_all(wanted, sequence_length)
        found = np.empty((len(wanted), sequence_length + 1), dtype=np.int32)
        for row, (shard, start) in enumerate(zip(shards.tolist(), starts.tolist(), strict=True)):
            found[row] = self._shards[shard].window_documents(start, sequence_length + 1)
        return found

    def document(self, index: int) -> Integers:
        """Tokens of one document, BOS and EOS included where the build put them."""
        shard, place = self._locate_document(index)
        ends = self._shards[shard].ends
        start = int(ends[place - 1]) if place else 0
        return self._shards[shard].tokens[start : int(ends[place])]

    def document_bytes(self, index: int) -> int:
        """UTF-8 bytes of one document's text."""
        shard, place = self._locate_document(index)
        return int(self._shards[shard].bytes[place])

    def _first_windows(self, sequence_length: int) -> Integers:
        assert sequence_length >= 1, sequence_length
        counts = np.maximum(self._sizes - 1, 0) // sequence_length
        return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))

    def _locate(self, index: int, sequence_length: int) -> tuple[int, int]:
        shards, starts = self._locate_all(np.array([index], dtype=np.int64), sequence_length)
        return int(shards[0]), int(starts[0])

    def _locate_all(self, wanted: Integers, sequence_length: int) -> tuple[Integers, Integers]:
        first = self._first_windows(sequence_length)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < first[-1]):
            outside = wanted[(wanted < 0) | (wanted >= first[-1])][0]
            raise IndexError(f"window {outside} of {first[-1]} (sequence_length {sequence_length})")
        shards = np.searchsorted(first, wanted, side="right") - 1
        return shards, (wanted - first[shards]) * sequence_length

    def _locate_document(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        shard = int(np.searchsorted(self._first_documents, index, side="right")) - 1
        return shard, index - int(self._first_documents[shard])


class Dataset:
    """A built dataset: `.train` and `.validation` are its TokenStreams."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.train = TokenStream(path, manifest.splits["train"], manifest.token_bytes)
        self.validation = TokenStream(path, manifest.splits["validation"], manifest.token_bytes)


def open_dataset(path: str | Path, *, verify: bool = False) -> Dataset:
    """Open a dataset; nothing is read into memory.

    Sizes of all files are checked always; with `verify` their hashes too (reads everything).

    Raises:
        UserError: no dataset, an interrupted build, a truncated or (with `verify`) altered file.
    """
    directory = Path(path)
    manifest = read_manifest(directory)
    for split in manifest.splits.values():
        for shard in split.shards:
            for record in shard.files:
                _check_size(directory / record.name, record.size)
                if verify:
                    _check_hash(directory / record.name, record.blake2b)
    return Dataset(directory, manifest)


def _check_size(file: Path, size: int) -> None:
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing; build the dataset again with `llamita data build`."
        ) from None
    if found != size:
        raise UserError(
            f"{file} has {found} bytes, its manifest says {size}: it was truncated or changed; "
            "build the dataset again with `llamita data build`."
        )


def _check_hash(file: Path, expected: str) -> None:
    digest = hashlib.blake2b(digest_size=32)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{file} was altered: its contents do not match the hash in the manifest; build the "
            "dataset again with `llamita data build`."
        )


def _map(file: Path, dtype: np.dtype[Any], count: int) -> Integers:
    if count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,))
