"""One split of chats or preferences, as rows of whole examples side by side.

Shapes as in `rows`: n rows, T tokens of a row, D the most documents that a row can hold.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.data.cutting import cut_chats, cut_pairs
from llamita.data.manifest import Manifest
from llamita.data.packing import BoolArray, IntArray, Packing, pack
from llamita.data.rows import IGNORE, Rows
from llamita.data.token_stream import DocumentStream, Integers

# Raised whenever `cutting` or `packing` would place an example elsewhere.
_PACKING_VERSION = 1
# Fewer examples are packed anew in a tenth of a second; for more, the packing is kept on disk.
_STORED_FROM = 20_000


@dataclass(frozen=True)
class PackingFacts:
    """What became of a split's examples (of preferences: its pairs) at one row length.

    rows: rows of T places. examples: those that are in them, whole or not. truncated: those of
    them that lost tokens. left_out: those of which nothing that is learnt would have remained.
    max_documents: D. utilisation: share of the places that hold a token of an example.
    """

    sequence_length: int
    rows: int
    examples: int
    truncated: int
    left_out: int
    max_documents: int
    utilisation: float


class PackedStream(DocumentStream):
    """A split of chats or preferences: the counterpart of `TokenStream`.

    A document is a chat, or one side of a preference: 2j is the chosen, 2j + 1 the rejected of
    pair j, and both are always in one row.

    Args:
        directory: the dataset's.
        manifest: the dataset's, of kind "chats" or "preferences".
        split: "train" or "validation".
    """

    def __init__(self, directory: Path, manifest: Manifest, split: str) -> None:
        assert manifest.kind != "text", "text is a TokenStream"
        super().__init__(directory, manifest.splits[split], manifest.token_bytes)
        self._learns = [shard.map_learns() for shard in self._shards]
        self._directory = directory
        self._split = split
        self._fingerprint = manifest.fingerprint
        self._group = 2 if manifest.kind == "preferences" else 1
        self._packings: dict[int, Packing] = {}

    def learns(self, index: int) -> BoolArray:
        """Which tokens of one document are learnt: (tokens,)."""
        shard, place = self._locate_document(index)
        marks: BoolArray = self._learns[shard][self._shards[shard].span(place)].astype(np.bool_)
        return marks

    def num_windows(self, sequence_length: int) -> int:
        """Rows of `sequence_length` places."""
        return self.packing(sequence_length).num_rows

    def packing(self, sequence_length: int) -> Packing:
        """Which examples lie in which row: computed once, and for many examples kept in the
        dataset's directory where that can be written."""
        found = self._packings.get(sequence_length)
        if found is None:
            found = self._kept_packing(sequence_length)
            self._packings[sequence_length] = found
        return found

    def facts(self, sequence_length: int) -> PackingFacts:
        """What became of the examples at this row length."""
        packing = self.packing(sequence_length)
        return PackingFacts(
            sequence_length=sequence_length,
            rows=packing.num_rows,
            examples=len(packing.examples) // self._group,
            truncated=packing.truncated,
            left_out=packing.left_out,
            max_documents=packing.max_examples,
            utilisation=packing.utilisation,
        )

    def rows(
        self,
        indices: Sequence[int] | Integers,
        sequence_length: int,
        *,
        document_masking: bool = False,
    ) -> Rows:
        """Rows by number. Documents, positions and examples are always there, so that examples
        in a row never see one another; `document_masking` is what text would need for that.

        Raises:
            IndexError: an index is outside 0..num_windows(T)-1.
        """
        packing = self.packing(sequence_length)
        wanted = np.asarray(indices, dtype=np.int64)
        outside = wanted[(wanted < 0) | (wanted >= packing.num_rows)]
        if len(outside):
            raise IndexError(
                f"row {outside[0]} of {packing.num_rows} (sequence_length {sequence_length})"
            )
        shape = (len(wanted), sequence_length)
        rows = Rows(
            tokens=np.zeros(shape, dtype=np.int64),
            targets=np.full(shape, IGNORE, dtype=np.int64),
            documents=np.full(shape, packing.max_examples, dtype=np.int32),
            positions=np.zeros(shape, dtype=np.int32),
            examples=np.full((len(wanted), packing.max_examples), -1, dtype=np.int64),
        )
        for place, index in enumerate(wanted.tolist()):
            self._fill(rows, place, packing, packing.row(index))
        return rows

    def held_out_rows(self, sequence_length: int, max_tokens: int | None = None) -> IntArray:
        """Numbers of the rows from the front until their examples hold `max_tokens`: (n,)."""
        packing = self.packing(sequence_length)
        if max_tokens is None:
            return np.arange(packing.num_rows)
        ends = np.concatenate(([0], np.cumsum(packing.lengths - 1)))
        return np.flatnonzero(ends[packing.offsets[:-1]] < max_tokens)

    def learning_bytes(self, indices: Sequence[int] | Integers, sequence_length: int) -> int:
        """UTF-8 bytes of the text that is learnt in these rows: what bits per byte divide by.

        Of an example that lost tokens that are learnt, the share of its bytes that is the share
        of these tokens which stayed, rounded to a byte.
        """
        packing = self.packing(sequence_length)
        total = 0
        for index in np.asarray(indices, dtype=np.int64).tolist():
            row = packing.row(index)
            for number, start, length in zip(
                packing.examples[row].tolist(),
                packing.starts[row].tolist(),
                packing.lengths[row].tolist(),
                strict=True,
            ):
                total += self._bytes_within(number, start, length)
        return total

    def _bytes_within(self, number: int, start: int, length: int) -> int:
        num_bytes = self.document_bytes(number)
        learns = self.learns(number)
        if start + length == len(learns) and not learns[:start].any():
            return num_bytes
        kept, whole = int(learns[start : start + length].sum()), int(learns.sum())
        return round(num_bytes * kept / whole)

    def _fill(self, rows: Rows, place: int, packing: Packing, row: slice) -> None:
        assert rows.documents is not None
        assert rows.positions is not None
        assert rows.examples is not None
        numbers = packing.examples[row].tolist()
        taken = zip(packing.starts[row].tolist(), packing.lengths[row].tolist(), strict=True)
        rows.examples[place, : len(numbers)] = numbers
        first = 0
        for document, (number, (start, length)) in enumerate(zip(numbers, taken, strict=True)):
            here = slice(first, first + length - 1)
            tokens = self.document(number)[start : start + length]
            learns = self.learns(number)[start : start + length]
            rows.tokens[place, here] = tokens[:-1]
            rows.targets[place, here] = np.where(learns[1:], tokens[1:].astype(np.int64), IGNORE)
            rows.documents[place, here] = document
            rows.positions[place, here] = np.arange(length - 1)
            first = here.stop

    def _kept_packing(self, sequence_length: int) -> Packing:
        if self.num_documents < _STORED_FROM:
            return self._pack(sequence_length)
        file = self._directory / f"packing-{self._split}-{sequence_length}.npz"
        key = f"{_PACKING_VERSION}/{self._fingerprint}/{self._split}/{sequence_length}"
        packing = _read_packing(file, key)
        if packing is None:
            packing = self._pack(sequence_length)
            _keep_packing(file, key, packing)
        return packing

    def _pack(self, sequence_length: int) -> Packing:
        assert sequence_length >= 1, sequence_length
        cut = cut_chats if self._group == 1 else cut_pairs
        taken = cut(self.document_lengths(), sequence_length, self.learns)
        return pack(taken, sequence_length, group=self._group)


