"""A step's windows laid out as tensors.

The cursor is the number of windows consumed per source since the run began, plus what it was
when the stage began. It is all the state that data order has: a checkpoint stores it, a branch
inherits it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamita.data.mixture import IntArray, Mixture, shuffled
from llamita.data.packed_stream import PackedStream
from llamita.data.rows import IGNORE, Rows
from llamita.data.shards import Stream


@dataclass(frozen=True)
class Cursor:
    """Windows consumed per source. Keys are `name@sequence_length`: windows of different lengths
    are counted apart, because they cut a source differently."""

    consumed: Mapping[str, int]
    stage_start: Mapping[str, int]

    @classmethod
    def beginning(cls) -> Cursor:
        return cls({}, {})

    def enter_stage(self) -> Cursor:
        return replace(self, stage_start=dict(self.consumed))

    def since_stage_start(self, key: str) -> int:
        return self.consumed.get(key, 0) - self.stage_start.get(key, 0)


@dataclass(frozen=True)
class Batch:
    """Rows of one sequence length, on any device.

    tokens: (B, T) int64.
    targets: (B, T) int64, `data.rows.IGNORE` where none counts.
    documents: (B, T) int32 or None; packed rows give padding the number D.
    sources: (B,) source numbers.
    positions: (B, T) int32, or None: 0 … T−1.
    examples: (B, D) int64, the source's number of each document of a row, −1 where there is none;
        None where no source of the stage is packed.
    scored: (K,) int64, which of the flattened B·T targets count, known once the batch was moved
        `to` its device. None: not known, or all of them.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor | None
    sources: IntArray
    positions: Tensor | None = None
    examples: Tensor | None = None
    scored: Tensor | None = None

    @classmethod
    def of(cls, rows: Rows, sources: IntArray | None = None) -> Batch:
        """Rows as tensors, which share their memory; all of source 0 where none is said."""

        def tensor(array: npt.NDArray[np.generic] | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array)

        return cls(
            torch.from_numpy(rows.tokens),
            torch.from_numpy(rows.targets),
            tensor(rows.documents),
            np.zeros(len(rows.tokens), dtype=np.int64) if sources is None else sources,
            tensor(rows.positions),
            tensor(rows.examples),
        )

    @property
    def is_packed(self) -> bool:
        """Whether rows are whole examples side by side, or lie beside such rows."""
        return self.examples is not None

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of up to `rows` rows, in order."""
        return [self.rows(start, start + rows) for start in range(0, len(self.tokens), rows)]

    def rows(self, start: int, stop: int) -> Batch:
        chosen = self._each(lambda tensor: tensor[start:stop])
        return replace(chosen, sources=self.sources[start:stop])

    def to(self, device: torch.device) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            if device.type == "cuda":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)

        moved = self._each(move)
        if not self.is_packed:
            return moved
        # Counted here, before the move: on the device, it would wait for what is under way there.
        return replace(moved, scored=move((self.targets.flatten() != IGNORE).nonzero()[:, 0]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return Batch(
            change(self.tokens),
            change(self.targets),
            maybe(self.documents),
            self.sources,
            maybe(self.positions),
            maybe(self.examples),
        )


class StageData:
    """The batches of one stage: `batch(cursor)` is a pure function.

    A stage that reads chats or preferences has documents, positions and examples in all its rows.
    Its windows of text are then one document each, unless `document_masking` tells theirs apart.

    Args:
        streams: dataset name → its training split.
        mixture: dataset name → share of the rows.
        sequence_length: T.
        windows_per_step: rows of a global batch.
        seed: the recipe's; with a source's name and epoch it keys the epoch's order.
        document_masking: whether text's documents are told apart.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        mixture: Mapping[str, float],
        *,
        sequence_length: int,
        windows_per_step: int,
        seed: int,
        document_masking: bool = False,
    ) -> None:
        self.mixture = Mixture(mixture)
        self.streams = [streams[name] for name in self.mixture.names]
        self.sequence_length = sequence_length
        self.windows_per_step = windows_per_step
        self.seed = seed
        self.document_masking = document_masking
        self.keys = [f"{name}@{sequence_length}" for name in self.mixture.names]
        self.num_windows = [stream.num_windows(sequence_length) for stream in self.streams]
        packed = [stream for stream in self.streams if isinstance(stream, PackedStream)]
        most = (stream.packing(sequence_length).max_examples for stream in packed)
        self._max_documents = max(most) if packed else None

    def batch(self, cursor: Cursor) -> tuple[Batch, Cursor]:
        """The global batch after `cursor`, and the cursor after it."""
        in_stage = [cursor.since_stage_start(key) for key in self.keys]
        sources = self.mixture.assign(in_stage, self.windows_per_step)
        consumed = dict(cursor.consumed)
        laid_out = self._empty()
        for number, (key, stream) in enumerate(zip(self.keys, self.streams, strict=True)):
            places = np.flatnonzero(sources == number)
            if not len(places):
                continue
            first = consumed.get(key, 0)
            windows = self._windows(number, first + np.arange(len(places), dtype=np.int64))
            found = stream.rows(
                windows, self.sequence_length, document_masking=self.document_masking
            )
            self._lay_out(laid_out, places, found)
            consumed[key] = first + len(places)
        return Batch.of(laid_out, sources), replace(cursor, consumed=consumed)

    def epochs(self, cursor: Cursor) -> dict[str, float]:
        """How often each source has been read by now."""
        return {
            name: cursor.consumed.get(key, 0) / total
            for name, key, total in zip(
                self.mixture.names, self.keys, self.num_windows, strict=True
            )
        }

    def realised(self, cursor: Cursor) -> dict[str, float]:
        """Share of this stage's windows that came from each source by now."""
        counts = [cursor.since_stage_start(key) for key in self.keys]
        total = max(1, sum(counts))
        return {name: count / total for name, count in zip(self.mixture.names, counts, strict=True)}

    def _empty(self) -> Rows:
        """Rows of a batch to be filled: text's alone are as `TokenStream.rows` gives them; where
        a source is packed, text's documents, positions and examples stay as they are here."""
        rows, length = self.windows_per_step, self.sequence_length
        tokens, targets = np.empty((2, rows, length), dtype=np.int64)
        documents = np.zeros((rows, length), dtype=np.int32)
        if self._max_documents is None:
            return Rows(tokens, targets, documents if self.document_masking else None)
        positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        examples = np.full((rows, self._max_documents), -1, dtype=np.int64)
        return Rows(tokens, targets, documents, positions, examples)

    def _lay_out(self, rows: Rows, places: IntArray, found: Rows) -> None:
        rows.tokens[places] = found.tokens
        rows.targets[places] = found.targets
        if rows.documents is not None and found.documents is not None:
            rows.documents[places] = found.documents
        if rows.positions is not None and found.positions is not None:
            rows.positions[places] = found.positions
        if rows.examples is not None and found.examples is not None:
            assert rows.documents is not None
            assert found.documents is not None
            own, most = found.examples.shape[1], rows.examples.shape[1]
            rows.examples[places, :own] = found.examples
            # Padding bears the largest number of the batch, not of its source.
            rows.documents[places] = np.where(found.documents == own, most, found.documents)

    def _windows(self, number: int, positions: IntArray) -> npt.NDArray[np.int64]:
        total = self.num_windows[number]
        windows = np.empty_like(positions)
        epochs = positions // total
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = f"{self.seed}/{self.keys[number]}/{epoch}"
            windows[chosen] = shuffled(positions[chosen] % total, total, key)
        return windows
