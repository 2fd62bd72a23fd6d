"""Which examples share a row: best-fit decreasing, so that short examples cost no padding.

Everything here is a pure function of lengths. A place is one input and its target: an example of
n tokens takes n − 1 places. A unit is what must stay in one row: an example, or a pair of them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llamita.data.mixture import shuffled

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Packing:
    """Rows of up to `capacity` places.

    offsets: (num_rows + 1,), where each row begins in `examples`.
    examples: (num_placed,), numbers of the examples, ascending within a row.
    starts, lengths: (num_placed,), the first token taken of each example, and how many are.
    truncated, left_out: units of which tokens were cut off, and units of which nothing that is
        learnt would have remained.
    """

    capacity: int
    offsets: IntArray
    examples: IntArray
    starts: IntArray
    lengths: IntArray
    truncated: int
    left_out: int

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def max_examples(self) -> int:
        """The most examples that any row holds; 0 without rows."""
        return int(np.diff(self.offsets).max(initial=0))

    @property
    def utilisation(self) -> float:
        """Share of all places that hold an example; 0 without rows."""
        places = self.num_rows * self.capacity
        return int((self.lengths - 1).sum()) / places if places else 0.0

    def row(self, index: int) -> slice:
        """Where a row's examples lie in `examples`, `starts` and `lengths`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))


@dataclass(frozen=True)
class Cut:
    """What is taken of every example: `lengths` tokens from `starts` on, none if it is left out.

    truncated, left_out: units, as in `Packing`.
    """

    starts: IntArray
    lengths: IntArray
    truncated: int
    left_out: int


def pack(cut: Cut, capacity: int, *, group: int = 1) -> Packing:
    """Best-fit decreasing over the units' places (Johnson et al. 1974, SIAM J. Comput. 3:299).

    The longest unit first, each into the row that it leaves the least room in; units of one length
    in the order of their numbers. Best fit needs at most 11/9 of the optimal number of rows, and
    a few more. Rows are then put in an order that says nothing of lengths, so that any run of
    them is a fair sample.

    Args:
        cut: what is taken of each example; no unit takes more than `capacity` places.
        capacity: places of a row, T.
        group: successive examples that form a unit: 1, or 2 for pairs.
    """
    num_units = len(cut.lengths) // group
    assert num_units * group == len(cut.lengths), f"{len(cut.lengths)} examples in {group}s"
    taken = cut.lengths.reshape(num_units, group)
    units = np.flatnonzero(taken.min(axis=1, initial=1) > 0)
    sizes = (taken[units] - 1).sum(axis=1)
    assert sizes.min(initial=1) >= 1, "a unit takes no place"
    assert sizes.max(initial=0) <= capacity, "a unit is longer than a row"
    rows = _best_fit(sizes, capacity)
    num_rows = int(rows.max(initial=-1)) + 1
    rows = shuffled(rows, num_rows, "rows") if num_rows else rows
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=num_rows) * group
    examples = (units[order, None] * group + np.arange(group)).ravel()
    return Packing(
        capacity=capacity,
        offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        examples=examples,
        starts=cut.starts[examples],
        lengths=cut.lengths[examples],
        truncated=cut.truncated,
        left_out=cut.left_out,
    )


def _best_fit(sizes: IntArray, capacity: int) -> IntArray:
    """The row, from 0 on, of each unit.

    Units of one length are placed together: best fit fills a row of room r with r // length of
    them before it turns to a row with more room. A step is thus taken for each pair of a length
    and a room, not for each unit, and a million units take a second or two.
    """
    rows = np.empty(len(sizes), dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    lengths, counts = np.unique(sizes, return_counts=True)
    free: defaultdict[int, list[int]] = defaultdict(list)  # room → rows that have just this much
    num_free = np.zeros(capacity + 1, dtype=np.int64)
    place = num_rows = 0
    for length, count in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        chosen: list[int] = []  # one row a unit
        moves: list[tuple[int, list[int]]] = []
        for room in (length + np.flatnonzero(num_free[length:])).tolist():
            if len(chosen) == count:
                break
            wanted = -(-(count - len(chosen)) // (room // length))
            found = free[room][-wanted:]
            del free[room][-wanted:]
            num_free[room] -= len(found)
            moves += _place(chosen, found, room, length, count)
        if len(chosen) < count:
            wanted = -(-(count - len(chosen)) // (capacity // length))
            fresh = list(range(num_rows, num_rows + wanted))
            num_rows += wanted
            moves += _place(chosen, fresh, capacity, length, count)
        for room, moved in moves:
            free[room] += moved
            num_free[room] += len(moved)
        rows[order[place : place + count]] = chosen
        place += count
    return rows


def _place(
    chosen: list[int], rows: list[int], room: int, length: int, count: int
) -> list[tuple[int, list[int]]]:
    """Fill `rows`, each with `room` places, until `chosen` has `count` units; what room is left."""
    holds = room // length
    last = count - len(chosen) - (len(rows) - 1) * holds  # units that the last row takes
    if last >= holds:
        chosen += [row for row in rows for _ in range(holds)]
        return [(room - holds * length, rows)]
    chosen += [row for row in rows[:-1] for _ in range(holds)] + [rows[-1]] * last
    return [(room - holds * length, rows[:-1]), (room - last * length, rows[-1:])]
