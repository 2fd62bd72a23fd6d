"""Which windows a step reads: a pure function of (mixture, seed, windows consumed).

Two questions, each answered without state beyond a few integers:

* Which source does the next window come from? `Mixture` schedules sources by quota, not by
  dice: after any n windows of a stage each source has given n × share windows, to within one.
* Which window of the source is its i-th? `shuffled` permutes each epoch by a keyed bijection
  that is computed, not stored, so that resuming deep inside a trillion tokens costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from llamita.recipes.schema import exact_share

IntArray = npt.NDArray[np.int64]


class Mixture:
    """Deterministic quota schedule over sources.

    The rule is earliest deadline first over the windows in which each source's next turn is
    due, the single-processor case of proportionate fairness (Baruah et al. 1996), in exact
    integers: the i-th turn (from 0) of a source with share w falls in slots ⌊i/w⌋ … ⌈(i+1)/w⌉ −
    1, which keeps every count within one of its quota at every slot.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        exact = {name: exact_share(share) for name, share in shares.items()}
        total = sum(exact.values())
        self.names = tuple(shares)
        self._shares = [exact[name] / total for name in self.names]

    def assign(self, counts: Sequence[int], num_windows: int) -> IntArray:
        """Source numbers, shape (num_windows,), of the slots after `counts` windows per source."""
        taken = list(counts)
        slot = sum(taken)
        ratios = [(share.numerator, share.denominator) for share in self._shares]
        assigned = np.empty(num_windows, dtype=np.int64)
        if len(taken) == 1:
            assigned.fill(0)
            return assigned
        releases = [x * q // p for x, (p, q) in zip(taken, ratios, strict=True)]
        deadlines = [-(-(x + 1) * q // p) for x, (p, q) in zip(taken, ratios, strict=True)]
        sources = range(len(taken))
        for index in range(num_windows):
            chosen = min((s for s in sources if releases[s] <= slot), key=deadlines.__getitem__)
            assigned[index] = chosen
            taken[chosen] += 1
            slot += 1
            p, q = ratios[chosen]
            releases[chosen] = taken[chosen] * q // p
            deadlines[chosen] = -(-(taken[chosen] + 1) * q // p)
        return assigned


def shuffled(positions: IntArray, size: int, key: str) -> IntArray:
    """Where each position of 0 … size−1 lands under the permutation named by `key`.

    A four-round Feistel network over the smallest even number of bits that holds `size`, walked
    until the result lies below it (Black and Rogaway 2002, "cycle walking"): O(1) memory, under
    four rounds a position on average. Shape and dtype as `positions`.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    digest = hashlib.blake2b(key.encode(), digest_size=32).digest()
    round_keys = np.frombuffer(digest, dtype="<u8")

    def permute(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> shift, values & mask
        for round_key in round_keys:
            left, right = right, left ^ (_scramble(right ^ round_key) & mask)
        return (left << shift) | right

    values = permute(positions.astype(np.uint64))
    outside = values >= size
    while outside.any():
        values[outside] = permute(values[outside])
        outside = values >= size
    return values.astype(np.int64)


def _scramble(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): each input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
