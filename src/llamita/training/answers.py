"""Whole answers in packed rows: their log-probabilities, and which of them are pairs.

Shapes: B rows, T tokens of a row, D the most documents that a row holds. Documents 2j and 2j + 1
of a row are the chosen and the rejected answer of a pair; what stands alone is no pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamita.data.batch import Batch
from llamita.model.head import IGNORE


def answer_sums(values: Tensor, batch: Batch) -> Tensor:
    """Sums over the tokens that learn of each document.

    Args:
        values: (B, T), of each target; 0 where none counts.

    Returns:
        (B, D) float32, 0 where there is no such document.
    """
    documents, examples = _packed(batch)
    numbers = torch.arange(examples.shape[1], device=values.device, dtype=documents.dtype)
    within = documents[:, None, :] == numbers[:, None]
    # Not scatter_add, which adds in whatever order CUDA's threads arrive.
    return torch.where(within, values.float()[:, None, :], 0.0).sum(-1)


def answer_tokens(batch: Batch) -> Tensor:
    """How many tokens of each document learn: (B, D) float32."""
    return answer_sums((batch.targets != IGNORE).float(), batch)


def are_pairs(batch: Batch) -> Tensor:
    """Which pairs there are: (B, D / 2) bool."""
    _, examples = _packed(batch)
    assert examples.shape[1] % 2 == 0, "pairs share rows with single documents"
    return (examples[:, 0::2] >= 0) & (examples[:, 1::2] >= 0)


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """(B, D) to (B, D / 2) of the chosen and (B, D / 2) of the rejected."""
    return values[:, 0::2], values[:, 1::2]


def _packed(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.documents is not None, "these rows hold plain text"
    assert batch.examples is not None, "these rows hold plain text"
    return batch.documents, batch.examples
