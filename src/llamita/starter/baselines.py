"""What a language model has to beat on held-out text: xz, and a 5-gram model with back-off.

All figures are bits per UTF-8 byte of the held-out text, lower being better.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_XZ_PRESET = 9 | lzma.PRESET_EXTREME
XZ_SAMPLE_BYTES = 8 * 2**20  # xz at this preset takes about 1 s for 1 MB; its window is 64 MB

BYTE_BOS, BYTE_EOS = 256, 257
BYTE_VOCAB_SIZE = 258


def xz_bits_per_byte(texts: Sequence[bytes]) -> float:
    """Bits per byte of all texts in one xz stream at preset 9, extreme."""
    data = _some(texts)
    return 8 * _xz_size(data) / len(data)


def primed_xz_bits_per_byte(
    train: Sequence[bytes], heldout: Sequence[bytes], sample_bytes: int = XZ_SAMPLE_BYTES
) -> float:
    """Bits per byte that held-out texts add to an xz stream that has seen training text.

    The stream begins with `sample_bytes` of the training texts, drawn as equal steps through them
    so that every source is seen; its size alone is subtracted. This is the fairer comparison: plain
    xz has to learn everything from the held-out text itself.
    """
    data = _some(heldout)
    sample = _sample(train, sample_bytes)
    return 8 * (_xz_size(sample + data) - _xz_size(sample)) / len(data)


def _some(texts: Sequence[bytes]) -> bytes:
    data = b"".join(texts)
    if not data:
        raise ValueError("There are no held-out bytes to measure on.")
    return data


def _xz_size(data: bytes) -> int:
    return len(lzma.compress(data, preset=_XZ_PRESET))


def _sample(texts: Sequence[bytes], size: int) -> bytes:
    """About `size` bytes: whole texts, at equal steps of bytes through all of them."""
    total = sum(len(text) for text in texts)
    if total <= size:
        return b"".join(texts)
    taken, passed, kept = [], 0, 0
    for text in texts:
        passed += len(text)
        if kept + len(text) <= size * passed / total:
            taken.append(text)
            kept += len(text)
    return b"".join(taken)


@dataclass(frozen=True)
class _Order:
    """The k-grams of one order k: a sorted table, and what each context hands to order k − 1."""

    keys: Ints  # sorted; (id of the first k − 1 tokens) * vocab_size + last token
    discounted: Floats  # max(count − D, 0) of each key
    totals: Floats  # sum of counts after each context, by the context's id
    backoff: Floats  # sum of what was discounted after each context, by the context's id


class NGramModel:
    """An n-gram model with interpolated, modified Kneser-Ney back-off, over any integer tokens.

    Chen and Goodman, An Empirical Study of Smoothing Techniques (1998), section 3: for a context
    h of k − 1 tokens and h' without its first,

        p(w | h) = (c(h w) − D(c(h w))) / c(h) + (sum of D(c(h v)) over v) / c(h) · p(w | h')

    with c the counts at the highest order and the number of different tokens seen before (h w) at
    the lower ones; the unigrams back off to the uniform distribution. A context never seen has
    p(w | h) = p(w | h'). Probabilities are positive and sum to one over the vocabulary.

    The stream is read as one: documents are told apart by the BOS and EOS tokens in it.
    Memory: about 50 bytes per training token while fitting.
    """

    def __init__(self, order: int, vocab_size: int) -> None:
        """`order` tokens, the predicted one included; tokens are in [0, vocab_size)."""
        if order < 1 or vocab_size < 1:
            raise ValueError(f"order {order} and vocab_size {vocab_size} must both be at least 1.")
        self.order = order
        self.vocab_size = vocab_size
        self._orders: list[_Order] = []

    def fit(self, tokens: NDArray[np.integer]) -> NGramModel:
        """Count `tokens` (N,), forgetting anything counted before. Returns the model itself."""
        stream = self._checked(tokens)
        if len(stream) < self.order:
            raise ValueError(f"{len(stream)} tokens are too few for {self.order}-grams.")
        assert len(stream) < 2**31, "ids of n-grams are 32 bits wide"
        self._orders = []
        grams = np.zeros(len(stream) + 1, dtype=np.int32)  # id of the (k − 1)-gram from each place
        num_contexts = 1
        lower: tuple[Ints, int] | None = None
        for k in range(1, self.order + 1):
            packed = np.multiply(grams[: len(stream) - k + 1], self.vocab_size, dtype=np.int64)
            packed += stream[k - 1 :]
            keys, counts, example, ids = _types(packed)
            if lower is not None:
                # Each different k-gram is one token more seen before the (k − 1)-gram it ends in.
                before = np.bincount(grams[example + 1], minlength=len(lower[0]))
                self._orders.append(_order(lower[0], before, lower[1], self.vocab_size))
            if k == self.order:
                self._orders.append(_order(keys, counts, num_contexts, self.vocab_size))
            lower, num_contexts, grams = (keys, num_contexts), len(keys), ids
        return self

    def log2_probs(self, tokens: NDArray[np.integer]) -> Floats:
        """log2 p(token | up to order − 1 tokens before it) of each of `tokens` (N,), as (N,).

        The first tokens are scored with the shorter contexts that they have.
        """
        if not self._orders:
            raise ValueError("The n-gram model has counted nothing yet: call fit first.")
        stream = self._checked(tokens)
        probs = np.full(len(stream), 1.0 / self.vocab_size)
        contexts = np.zeros(len(stream), dtype=np.int64)  # id of what precedes; −1 is never seen
        for table in self._orders:
            packed = contexts * self.vocab_size + stream
            places = np.minimum(np.searchsorted(table.keys, packed), len(table.keys) - 1)
            found = np.where((contexts >= 0) & (table.keys[places] == packed), places, -1)
            totals = np.where(contexts >= 0, table.totals[contexts], 0.0)
            direct = np.where(found >= 0, table.discounted[found], 0.0)
            mixed = direct + table.backoff[contexts] * probs
            probs = np.divide(mixed, totals, out=probs, where=totals > 0)
            contexts = np.concatenate([[-1], found[:-1]])
        bits: Floats = np.log2(probs)
        return bits

    def _checked(self, tokens: NDArray[np.integer]) -> Ints:
        stream = np.asarray(tokens)
        if stream.ndim != 1 or not np.issubdtype(stream.dtype, np.integer):
            raise ValueError(f"tokens must be (N,) integers, not {stream.shape} {stream.dtype}.")
        stream = stream.astype(np.int64)
        if len(stream) and not (stream.min() >= 0 and stream.max() < self.vocab_size):
            raise ValueError(
                f"tokens run from {stream.min()} to {stream.max()}; the model was made for "
                f"0 to {self.vocab_size - 1}."
            )
        return stream


def bits_per_byte(
    model: NGramModel,
    tokens: NDArray[np.integer],
    num_bytes: int,
    free: Sequence[int] = (),
) -> float:
    """Bits of `tokens` (N,) under `model`, divided by the UTF-8 bytes of the text they encode.

    Tokens in `free` cost nothing, such as a BOS that is always given.
    """
    if num_bytes < 1:
        raise ValueError("There are no held-out bytes to measure on.")
    costs = ~np.isin(tokens, list(free))
    return float(-model.log2_probs(tokens)[costs].sum() / num_bytes)


def byte_stream(texts: Sequence[bytes]) -> NDArray[np.int64]:
    """All texts as one stream of bytes in [0, 256), each between BYTE_BOS and BYTE_EOS."""
    length = sum(len(text) + 2 for text in texts)
    stream = np.empty(length, dtype=np.int64)
    start = 0
    for text in texts:
        end = start + 1 + len(text)
        stream[start], stream[end] = BYTE_BOS, BYTE_EOS
        stream[start + 1 : end] = np.frombuffer(text, dtype=np.uint8)
        start = end + 1
    return stream


def _types(packed: Ints) -> tuple[Ints, Ints, Ints, NDArray[np.int32]]:
    """The different values of `packed` (N,), sorted; their counts; a place of each; (N,) ids.

    np.unique gives the same, at twice the time and memory: it wants the first place of each.
    """
    by_value = np.argsort(packed)
    ordered = packed[by_value]
    starts = np.empty(len(packed), dtype=bool)
    starts[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=starts[1:])
    firsts = np.flatnonzero(starts)
    ids = np.empty(len(packed), dtype=np.int32)
    ids[by_value] = np.cumsum(starts, dtype=np.int32) - 1
    counts = np.diff(firsts, append=len(packed))
    return ordered[firsts], counts, by_value[firsts], ids


def _order(keys: Ints, counts: Ints, num_contexts: int, vocab_size: int) -> _Order:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    contexts = keys // vocab_size
    return _Order(
        keys=keys,
        discounted=counts - discount,
        totals=_sums(contexts, counts, num_contexts),
        backoff=_sums(contexts, discount, num_contexts),
    )


def _sums(groups: Ints, values: NDArray[Any], num_groups: int) -> Floats:
    return np.bincount(groups, weights=values, minlength=num_groups).astype(np.float64, copy=False)


def _discounts(counts: Ints) -> Floats:
    """(4,) what is taken off counts of 0, 1, 2 and 3 or more: Chen and Goodman (1998), eq. 26.

    Where one of the counts 1 to 4 never occurs, the estimate is undefined, and 0.5 is taken off
    each. The discounts never fall with the count: some context could lose nothing otherwise, and
    what follows it for the first time would have no probability.
    """
    ones, twos, threes, fours = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if not (ones and twos and threes and fours):
        return np.array([0.0, 0.5, 0.5, 0.5])
    share = ones / (ones + 2 * twos)
    first = 1 - 2 * share * twos / ones
    second = min(max(2 - 3 * share * threes / twos, first), 2.0)
    third = min(max(3 - 4 * share * fours / threes, second), 3.0)
    return np.array([0.0, first, second, third])
