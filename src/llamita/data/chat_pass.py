"""One reading of the sources of chats or preferences, in chunks, and what it found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from llamita.data.chat_encoding import Encoded
from llamita.data.chat_records import Example, RowError
from llamita.data.chat_sources import RowTally, read_examples
from llamita.data.dataset_sources import SourceDataset
from llamita.data.manifest import ChatSettings
from llamita.data.reuse import ReadFile
from llamita.data.sources import Source, SourceList

# Examples that are encoded, and written, together.
_CHUNK = 1024


@dataclass(slots=True)
class Chunk:
    """Examples in the order of their sources; `sources` holds each one's number in the list of
    files, `sides` its one or two encodings, or why there is none."""

    where: list[str] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    sides: list[tuple[Encoded, ...] | RowError] = field(default_factory=list)


class Pass:
    """What one pass over the sources met, and how far it is.

    examples: kept ones; held_out: those of them that sources for validation alone gave.
    learning_tokens: by split. cut: whether `max_examples` ended it.
    """

    def __init__(self, sources: SourceList, settings: ChatSettings) -> None:
        self.tally = RowTally()
        self.records_of: Counter[int] = Counter()
        self.examples = self.held_out = self.duplicates = self.bytes_read = 0
        self.cut = False
        self.smallest_keys: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self.learning_tokens = {"train": 0, "validation": 0}
        self._sources = sources
        self._settings = settings
        self._current = self._counted = 0
        self._contents = {
            number: hashlib.blake2b(digest_size=32)
            for number, source in enumerate(sources.files)
            if isinstance(source, SourceDataset)
        }

    def chunks(self) -> Iterator[Chunk]:
        """The sources' examples, wrong rows counted."""
        examples = read_examples(
            self._followed(),
            self.tally,
            kind=self._settings.kind,
            max_bad_fraction=self._settings.max_bad_fraction,
            advanced=self._advance,
        )
        while True:
            chunk = Chunk()
            for where, example in islice(examples, _CHUNK):
                chunk.where.append(where)
                chunk.sources.append(self._current)
                chunk.examples.append(example)
            self._count_rows()
            if not chunk.where:
                return
            yield chunk

    def met(self, source: int, digest: bytes) -> None:
        """An example of a source, duplicate or not: what vouches for a dataset."""
        if source in self._contents:
            self._contents[source].update(digest)

    def read_file(self, number: int, source: Source, hashes: Mapping[int, str]) -> ReadFile:
        """A source as it was read; `hashes` are the files'."""
        if isinstance(source, SourceDataset):
            digest = self._contents[number].hexdigest()
            return ReadFile(source.source, source.name, 0, 0, digest, source.token)
        return ReadFile(source.source, source.name, source.size, source.mtime_ns, hashes[number])

    def _followed(self) -> Iterator[Source]:
        for number, source in enumerate(self._sources.files):
            self._count_rows()
            self._current = number
            yield source

    def _count_rows(self) -> None:
        """Put down the rows since the last call to the source that is being read."""
        source = self._sources.files[self._current].source
        self.records_of[source] += self.tally.rows - self._counted
        self._counted = self.tally.rows

    def _advance(self, size: int) -> None:
        self.bytes_read += size
