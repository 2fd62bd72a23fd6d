"""How far a score could be luck: estimates with standard errors and intervals, and paired
comparisons of two models.

Items (questions, documents) count as drawn at random from all that might have been asked. How far
apart they lie a single one cannot show: its standard error is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from llamita.errors import UserError

__all__ = [
    "Difference",
    "Estimate",
    "above_chance",
    "mean",
    "paired",
    "paired_ratio",
    "pass_at_k",
    "proportion",
    "ratio",
]

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, share or ratio over `n` items, its standard error, and the ends of its interval.

    Of one item `stderr` is infinite, and so are the ends but for a share's.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """First minus second on the same `n` items, and the two-sided p-value of there being none."""

    value: float
    stderr: float
    low: float
    high: float
    n: int
    p: float

    @property
    def includes_zero(self) -> bool:
        """Whether the interval holds 0: then no difference is shown."""
        return self.low <= 0.0 <= self.high


def proportion(successes: float, n: int, level: float = 0.95) -> Estimate:
    """A share, with Wilson's score interval (J. Am. Stat. Assoc. 22:209, 1927, equation 4).

    At 95% it holds the true share 95.1% of the time at n = 100 and 95.0% at 1000, averaged over
    shares of 0.05 to 0.95, and 95.5% and 95.2% over 0.001 to 0.05: exact, by the binomial. Over
    the latter p ± 1.96 stderr holds it 78% and 93% of the time, and the "exact" interval of
    Clopper and Pearson 98% and 96%.

    The standard error is lm-eval's, √(p(1 − p)/(n − 1)).

    Raises:
        UserError: no items.
    """
    if n < 1:
        raise UserError("there are no items to take a mean of; give at least one.")
    assert 0 <= successes <= n, f"{successes} of {n}"
    share = successes / n
    z = NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / scale
    stderr = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.inf
    # 0 and 1 exactly where they are meant: rounding would leave 1e-18 of chance level 0
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Estimate(share, stderr, low, high, n)


def mean(values: Sequence[float], level: float = 0.95) -> Estimate:
    """A mean of items: a `proportion` where all are 0 or 1, else with Student's t.

    Raises:
        UserError: no items, or one that is not finite.
    """
    items = _finite(values)
    if bool(np.isin(items, (0.0, 1.0)).all()):
        return proportion(float(items.sum()), len(items), level)
    value, stderr = float(items.mean()), _stderr(items)
    half = _half_width(stderr, len(items) - 1, level)
    return Estimate(value, stderr, value - half, value + half, len(items))


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95
) -> Estimate:
    """Σa / Σb over documents, such as nats over bytes, with a standard error by document.

    With r the ratio and wᵢ = bᵢ / Σb, the variance is Σ(aᵢ − r·bᵢ)² / (1 − wᵢ) / (Σb)². For
    documents of one length that is the delta method's (Cochran, Sampling Techniques, 3rd ed.,
    1977, section 2.11). Where a few hold most of the bytes r is drawn to them and their residuals
    are too small; 1 − wᵢ makes up for it, and the t of the interval has the degrees of freedom
    that Bell and McCaffrey (Survey Methodology 28:169, 2002) give such a variance. Of documents
    whose lengths spread log-normally by σ = 1 the delta method with n − 1 of them holds the true
    ratio 88% of the time at n = 10 and 94% at 100, by σ = 1.5 78% and 90%; this holds it 98% and
    96%, and 98% and 98%, erring on the wide side.

    Raises:
        UserError: no documents, a value that is not finite, or a denominator that is not positive.
    """
    a, b = _of_documents(numerators, denominators)
    value, stderr, freedom = _ratio(a, b)
    half = _half_width(stderr, freedom, level)
    return Estimate(value, stderr, value - half, value + half, len(a))


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Difference:
    """Mean of `a` minus mean of `b`, two models' scores of the same items in the same order.

    Where all are 0 or 1: Tango's score interval for a difference of paired proportions (Statistics
    in Medicine 17:891, 1998), and the p-value of McNemar's exact test (Psychometrika 12:153, 1947),
    which never errs more often than it says and therefore may call a difference undecided that the
    interval, which holds on average, shows. Otherwise a paired t-test.

    Raises:
        UserError: no items, or one that is not finite.
    """
    first, second = _finite(a), _finite(b)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} items beside {len(second)}: they are not the same ones")
    gaps, n = first - second, len(first)
    value, stderr = float(gaps.mean()), _stderr(gaps)
    if bool(np.isin((first, second), (0.0, 1.0)).all()):
        wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
        low, high = -_tango_end(losses, wins, n, level), _tango_end(wins, losses, n, level)
        return Difference(value, stderr, low, high, n, _mcnemar(wins, losses))
    return _by_t(value, stderr, n - 1, n, level)


def paired_ratio(
    a_numerators: Sequence[float],
    b_numerators: Sequence[float],
    denominators: Sequence[float],
    level: float = 0.95,
) -> Difference:
    """Difference of two ratios over the same documents, such as two models' nats over bytes: the
    `ratio` of the differences, and its t-test.

    Raises:
        UserError: as for `ratio`.
    """
    first, bottoms = _of_documents(a_numerators, denominators)
    second, _ = _of_documents(b_numerators, denominators)
    value, stderr, freedom = _ratio(first - second, bottoms)
    return _by_t(value, stderr, freedom, len(first), level)


def above_chance(estimate: Estimate, chance: float) -> bool:
    """Whether all of an interval lies above chance level."""
    return estimate.low > chance


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that of `k` samples drawn from `n`, of which so many are `correct`, one is.

    1 − C(n − c, k) / C(n, k), without bias, as a product (arXiv 2107.03374, equation 1, figure 3).

    Raises:
        UserError: fewer samples than `k`.
    """
    assert 0 <= correct <= n, f"{correct} of {n}"
    if not 1 <= k <= n:
        raise UserError(f"pass@{k} needs {max(k, 1)} samples or more, there are {n}; draw more.")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def _finite(values: Sequence[float]) -> _Floats:
    items = np.asarray(values, dtype=np.float64)
    if not len(items):
        raise UserError("there are no items to take a mean of; give at least one.")
    wrong = np.flatnonzero(~np.isfinite(items))
    if len(wrong):
        place = int(wrong[0])
        raise UserError(
            f"item {place + 1} of {len(items)} has the score {items[place]}: no mean can be taken; "
            "look at what the model answers there."
        )
    return items


