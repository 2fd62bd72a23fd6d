"""What is taken of each example where rows are shorter than it.

Places are counted as in `packing`: an example of n tokens takes n − 1, the inputs 0 … n−2 with the
targets 1 … n−1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llamita.data.packing import Cut, IntArray

Learns = Callable[[int], npt.NDArray[np.bool_]]


def cut_chats(lengths: IntArray, capacity: int, learns: Learns) -> Cut:
    """Chats lose their end: the first `capacity` places stay.

    A chat of which no target that is learnt would stay is left out.

    Args:
        lengths: tokens of each chat; every one has a target that is learnt.
        capacity: places of a row.
        learns: the tokens of a chat that are learnt, by its number; asked of long ones only.
    """
    taken = np.minimum(lengths, capacity + 1)
    long = np.flatnonzero(lengths > capacity + 1)
    for number in long.tolist():
        if not learns(number)[1 : capacity + 1].any():
            taken[number] = 0
    left_out = int((taken == 0).sum())
    return Cut(np.zeros_like(lengths), taken, len(long) - left_out, left_out)


def cut_pairs(lengths: IntArray, capacity: int, learns: Learns) -> Cut:
    """Pairs lose the beginning of their prompt, the same number of tokens on both sides, and only
    where the answers alone are too long, the end of these too: the longer one first.

    At least the last token of the prompt stays, since it predicts the answer's first. A pair is
    left out if one of its answers would lose all that is learnt.

    Args:
        lengths: tokens of chosen and rejected in turn; both have a target that is learnt.
        capacity: places of a row, which holds both.
        learns: as for `cut_chats`; the prompt ends at the first token that is learnt.
    """
    starts, taken = np.zeros_like(lengths), lengths.copy()
    long = np.flatnonzero((lengths - 1).reshape(-1, 2).sum(axis=1) > capacity)
    left_out = 0
    for pair in long.tolist():
        both = slice(2 * pair, 2 * pair + 2)
        answers = [int(np.argmax(learns(number))) for number in (2 * pair, 2 * pair + 1)]
        places = lengths[both] - 1
        excess = int(places.sum()) - capacity
        dropped = max(0, min(-(-excess // 2), min(answers) - 1))
        kept = _within(places - dropped, capacity)
        if (np.array(answers) - dropped > kept).any():
            kept, left_out = np.array([-1, -1]), left_out + 1
        starts[both] = dropped
        taken[both] = kept + 1
    return Cut(starts, taken, len(long) - left_out, left_out)


def _within(places: IntArray, capacity: int) -> IntArray:
    """The two largest numbers of places, as equal as may be, that `capacity` has room for."""
    shorter = min(int(places.min()), capacity // 2)
    longer = min(int(places.max()), capacity - shorter)
    return np.array([longer, shorter] if places[0] > places[1] else [shorter, longer])
