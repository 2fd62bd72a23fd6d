"""How well a model predicts text it has not seen, in bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llamita.data.shards import TokenStream
from llamita.model.decoder import IGNORE, Decoder, TokenScores


@dataclass(frozen=True)
class HeldOut:
    """Whole documents: tokens (n,) int64, and the UTF-8 bytes of their text."""

    tokens: npt.NDArray[np.int64]
    num_bytes: int


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
    num_predicted = len(text.tokens) - 1
    if num_predicted < 1:
        return Score(0.0, 0, text.num_bytes)
    num_windows = 1 + max(0, -(-(num_predicted - sequence_length) // stride))
    num_passes = -(-num_windows // rows)
    padded = np.full((num_windows - 1) * stride + sequence_length + 1, -1, dtype=np.int64)
    padded[: len(text.tokens)] = text.tokens
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    for number in range(num_passes):
        chosen = np.arange(number * rows, min((number + 1) * rows, num_windows))
        windows = np.full((rows, sequence_length + 1), -1, dtype=np.int64)
        places = chosen[:, None] * stride + np.arange(sequence_length + 1)
        windows[: len(chosen)] = padded[places]
        targets = np.where(windows[:, 1:] < 0, IGNORE, windows[:, 1:])
        seen_before = np.zeros(rows, dtype=np.bool_)
        seen_before[: len(chosen)] = chosen > 0
        targets[seen_before, : sequence_length - stride] = IGNORE
        scores = model(
            torch.from_numpy(np.maximum(windows[:, :-1], 0)).to(device),
            torch.from_numpy(targets).to(device),
        )
        assert isinstance(scores, TokenScores)
        total -= scores.log_probs.cpu().double().sum()
    return Score(float(total), num_predicted, text.num_bytes)
