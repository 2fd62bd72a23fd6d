"""One split of a dataset: its documents, and text as windows, out of memory-mapped shards."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from llamita.data.manifest import ShardRecord, SplitRecord
from llamita.data.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

Integers = NDArray[Any]


class _Shard:
    def __init__(self, directory: Path, record: ShardRecord, dtype: np.dtype[Any]) -> None:
        stem = directory / f"{record.name}.ds"
        self._learns = stem.with_name(stem.name + ".learns")
        self.tokens = _map(stem, dtype, record.tokens)
        self.ends = _map(stem.with_name(stem.name + ".index"), np.dtype("<u8"), record.documents)
        self.bytes = _map(stem.with_name(stem.name + ".bytes"), np.dtype("<u8"), record.documents)

    def map_learns(self) -> Integers:
        """u8 (tokens,): 1 where a token is to be learnt. Text has no such file."""
        return _map(self._learns, np.dtype("u1"), len(self.tokens))

    def span(self, place: int) -> slice:
        """Where the shard's `place`-th document lies in it."""
        return slice(int(self.ends[place - 1]) if place else 0, int(self.ends[place]))

    def window_documents(self, start: int, length: int) -> Integers:
        """Number of the document, counted from 0 at the window's start: (length,) int32."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, start + length - 1, side="right"))
        numbers = np.zeros(length, dtype=np.int32)
        # An empty document has its end where the one before ends: it moves the number on too.
        np.add.at(numbers, self.ends[first:last].astype(np.int64) - start, 1)
        return np.cumsum(numbers, dtype=np.int32)


class DocumentStream:
    """One split of a dataset: `num_documents` documents in order, in one or more shards."""

    def __init__(self, directory: Path, split: SplitRecord, token_bytes: int) -> None:
        self.num_tokens = split.tokens
        self.num_bytes = split.text_bytes
        self.num_documents = split.documents
        self.dtype = np.dtype("<u2" if token_bytes == 2 else "<u4")
        self._shards = [_Shard(directory, shard, self.dtype) for shard in split.shards]
        self._sizes = np.array([shard.tokens for shard in split.shards], dtype=np.int64)
        counts = [shard.documents for shard in split.shards]
        self._first_documents = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document; 0 without documents."""
        return int(self.document_lengths().max(initial=0))

    def document(self, index: int) -> Integers:
        """Tokens of one document, BOS and EOS included where the build put them."""
        shard, place = self._locate_document(index)
        return self._shards[shard].tokens[self._shards[shard].span(place)]

    def document_bytes(self, index: int) -> int:
        """UTF-8 bytes of one document's text; of a chat, of the text that is learnt."""
        shard, place = self._locate_document(index)
        return int(self._shards[shard].bytes[place])

    def document_lengths(self) -> NDArray[np.int64]:
        """Tokens of every document, (num_documents,)."""
        parts = [np.diff(shard.ends.astype(np.int64), prepend=0) for shard in self._shards]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def _locate_document(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        shard = int(np.searchsorted(self._first_documents, index, side="right")) - 1
        return shard, index - int(self._first_documents[shard])


class TokenStream(DocumentStream):
    """A split of text.

    A window of T is T+1 successive tokens of one shard, so that inputs and targets are its two
    ends; window i+1 of the same shard starts at the last token of window i.
    """

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

    def rows(
        self,
        indices: Sequence[int] | Integers,
        sequence_length: int,
        *,
        document_masking: bool = False,
    ) -> Rows:
        """Windows as rows: every target counts; `documents` are there with `document_masking`."""
        windows = self.windows(indices, sequence_length)
        documents = None
        if document_masking:
            documents = self.windows_documents(indices, sequence_length)[:, :-1]
        return Rows(windows[:, :-1], windows[:, 1:], documents)

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


def _map(file: Path, dtype: np.dtype[Any], count: int) -> Integers:
    if count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,))
