"""Intervals hold what they say: counted exactly from the binomial where that can be done, else over
simulated models; the rest against closed forms, printed tables and published examples."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from llamita.errors import UserError
from llamita.evaluation.intervals import (
    Estimate,
    above_chance,
    mean,
    paired,
    paired_ratio,
    pass_at_k,
    proportion,
    ratio,
)

Floats = npt.NDArray[np.float64]


def log_factorials(n: int) -> Floats:
    return np.array([math.lgamma(k + 1) for k in range(n + 1)])


def binomial(n: int, shares: Floats) -> Floats:
    """P(k of n) by k and share: (n + 1, shares)."""
    f, k = log_factorials(n), np.arange(n + 1)[:, None]
    return np.exp((f[n] - f - f[::-1])[:, None] + k * np.log(shares) + (n - k) * np.log1p(-shares))


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize(("least", "most"), [(0.05, 0.95), (0.001, 0.05), (0.95, 0.999)])
def test_intervals_of_accuracies_hold_95_of_100(n: int, least: float, most: float) -> None:
    accuracies = np.linspace(least, most, 2001)
    found = [proportion(k, n) for k in range(n + 1)]
    low, high = (np.array([getattr(each, end) for each in found]) for end in ("low", "high"))
    held = (low[:, None] <= accuracies) & (accuracies <= high[:, None])
    assert 0.94 <= (binomial(n, accuracies) * held).sum(0).mean() <= 0.96


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # table I of Newcombe, Statistics in Medicine 17:857 (1998), method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(successes: int, n: int, low: float, high: float) -> None:
    found = proportion(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_ends_are_exact_where_nothing_or_everything_is_right() -> None:
    for n in (1, 3, 7, 100, 1319):
        assert proportion(0, n).low == 0.0
        assert proportion(n, n).high == 1.0
        assert 0 < proportion(0, n).high < 1
        assert 0 < proportion(n, n).low < 1


def test_another_level_is_another_interval() -> None:
    # Wilson's ends solve (p − s)² = z²·p(1 − p)/n; z of 99% is 2.5758
    found = proportion(30, 100, level=0.99)
    for end in (found.low, found.high):
        assert (end - 0.3) ** 2 == pytest.approx(2.575829**2 * end * (1 - end) / 100, rel=1e-6)


def test_standard_errors_are_those_of_the_sample() -> None:
    for values in ([0, 1, 1, 0, 1, 1, 1], [0.25, 0.5, 1.0, 0.0]):
        found = mean(values)
        assert found.value == pytest.approx(statistics.mean(values))
        assert found.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)))
        assert found.n == len(values)


def test_answers_that_are_right_or_wrong_are_a_share() -> None:
    assert mean([0, 1, 1, 0]) == proportion(2, 4)
    assert mean([True, False, False, False]) == proportion(1, 4)


# Student's t beyond which 2.5% lie, as tables print it
@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (120, 1.9799)]
)
def test_other_scores_have_students_t(freedom: int, t: float) -> None:
    values = np.linspace(1, 2, freedom + 1)
    found = mean(list(values))
    assert (found.high - found.value) / found.stderr == pytest.approx(t, abs=6e-5)
    assert found.high - found.value == pytest.approx(found.value - found.low)


def test_t_tests_have_the_closed_form_of_two_degrees_of_freedom() -> None:
    # P(|T| > t) = 1 − t/√(2 + t²)
    for shift in (0.0, 0.01, 0.3, 1.0, 40.0):
        found = paired([shift - 1, shift, shift + 1], [0.5, 0.5, 0.5])
        t = abs(shift - 0.5) * math.sqrt(3)
        assert found.stderr == pytest.approx(1 / math.sqrt(3))
        assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-12)


def test_t_tests_become_normal_ones() -> None:
    half = 20_000
    a = np.concatenate((np.full(half, 0.5), np.full(half, -0.49)))
    found = paired(list(a), [0.0] * (2 * half))
    z = found.value / found.stderr
    assert found.p == pytest.approx(2 * statistics.NormalDist().cdf(-z), rel=1e-3)


def test_means_of_graded_answers_hold_95_of_100() -> None:
    draws = np.random.default_rng(7).beta(2, 3, (4000, 40))
    found = [mean(list(row)) for row in draws]
    assert 0.94 <= np.mean([each.low <= 0.4 <= each.high for each in found]) <= 0.96


def answers(wins: int, losses: int, n: int) -> tuple[list[float], list[float]]:
    """Two models' answers: only the first, only the second, or both are right."""
    rest = n - wins - losses
    return [1.0] * wins + [0.0] * losses + [1.0] * rest, [0.0] * wins + [1.0] * (losses + rest)


