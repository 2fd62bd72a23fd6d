"""How well a model predicts text it has not seen, in bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llamita.data.batch import Batch
from llamita.data.packed_stream import PackedStream
from llamita.data.shards import TokenStream
from llamita.model.decoder import IGNORE, Decoder, TokenScores


@dataclass(frozen=True)
class HeldOut:
    """Whole documents: tokens (n,) int64, and the UTF-8 bytes of their text."""

    tokens: npt.NDArray[np.int64]
    num_bytes: int

    @property
    def num_predicted(self) -> int:
        """Every token but the first."""
        return max(0, len(self.tokens) - 1)


@dataclass(frozen=True)
class HeldOutRows:
    """Packed conversations in passes of equal shape, and the UTF-8 bytes of the text that learns in
    them."""

    batches: tuple[Batch, ...]
    num_bytes: int

    @property
    def num_predicted(self) -> int:
        return sum(int((batch.targets != IGNORE).sum()) for batch in self.batches)


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood of a text: nats over `num_tokens` predictions, `num_bytes` bytes."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    @property
    def loss(self) -> float:
        """Mean nats a token."""
        return self.nats / self.num_tokens

    def __add__(self, other: Score) -> Score:
        return Score(
            self.nats + other.nats,
            self.num_tokens + other.num_tokens,
            self.num_bytes + other.num_bytes,
        )


def held_out(stream: TokenStream, max_tokens: int | None = None) -> HeldOut:
    """Documents from the front of a stream until they hold `max_tokens`."""
    parts: list[npt.NDArray[np.int64]] = []
    num_tokens = num_bytes = 0
    for index in range(stream.num_documents):
        if max_tokens is not None and num_tokens >= max_tokens:
            break
        parts.append(np.asarray(stream.document(index), dtype=np.int64))
        num_tokens += len(parts[-1])
        num_bytes += stream.document_bytes(index)
    return HeldOut(np.concatenate(parts) if parts else np.empty(0, np.int64), num_bytes)


def held_out_rows(
    stream: PackedStream, sequence_length: int, rows: int, max_tokens: int
) -> HeldOutRows:
    """Rows from the front of a split until they hold `max_tokens`, `rows` to a pass.

    The last pass is filled up with rows in which no target counts.
    """
    chosen = stream.held_out_rows(sequence_length, max_tokens)
    batches = []
    for start in range(0, len(chosen), rows):
        part = chosen[start : start + rows]
        filled = np.concatenate((part, np.repeat(part[:1], rows - len(part))))
        batch = Batch.of(stream.rows(filled, sequence_length))
        batch.targets[len(part) :] = IGNORE
        batches.append(batch)
    return HeldOutRows(tuple(batches), stream.learning_bytes(chosen, sequence_length))


@torch.no_grad()
def score_rows(model: Decoder, held: HeldOutRows) -> Score:
    """Score every target that counts."""
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    for batch in held.batches:
        total -= score_batch(model, batch.to(device)).log_probs.cpu().double().sum()
    return Score(float(total), held.num_predicted, held.num_bytes)


def score_batch(model: Decoder, batch: Batch) -> TokenScores:
    """A model's scores of a batch's targets."""
    scores = model(
        batch.tokens,
        batch.targets,
        positions=batch.positions,
        documents=batch.documents,
        scored=batch.scored,
    )
    assert isinstance(scores, TokenScores)
    return scores


@torch.no_grad()
def score_text(
    model: Decoder,
    text: HeldOut,
    *,
    sequence_length: int,
    rows: int,
    stride: int | None = None,
) -> Score:
    """Score every token but the first, in windows of `sequence_length`, each token once.

    BOS and EOS are predicted and counted too; only the bytes of the text itself divide.

    Args:
        rows: windows a forward pass. The last pass is filled up with ignored rows, so that every
            pass has one shape (a compiled model would compile again for another).
        stride: tokens from one window's start to the next. By default windows do not overlap, and
            a token sees half a window on average; with a smaller stride only a window's last
            `stride` tokens count (all of the first window's), so that each sees at least
            `sequence_length` − `stride` tokens, at `sequence_length` / `stride` times the cost.
    """
    stride = stride or sequence_length
    assert 0 < stride <= sequence_length, "windows would leave tokens out"
    num_predicted = text.num_predicted
    if not num_predicted:
        return Score(0.0, 0, text.num_bytes)
    starts, first_counted = cut_windows(num_predicted, sequence_length, stride)
    places = np.arange(sequence_length)
    padded = np.full(int(starts[-1]) + sequence_length + 1, -1, dtype=np.int64)
    padded[: len(text.tokens)] = text.tokens
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    for number in range(0, len(starts), rows):
        chosen = slice(number, number + rows)
        windows = np.full((rows, sequence_length + 1), -1, dtype=np.int64)
        begun = starts[chosen, None]
        windows[: len(begun)] = padded[begun + np.arange(sequence_length + 1)]
        targets = np.where(windows[:, 1:] < 0, IGNORE, windows[:, 1:])
        targets[: len(begun)][places < first_counted[chosen, None]] = IGNORE
        scores = model(
            torch.from_numpy(np.maximum(windows[:, :-1], 0)).to(device),
            torch.from_numpy(targets).to(device),
        )
        assert isinstance(scores, TokenScores)
        total -= scores.log_probs.cpu().double().sum()
    return Score(float(total), num_predicted, text.num_bytes)


def cut_windows(
    num_predicted: int, sequence_length: int, stride: int, *, last_full: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Windows of `sequence_length`, each `stride` behind the one before, that predict
    `num_predicted` tokens (at least one), each once.

    With `last_full` the last window, which would reach beyond the text's end, is moved back to end
    with it, where the text is long enough: its tokens then see more of what stands before them.

    Returns:
        starts, first_counted, both (windows,): the place of a window's first input, and the first
        of its `sequence_length` predictions that counts, because no window before has it.
    """
    count = 1 + max(0, -(-(num_predicted - sequence_length) // stride))
    starts = np.arange(count, dtype=np.int64) * stride
    if last_full:
        starts[-1] = min(starts[-1], max(0, num_predicted - sequence_length))
    first_counted = np.zeros(count, dtype=np.int64)
    first_counted[1:] = starts[:-1] + sequence_length - starts[1:]
    return starts, first_counted
