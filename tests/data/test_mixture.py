"""Which source and which window comes next: quotas kept at every slot, orders shuffled."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.data.mixture import Mixture, shuffled
from llamita.recipes.schema import exact_share


@st.composite
def share_vectors(draw: st.DrawFn) -> dict[str, float]:
    """Shares with up to four decimals, as people write them, that sum to one."""
    total = 10 ** draw(st.integers(1, 4))
    count = draw(st.integers(1, min(8, total)))
    cuts = draw(
        st.lists(st.integers(1, total - 1), min_size=count - 1, max_size=count - 1, unique=True)
    )
    edges = [0, *sorted(cuts), total]
    return {f"s{n}": (b - a) / total for n, (a, b) in enumerate(itertools.pairwise(edges))}


def largest_deviation(shares: dict[str, float], order: np.ndarray) -> Fraction:
    """max over slots n and sources of |count − n·share|, exactly."""
    exact = [exact_share(share) for share in shares.values()]
    total = sum(exact)
    worst = Fraction(0)
    counts = [0] * len(exact)
    for slot, source in enumerate(order.tolist(), start=1):
        counts[source] += 1
        for count, share in zip(counts, exact, strict=True):
            worst = max(worst, abs(count - slot * share / total))
    return worst


@settings(max_examples=60, deadline=None)
@given(share_vectors(), st.integers(1, 300))
def test_every_count_is_within_one_of_its_quota_at_every_slot(
    shares: dict[str, float], slots: int
) -> None:
    mixture = Mixture(shares)
    assert largest_deviation(shares, mixture.assign([0] * len(shares), slots)) < 1


@settings(max_examples=40, deadline=None)
@given(share_vectors(), st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_resuming_from_counts_continues_identically(
    shares: dict[str, float], pieces: list[int]
) -> None:
    mixture = Mixture(shares)
    whole = mixture.assign([0] * len(shares), sum(pieces))
    counts = [0] * len(shares)
    joined: list[int] = []
    for piece in pieces:
        part = mixture.assign(counts, piece).tolist()
        joined += part
        counts = [count + part.count(source) for source, count in enumerate(counts)]
    assert joined == whole.tolist()


def test_far_into_a_run() -> None:
    """A trillion windows on, by exact integers, the quota still holds."""
    shares = {"a": 0.693584, "b": 0.306416}
    done = 10**12
    counts = [693584 * 10**6, 306416 * 10**6]
    order = Mixture(shares).assign(counts, 1000)
    assert np.array_equal(order, Mixture(shares).assign([0, 0], 1000))
    assert sum(counts) == done


def test_thirds_that_sum_to_almost_one() -> None:
    shares = dict.fromkeys("abc", 0.333333)
    order = Mixture(shares).assign([0, 0, 0], 999)
    assert Counter(order.tolist()) == {0: 333, 1: 333, 2: 333}


def test_one_source() -> None:
    assert Mixture({"a": 1.0}).assign([5], 4).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4096, 4097, 65_537])
def test_shuffled_is_a_permutation(size: int) -> None:
    landed = shuffled(np.arange(size), size, f"key-{size}")
    assert landed.dtype == np.int64
    assert np.array_equal(np.sort(landed), np.arange(size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.text(max_size=8))
def test_shuffled_is_a_permutation_of_any_size(size: int, key: str) -> None:
    assert len(set(shuffled(np.arange(size), size, key).tolist())) == size


def test_a_position_lands_alike_alone_and_in_company() -> None:
    size = 10**12
    positions = np.array([0, 1, 10**11, size - 1])
    together = shuffled(positions, size, "k")
    alone = [int(shuffled(positions[i : i + 1], size, "k")[0]) for i in range(4)]
    assert together.tolist() == alone
    assert len(set(alone)) == 4
    assert all(0 <= landed < size for landed in alone)


def test_keys_name_different_permutations() -> None:
    size = 1000
    orders = [shuffled(np.arange(size), size, f"42/prose@32/{epoch}") for epoch in range(20)]
    for one, other in itertools.combinations(orders, 2):
        # Fixed points of one against another are Poisson(1): 12 has a chance of 1e-9 or so.
        assert (one == other).sum() < 12


def test_small_sets_take_every_order() -> None:
    """All 24 orders of four things come up over 2400 keys, none of them rarely.

    Four Feistel rounds of so few bits are not quite even; on thousands of windows it is nothing.
    """
    seen = Counter(tuple(shuffled(np.arange(4), 4, str(key)).tolist()) for key in range(2400))
    assert len(seen) == 24
    assert 50 < min(seen.values()) <= max(seen.values()) < 200


def test_no_correlation_is_visible() -> None:
    """Of position with place, and of neighbours' places: within 5 σ of a random permutation's."""
    size = 20_011
    positions = np.arange(size)
    for key in ("a", "b", "c"):
        landed = shuffled(positions, size, key)
        limit = 5 / math.sqrt(size)
        assert abs(np.corrcoef(positions, landed)[0, 1]) < limit
        for lag in (1, 2, 64, 128, 142):
            assert abs(np.corrcoef(landed[:-lag], landed[lag:])[0, 1]) < limit
        # Neighbours stay neighbours as often as by chance: Poisson(2).
        assert (np.abs(np.diff(landed)) == 1).sum() < 15
        # Each of 16 equal parts of the order draws from all of the data alike.
        for part in np.array_split(landed, 16):
            counts = np.bincount(part * 16 // size, minlength=16)
            expected = len(part) / 16
            assert ((counts - expected) ** 2 / expected).sum() < 50  # 15 d.o.f., 1e-5
