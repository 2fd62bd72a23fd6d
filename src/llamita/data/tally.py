"""What a build has met so far, and when that is too bad to go on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.data.dataset_sources import SourceDataset
from llamita.data.encode import EncodedBlock
from llamita.data.manifest import BuildSettings
from llamita.data.reuse import ReadFile, hash_file
from llamita.data.sources import Source
from llamita.errors import UserError

_ALLOWED_BAD = 10
_WANTED_VALIDATION_DOCUMENTS = 10


class _Content:
    """The documents of a dataset, hashed in order. It is what vouches for a dataset, since a
    stream has no bytes on disk and a library's own fingerprint says how rows were made."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self.num_bytes = 0

    def add(self, block: EncodedBlock, end: int) -> None:
        self._hash.update(b"".join(block.hashes[:end]))
        self._hash.update(block.split_keys[:end].tobytes())
        self.num_bytes += int(block.text_bytes[:end].sum())

    def digest(self) -> str:
        return self._hash.hexdigest()


@dataclass(slots=True)
class Tally:
    """What one pass over the sources found."""

    sources: Sequence[Source]
    records: int = 0
    documents: int = 0
    tokens: int = 0
    duplicates: int = 0
    filtered: int = 0
    empty: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    smallest_keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    records_of: Counter[int] = field(default_factory=Counter)
    cut: bool = False
    _digests: list[str] = field(default_factory=list)
    _contents: dict[int, _Content] = field(default_factory=dict)
    _last_file: int = -1

    def finished(self, _: Source, digest: str) -> None:
        """A file was read to its end: called in the order of the files."""
        self._digests.append(digest)

    def add(
        self, block: EncodedBlock, kept: NDArray[np.bool_], settings: BuildSettings
    ) -> NDArray[np.bool_]:
        """Count a block of which `kept`, one entry a document, are no duplicates.

        Returns `kept` without the documents after the one that reaches `max_documents` or
        `max_tokens`; `cut` is then true.
        """
        end = self._end(block, kept, settings)
        self.records += block.records
        self.records_of[block.source] += block.records
        self.filtered += block.filtered
        self.empty += block.empty
        self.bad += block.bad
        self.first_bad = (self.first_bad + block.first_bad)[:5]
        self.duplicates += int(end - kept[:end].sum())
        self._last_file = block.last_file
        if isinstance(self.sources[block.last_file], SourceDataset):
            self._contents.setdefault(block.last_file, _Content()).add(block, end)
        kept = kept & (np.arange(len(kept)) < end)
        self.documents += int(kept.sum())
        self.tokens += int(block.lengths[kept].sum())
        smallest = np.unique(np.concatenate((self.smallest_keys, block.split_keys[kept])))
        self.smallest_keys = smallest[: _WANTED_VALIDATION_DOCUMENTS + 1]
        return kept

    def _end(self, block: EncodedBlock, kept: NDArray[np.bool_], settings: BuildSettings) -> int:
        """How many of the block's documents there are until a bound is reached."""
        end = len(kept)
        bounds: list[tuple[int | None, int, NDArray[Any]]] = [
            (settings.max_documents, self.documents, kept.astype(np.int64)),
            (settings.max_tokens, self.tokens, np.where(kept, block.lengths, 0)),
        ]
        for bound, before, counts in bounds:
            if bound is None:
                continue
            reached = np.flatnonzero(before + np.cumsum(counts) >= bound)
            if len(reached):
                self.cut = True
                end = min(end, int(reached[0]) + 1)
        return end

    def read_files(self) -> list[ReadFile]:
        """The files and datasets that decided the result, as they were read: where a bound ended
        the build, up to the file in which it did."""
        sources = self.sources[: self._last_file + 1] if self.cut else self.sources
        return [self._read_file(number, source) for number, source in enumerate(sources)]

    def _read_file(self, number: int, source: Source) -> ReadFile:
        if isinstance(source, SourceDataset):
            content = self._contents.get(number, _Content())
            size, digest = content.num_bytes, content.digest()
            return ReadFile(source.source, source.name, size, 0, digest, source.token)
        digest = self._digests[number] if number < len(self._digests) else hash_file(source)
        return ReadFile(source.source, source.name, source.size, source.mtime_ns, digest)


def raised_fraction(tally: Tally) -> float:
    """The least fraction that holds out ten documents (a tenth of them, where there are fewer than
    a hundred), found from the smallest hashes."""
    if len(tally.smallest_keys) < 2:
        raise UserError(
            f"{tally.documents} documents cannot be divided into training and validation; give "
            "more text, smaller --block-bytes, or --validation 0."
        )
    return fraction_holding_ten(tally.smallest_keys, tally.documents)


def fraction_holding_ten(keys: NDArray[np.uint64], documents: int) -> float:
    """The same, of the smallest split keys in order, two or more, and the number of documents."""
    wanted = min(_WANTED_VALIDATION_DOCUMENTS, max(1, documents // 10), len(keys) - 1)
    # Half way to the next hash: rounding to a double cannot cross it.
    return (float(keys[wanted - 1]) / 2 + float(keys[wanted]) / 2) / 2.0**64


def check_bad(tally: Tally, settings: BuildSettings, *, final: bool) -> None:
    """Refuse too many bad records at the end, or on the way once it is past hope: most of a
    thousand or more."""
    examples = "".join(f"\n  {reason}" for reason in tally.first_bad)
    mostly_bad = tally.bad > max(0.5, settings.max_bad_fraction) * tally.records
    if mostly_bad and (final or tally.records >= 1000):
        raise UserError(_too_many_bad(tally, settings) + examples)
    if not final:
        return
    if tally.bad > max(_ALLOWED_BAD, settings.max_bad_fraction * tally.records):
        raise UserError(_too_many_bad(tally, settings) + examples)
    if tally.documents == 0:
        raise UserError(
            f"the sources hold no document: {tally.records} records, of which {tally.filtered} "
            f"did not satisfy `where`, {tally.empty} were empty and {tally.bad} bad; name sources "
            f"that hold text.{examples}"
        )


def _too_many_bad(tally: Tally, settings: BuildSettings) -> str:
    return (
        f"{tally.bad} of {tally.records} records are bad, more than max_bad_fraction "
        f"{settings.max_bad_fraction:g} allows; mend or leave out those files, or raise "
        "--max-bad-fraction. The first ones:"
    )
