"""A step's windows laid out as tensors.

The cursor is the number of windows consumed per source since the run began, plus what it was
when the stage began. It is all the state that data order has: a checkpoint stores it, a branch
inherits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamita.data.mixture import IntArray, Mixture, shuffled
from llamita.data.shards import TokenStream


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
    """Rows of one sequence length.

    tokens, targets: (B, T) int64; documents: (B, T) int32 or None; sources: (B,) source numbers.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor | None
    sources: IntArray

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of up to `rows` rows, in order."""
        return [self.rows(start, start + rows) for start in range(0, len(self.tokens), rows)]

    def rows(self, start: int, stop: int) -> Batch:
        return Batch(
            self.tokens[start:stop],
            self.targets[start:stop],
            None if self.documents is None else self.documents[start:stop],
            self.sources[start:stop],
        )

    def to(self, device: torch.device) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            if device.type == "cuda":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)

        return Batch(
            move(self.tokens),
            move(self.targets),
            None if self.documents is None else move(self.documents),
            self.sources,
        )


class StageData:
    """The batches of one stage: `batch(cursor)` is a pure function.

    Args:
        streams: dataset name → its training tokens.
        mixture: dataset name → share.
        sequence_length: T.
        windows_per_step: rows of a global batch.
        seed: the recipe's; with a source's name and epoch it keys the epoch's order.
        document_masking: whether batches carry document numbers.
    """

    def __init__(
        self,
        streams: Mapping[str, TokenStream],
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

    def batch(self, cursor: Cursor) -> tuple[Batch, Cursor]:
        """The global batch after `cursor`, and the cursor after it."""
        in_stage = [cursor.since_stage_start(key) for key in self.keys]
        sources = self.mixture.assign(in_stage, self.windows_per_step)
        length = self.sequence_length
        rows = np.empty((self.windows_per_step, length + 1), dtype=np.int64)
        documents = (
            np.empty((self.windows_per_step, length), dtype=np.int32)
            if self.document_masking
            else None
        )
        consumed = dict(cursor.consumed)
        for number, (key, stream) in enumerate(zip(self.keys, self.streams, strict=True)):
            places = np.flatnonzero(sources == number)
            if not len(places):
                continue
            first = consumed.get(key, 0)
            windows = self._windows(number, first + np.arange(len(places), dtype=np.int64))
            rows[places] = stream.windows(windows, length)
            if documents is not None:
                documents[places] = stream.windows_documents(windows, length)[:, :-1]
            consumed[key] = first + len(places)
        batch = Batch(
            torch.from_numpy(np.ascontiguousarray(rows[:, :-1])),
            torch.from_numpy(np.ascontiguousarray(rows[:, 1:])),
            None if documents is None else torch.from_numpy(documents),
            sources,
        )
        return batch, replace(cursor, consumed=consumed)

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

    def _windows(self, number: int, positions: IntArray) -> npt.NDArray[np.int64]:
        total = self.num_windows[number]
        windows = np.empty_like(positions)
        epochs = positions // total
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = f"{self.seed}/{self.keys[number]}/{epoch}"
            windows[chosen] = shuffled(positions[chosen] % total, total, key)
        return windows