def packing_facts(
    directory: Path, manifest: Manifest, split: str, sequence_length: int
) -> PackingFacts:
    """`PackedStream.facts` of a dataset by its directory. It reads the shards' indices, and of
    examples longer than a row which of their tokens are learnt."""
    return PackedStream(directory, manifest, split).facts(sequence_length)


def packed_rows(directory: Path, manifest: Manifest, split: str, sequence_length: int) -> int:
    """Rows that a split of chats or preferences has at this row length."""
    return packing_facts(directory, manifest, split, sequence_length).rows


def _read_packing(file: Path, key: str) -> Packing | None:
    """The packing that was kept, unless there is none, it is another's, or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as held:
            if str(held["key"]) != key:
                return None
            arrays: dict[str, npt.NDArray[Any]] = {
                name: held[name] for name in ("offsets", "examples", "starts", "lengths")
            }
            capacity, truncated, left_out = held["counts"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Packing(capacity=capacity, truncated=truncated, left_out=left_out, **arrays)


def _keep_packing(file: Path, key: str, packing: Packing) -> None:
    """Write it whole or not at all; a directory that cannot be written keeps none."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    counts = np.array([packing.capacity, packing.truncated, packing.left_out])
    try:
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                key=np.array(key),
                counts=counts,
                offsets=packing.offsets,
                examples=packing.examples,
                starts=packing.starts,
                lengths=packing.lengths,
            )
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