def _of_documents(tops: Sequence[float], bottoms: Sequence[float]) -> tuple[_Floats, _Floats]:
    a, b = _finite(tops), _finite(bottoms)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} documents beside {len(b)}: they are not the same ones")
    if b.min() <= 0:
        raise UserError(
            f"document {int(b.argmin()) + 1} of {len(b)} is empty, a share of it means nothing; "
            "leave empty documents out."
        )
    return a, b


def _stderr(items: _Floats) -> float:
    if len(items) == 1:
        return math.inf
    if items.min() == items.max():
        return 0.0  # exactly: a mean's rounding would leave 1e-17, and a p-value of that
    return float(items.std(ddof=1)) / math.sqrt(len(items))


def _ratio(a: _Floats, b: _Floats) -> tuple[float, float, float]:
    """Σa / Σb, its standard error and the degrees of freedom of that."""
    total = b.sum()
    value = float(a.sum() / total)
    if len(a) == 1:
        return value, math.inf, 0.0
    w = b / total
    weights = w * w / (1 - w)
    stderr = math.sqrt(float(weights @ np.square(a / b - value)))
    # Residuals of equal rates' noise have the covariance C = 1{i=j} − wᵢ − wⱼ + Σw². With M =
    # diag(weights)·C the degrees of freedom are (tr M)² / tr M²; its sum over i and j is
    # opened up, so that it costs n and not n².
    s = w @ w
    own = 1 - 2 * w + s
    d, dw, dww = weights.sum(), weights @ w, weights @ (w * w)
    everywhere = s * s * d * d - 4 * s * d * dw + 2 * d * dww + 2 * dw * dw
    diagonal = np.square(weights) @ (np.square(own) - np.square(own - 1))
    freedom = float((weights @ own) ** 2 / (everywhere + diagonal))
    return value, stderr, max(1.0, freedom)  # below 1 by rounding alone