def test_paired_as_published() -> None:
    """1 against 7 of 21: Tango's interval and the exact test of Fagerland, Lydersen and Laake,
    Statistics in Medicine 33:2850 (2014), and BMC Medical Research Methodology 13:91 (2013)."""
    found = paired(*answers(1, 7, 21))
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)
    assert round(found.p, 4) == 0.0703
    assert found.value == pytest.approx(-6 / 21)
    turned = paired(*reversed(answers(1, 7, 21)))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_two_models_that_agree_everywhere_may_still_differ_a_little() -> None:
    # with no disagreement the ends are ± z²/(n + z²)
    found = paired(*answers(0, 0, 100))
    assert (found.value, found.p) == (0.0, 1.0)
    assert found.includes_zero
    assert found.high == pytest.approx(1.959964**2 / (100 + 1.959964**2), abs=1e-6)
    assert found.low == pytest.approx(-found.high)
    opposed = paired(*answers(10, 0, 10))
    assert opposed.high == 1.0
    assert not opposed.includes_zero


def test_paired_intervals_hold_95_of_100() -> None:
    """All outcomes of 60 items, weighed by their probabilities, over models that disagree on 3 to
    40 of 100 items."""
    n = 60
    f = log_factorials(n)
    cells = [(w, k) for w in range(n + 1) for k in range(w + 1) if w + k <= n]
    wins, losses = (np.array(each) for each in zip(*cells, strict=True))
    found = [paired(*answers(w, k, n)) for w, k in cells]
    low, high = (np.array([getattr(each, end) for each in found]) for end in ("low", "high"))
    counts = f[n] - f[wins] - f[losses] - f[n - wins - losses]
    held = []
    for disagree, better in itertools.product(np.linspace(0.03, 0.4, 9), np.linspace(0, 1, 21)):
        p, q = disagree * (0.02 + 0.96 * better), disagree * (0.98 - 0.96 * better)
        chance = np.exp(
            counts
            + wins * math.log(p)
            + losses * math.log(q)
            + (n - wins - losses) * math.log1p(-p - q)
        )
        inside = (low <= p - q) & (p - q <= high)
        # the outcomes with wins and losses exchanged have the interval turned round
        turned = np.exp(
            counts
            + losses * math.log(p)
            + wins * math.log(q)
            + (n - wins - losses) * math.log1p(-p - q)
        )
        turned_inside = (-high <= p - q) & (p - q <= -low)
        held.append((chance * inside).sum() + (turned * turned_inside)[wins > losses].sum())
    assert 0.94 <= np.mean(held) <= 0.96
    assert min(held) > 0.92


def test_the_exact_test_counts_outcomes() -> None:
    for wins, losses in [(0, 0), (1, 0), (3, 3), (5, 1), (2, 9)]:
        total = wins + losses
        uneven = abs(wins - losses)
        outcomes = [abs(2 * k - total) >= uneven for k in range(total + 1)]
        expected = sum(math.comb(total, k) for k in range(total + 1) if outcomes[k]) / 2**total
        assert paired(*answers(wins, losses, 20)).p == pytest.approx(expected)


def test_the_exact_test_of_many_items() -> None:
    found = paired(*answers(6000, 6200, 14_000))
    # normal, with continuity correction
    z = 199 / math.sqrt(12_200)
    assert found.p == pytest.approx(2 * statistics.NormalDist().cdf(-z), rel=1e-3)


def test_pairing_sees_what_two_intervals_do_not() -> None:
    a, b = answers(30, 5, 500)
    a[-240:] = b[-240:] = [0.0] * 240
    assert mean(a).low < mean(b).high
    assert not paired(a, b).includes_zero


def documents(rng: np.random.Generator, n: int, spread: float) -> tuple[Floats, Floats]:
    """Nats and bytes of documents of 0.7 ± 0.15 nats a byte, log-normal in length."""
    lengths = np.exp(rng.normal(7, spread, n))
    return lengths * (0.7 + 0.15 * rng.normal(size=n)), lengths


def test_ratio_of_documents_of_one_length_is_their_mean() -> None:
    nats = [90.0, 120.0, 75.0, 101.0]
    found, expected = ratio(nats, [100.0] * 4), mean([each / 100 for each in nats])
    assert vars(found) == pytest.approx(vars(expected))


def test_ratio_is_of_totals_and_has_no_unit() -> None:
    found = ratio([10.0, 30.0, 80.0], [10.0, 20.0, 100.0])
    assert found.value == pytest.approx(120 / 130)
    larger = ratio([100.0, 300.0, 800.0], [20.0, 40.0, 200.0])
    assert vars(larger) == pytest.approx(
        {k: v if k == "n" else 5 * v for k, v in vars(found).items()}
    )


