"""Packing and cutting: the oracle is best fit written down naively, one example at a time."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.data.cutting import cut_chats, cut_pairs
from llamita.data.packing import Cut, Packing, pack


def uncut(lengths: list[int]) -> Cut:
    array = np.array(lengths, dtype=np.int64)
    return Cut(np.zeros_like(array), array, 0, 0)


def fills(packing: Packing, group: int = 1) -> Counter[tuple[int, ...]]:
    """Of every row, the places that its units take, the longest first."""
    rows: Counter[tuple[int, ...]] = Counter()
    for number in range(packing.num_rows):
        taken = (packing.lengths[packing.row(number)] - 1).reshape(-1, group).sum(axis=1)
        rows[tuple(sorted(taken.tolist(), reverse=True))] += 1
    return rows


def naive_best_fit(sizes: list[int], capacity: int) -> Counter[tuple[int, ...]]:
    rows: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row in rows if sum(row) + size <= capacity]
        if fitting:
            max(fitting, key=sum).append(size)
        else:
            rows.append([size])
    return Counter(tuple(row) for row in rows)


def fullness(rows: Counter[tuple[int, ...]]) -> Counter[int]:
    return Counter(sum(row) for row in rows.elements())


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 40))
    # 0: left out; n tokens take n − 1 places, and 1 token none that could be learnt.
    length = st.integers(1, capacity + 1).map(lambda n: 0 if n == 1 else n)
    return draw(st.lists(length, max_size=60)), capacity


@given(problems())
@settings(deadline=None)
def test_rows_are_those_of_best_fit_decreasing(problem: tuple[list[int], int]) -> None:
    lengths, capacity = problem
    packing = pack(uncut(lengths), capacity)
    placed = [number for number, length in enumerate(lengths) if length]
    assert sorted(packing.examples.tolist()) == placed  # each once
    # Rows that are equally full may take one another's units: it is how full they are that counts.
    wanted = naive_best_fit([lengths[n] - 1 for n in placed], capacity)
    assert fullness(fills(packing)) == fullness(wanted)
    for number in range(packing.num_rows):
        row = packing.row(number)
        assert row.start < row.stop
        assert int((packing.lengths[row] - 1).sum()) <= capacity
        assert (np.diff(packing.examples[row]) > 0).all()
    assert packing.max_examples == max(map(len, fills(packing)), default=0)


@given(problems())
@settings(deadline=None)
def test_pairs_stay_together(problem: tuple[list[int], int]) -> None:
    lengths, half = problem
    lengths, capacity = lengths[: len(lengths) // 2 * 2], 2 * half
    packing = pack(uncut(lengths), capacity, group=2)
    sides = packing.examples.reshape(-1, 2)
    assert np.array_equal(sides[:, 0] % 2, np.zeros(len(sides)))
    assert np.array_equal(sides[:, 1], sides[:, 0] + 1)
    assert (packing.offsets % 2 == 0).all()
    both = [lengths[i : i + 2] for i in range(0, len(lengths), 2)]
    whole = [sum(pair) - 2 for pair in both if min(pair) > 0]
    assert len(sides) == len(whole)
    assert fullness(fills(packing, 2)) == fullness(naive_best_fit(whole, capacity))


def test_short_examples_cost_almost_no_padding() -> None:
    """Chats have about log-normal lengths; no packing can do better than all places filled."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.5, 0.9, 20_000).astype(np.int64), 2, 2049)
    packing = pack(uncut(lengths.tolist()), 2048)
    assert packing.num_rows >= math.ceil((lengths - 1).sum() / 2048)
    assert packing.utilisation > 0.995


def test_rows_do_not_come_by_length() -> None:
    """Best fit begins with the longest; the first rows are to be a fair sample all the same."""
    generator = np.random.default_rng(1)
    packing = pack(uncut(generator.integers(2, 1026, 5000).tolist()), 1024)
    counts = np.diff(packing.offsets)
    early, late = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    # Apart by no more than four standard errors of their difference.
    error = math.sqrt(counts.var() * 2 / len(early))
    assert abs(early.mean() - late.mean()) < 4 * error


def test_nothing_to_pack() -> None:
    for lengths in ([], [0, 0]):
        packing = pack(uncut(lengths), 8)
        assert packing.num_rows == packing.max_examples == len(packing.examples) == 0
        assert packing.utilisation == 0


def marks(*spans: str) -> list[npt.NDArray[np.bool_]]:
    return [np.array([mark == "x" for mark in span]) for span in spans]


def test_chats_lose_their_end() -> None:
    learns = marks("..xx", "..xxx..x", ".......x", "x.......", ".x......")
    lengths = np.array([len(marked) for marked in learns])
    cut = cut_chats(lengths, 4, learns.__getitem__)
    # Five tokens are four places. The fourth and fifth differ: a first token is never a target.
    assert cut.lengths.tolist() == [4, 5, 0, 0, 5]
    assert cut.starts.tolist() == [0] * 5
    assert (cut.truncated, cut.left_out) == (2, 2)


def test_pairs_lose_their_prompt_then_the_end_of_answers() -> None:
    learns = marks(
        *("...xx", "...x"),  # 4 + 3 places
        *("......xx", "......x"),  # 7 + 6: a prompt of 6 has to be 3
        *(".xxxxxxxx", ".xx"),  # 8 + 2: the longer answer gives way
        *("...xxxxxx", "...xxxxx"),  # the prompt's last token stays, then 4 + 4 less one
    )
    lengths = np.array([len(marked) for marked in learns])
    cut = cut_pairs(lengths, 7, learns.__getitem__)
    assert cut.starts.tolist() == [0, 0, 3, 3, 0, 0, 2, 2]
    assert cut.lengths.tolist() == [5, 4, 5, 4, 6, 3, 5, 4]
    assert (cut.truncated, cut.left_out) == (3, 0)


@given(st.integers(1, 30), st.data())
@settings(deadline=None)
def test_a_cut_pair_fits_and_keeps_both_answers(capacity: int, data: st.DataObject) -> None:
    learns = []
    for _ in range(data.draw(st.integers(1, 4))):
        prompt = data.draw(st.integers(1, 30))
        for _ in range(2):
            answer = data.draw(st.integers(1, 30))
            learns.append(np.arange(prompt + answer) >= prompt)
    lengths = np.array([len(marked) for marked in learns])
    cut = cut_pairs(lengths, capacity, learns.__getitem__)
    places = (cut.lengths - 1).reshape(-1, 2).sum(axis=1)
    assert (places <= capacity).all()
    if capacity == 1:
        assert cut.left_out == len(learns) // 2
        return
    assert cut.left_out == 0
    for number, marked in enumerate(learns):
        kept = marked[cut.starts[number] :][: cut.lengths[number]]
        assert kept[1:].any()
        assert not kept[0]
    # No place is wasted: a pair that was cut fills its row, or is one short of it.
    whole = (lengths - 1).reshape(-1, 2).sum(axis=1)
    assert (places[whole > capacity] >= capacity - 1).all()
    assert (places[whole <= capacity] == whole[whole <= capacity]).all()