def _by_t(value: float, stderr: float, freedom: float, n: int, level: float) -> Difference:
    half = _half_width(stderr, freedom, level)
    if math.isinf(stderr) or value == 0:
        p = 1.0
    elif stderr == 0:
        p = 0.0
    else:
        p = _t_tails(abs(value) / stderr, freedom)
    return Difference(value, stderr, value - half, value + half, n, p)


def _half_width(stderr: float, freedom: float, level: float) -> float:
    return math.inf if math.isinf(stderr) else stderr * _t_quantile(freedom, level)


def _mcnemar(wins: int, losses: int) -> float:
    """Two-sided binomial p-value of so uneven a split, in whole numbers until the last division."""
    total, term, below = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        below += term
        term = term * (total - k) // (k + 1)
    return min(1.0, 2 * below / (1 << total))


def _tango_end(wins: int, losses: int, n: int, level: float) -> float:
    """The upper end: where a difference would be so large that its score statistic is −z."""
    z = NormalDist().inv_cdf((1 + level) / 2)

    def excess(gap: float) -> float:
        # The share of losses that is most likely if the difference is `gap`: the larger root of
        # 2n·q² + linear·q − losses·gap·(1 − gap), written without loss of digits.
        linear = (2 * n - wins + losses) * gap - (wins + losses)
        product = losses * gap * (1 - gap)
        root = math.sqrt(max(0.0, linear * linear + 8 * n * product))
        lost = 2 * product / (linear + root) if linear > 0 else (root - linear) / (4 * n)
        variance = n * (2 * lost + gap * (1 - gap))
        return wins - losses - n * gap + z * math.sqrt(max(0.0, variance))

    low, high = (wins - losses) / n, 1.0
    for _ in range(60):  # halvings: 2 · 2⁻⁶⁰ is below a double's rounding
        middle = (low + high) / 2
        if excess(middle) > 0:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=4096)
def _t_quantile(freedom: float, level: float) -> float:
    """The t beyond which, both ways, 1 − `level` of Student's distribution lies."""
    log_gammas = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    peak = math.exp(log_gammas) / math.sqrt(freedom * math.pi)
    # The tails are convex in t and heavier than the normal's: Newton's steps only go up.
    t = NormalDist().inv_cdf((1 + level) / 2)
    for _ in range(100):
        density = peak * math.exp(-(freedom + 1) / 2 * math.log1p(t * t / freedom))
        step = (_t_tails(t, freedom) - (1 - level)) / (2 * density)
        t += step
        if step < 1e-12 * t:
            return t
    raise AssertionError(f"t of {freedom} degrees of freedom at {level} did not converge")


def _t_tails(t: float, freedom: float) -> float:
    """P(|T| > t) of Student's t: I_x(freedom/2, 1/2) at x = freedom / (freedom + t²)."""
    square = t * t
    x, y = freedom / (freedom + square), square / (freedom + square)
    return _beta_share(x, y, freedom / 2, 0.5)


def _beta_share(x: float, y: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), y = 1 − x (given, lest digits be lost).

    Its continued fraction (NIST Handbook of Mathematical Functions, 8.17.22) from Lentz's method;
    it converges fast below the distribution's mean, and beyond I_x(a, b) = 1 − I_y(b, a).
    """
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _beta_share(y, x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log(y)) / a
    upper, lower, fraction = math.inf, 1.0, 1.0
    # some √max(a, b) steps: 2000 serve ten million degrees of freedom
    for step in range(1, 20_000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1.0 / (1.0 + term * lower)
        upper = 1.0 + term / upper
        fraction *= upper * lower
        if abs(upper * lower - 1.0) < 1e-15:
            return front * fraction
    raise AssertionError(f"I_x({a}, {b}) at {x} did not converge")