def test_ratio_has_degrees_of_freedom_by_its_definition() -> None:
    nats, lengths = documents(np.random.default_rng(3), 12, 1.0)
    w = lengths / lengths.sum()
    rates = nats / lengths - nats.sum() / lengths.sum()
    weights = w * w / (1 - w)
    form = np.diag(weights) @ (np.eye(12) - w[:, None] - w + w @ w)
    freedom = np.trace(form) ** 2 / np.trace(form @ form)
    found = ratio(list(nats), list(lengths))
    assert found.stderr == pytest.approx(math.sqrt(weights @ rates**2))
    t = (found.high - found.value) / found.stderr
    x = np.linspace(-t, t, 1_000_001)
    density = (1 + x * x / freedom) ** (-(freedom + 1) / 2) / math.sqrt(freedom * math.pi)
    density *= math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    assert np.trapezoid(density, x) == pytest.approx(0.95, abs=1e-8)


@pytest.mark.parametrize(
    ("n", "spread", "least", "most"),
    [
        (10, 0.0, 0.94, 0.96),
        (100, 0.0, 0.94, 0.96),
        (100, 0.7, 0.94, 0.965),
        (100, 1.0, 0.94, 0.975),
        (400, 1.0, 0.94, 0.975),
    ],
)
def test_ratios_hold_95_of_100(n: int, spread: float, least: float, most: float) -> None:
    rng = np.random.default_rng(11)
    found = [ratio(*documents(rng, n, spread)) for _ in range(2000)]
    assert least <= np.mean([each.low <= 0.7 <= each.high for each in found]) <= most


def test_paired_ratios_hold_95_of_100() -> None:
    rng = np.random.default_rng(13)
    held, decided = 0, 0
    for _ in range(2000):
        nats, lengths = documents(rng, 100, 0.7)
        other = nats - lengths * (0.01 + 0.03 * rng.normal(size=100))
        found = paired_ratio(nats, other, lengths)
        held += found.low <= 0.01 <= found.high
        decided += (found.p < 0.05) != found.includes_zero
    assert 0.94 <= held / 2000 <= 0.97
    assert decided == 2000  # test and interval are one


def test_one_item_shows_no_spread() -> None:
    assert mean([0.5]).stderr == math.inf
    assert mean([1]).stderr == math.inf
    assert 0 < mean([1]).low < mean([1]).high == 1
    one = paired_ratio([3.0], [2.0], [1.0])
    assert (one.value, one.p, one.includes_zero) == (1.0, 1.0, True)
    assert not above_chance(ratio([3.0], [2.0]), 0.25)


def test_differences_that_are_all_the_same() -> None:
    same = paired([0.1, 0.7], [0.1, 0.7])
    assert (same.value, same.stderr, same.p) == (0.0, 0.0, 1.0)
    more = paired([0.3, 0.9, 0.5], [0.1, 0.7, 0.3])
    assert more.value == pytest.approx(0.2)
    assert not more.includes_zero
    assert more.p < 1e-12


def test_above_chance_asks_the_whole_interval() -> None:
    assert above_chance(Estimate(0.3, 0.02, 0.26, 0.34, 100), 0.25)
    assert not above_chance(Estimate(0.3, 0.02, 0.25, 0.34, 100), 0.25)
    assert not above_chance(proportion(27, 100), 0.25)


@pytest.mark.parametrize(("n", "correct"), [(1, 0), (1, 1), (6, 0), (6, 2), (6, 5), (6, 6)])
def test_pass_at_k_is_what_drawing_gives(n: int, correct: int) -> None:
    right = [True] * correct + [False] * (n - correct)
    for k in range(1, n + 1):
        draws = [any(drawn) for drawn in itertools.combinations(right, k)]
        assert pass_at_k(n, correct, k) == pytest.approx(statistics.mean(draws))


def test_pass_at_k_of_many_samples_stays_a_number() -> None:
    missed = Fraction(math.comb(99_950, 100), math.comb(100_000, 100))
    assert pass_at_k(100_000, 50, 100) == pytest.approx(float(1 - missed))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "no items"),
        (lambda: proportion(0, 0), "no items"),
        (lambda: mean([0.5, math.nan]), "item 2 of 2 has the score nan"),
        (lambda: ratio([1.0, 2.0], [3.0, 0.0]), "document 2 of 2 is empty"),
        (lambda: pass_at_k(5, 1, 10), "pass@10 needs 10 samples or more, there are 5"),
        (lambda: pass_at_k(5, 1, 0), "pass@0"),
    ],
)
def test_what_cannot_be_estimated(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_items_must_be_the_same() -> None:
    pairs: Sequence[Sequence[float]] = ([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="2 items beside 1"):
        paired(*pairs)
    with pytest.raises(ValueError, match="2 documents beside 1"):
        ratio(*pairs)
