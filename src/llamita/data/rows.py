"""Rows as every kind of data serves them to a step.

Shapes: n rows, T tokens of a row, D the most documents that a row can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

# A target that no loss counts. The same number as `model.head.IGNORE`, which this room may not
# import (a test compares them); PyTorch's cross-entropy has it as its default `ignore_index`.
IGNORE = -100


@dataclass(frozen=True)
class Rows:
    """n rows of one sequence length.

    tokens: (n, T) int64.
    targets: (n, T) int64, `IGNORE` where none counts.
    documents: (n, T) int32, the number of each token's document within its row; padding has D.
        None: attention is not bounded by documents.
    positions: (n, T) int32, counted from 0 in each document. None: 0 … T−1.
    examples: (n, D) int64, the split's number of each of the row's documents, −1 where the row has
        no such document. None: rows are windows of text, which has no examples.
    """

    tokens: NDArray[Any]
    targets: NDArray[Any]
    documents: NDArray[Any] | None = None
    positions: NDArray[Any] | None = None
    examples: NDArray[Any] | None = None
