"""The baselines against slow implementations of their formulas, and against mathematics."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from llamita.starter.baselines import (
    BYTE_BOS,
    BYTE_EOS,
    BYTE_VOCAB_SIZE,
    NGramModel,
    bits_per_byte,
    byte_stream,
    primed_xz_bits_per_byte,
    xz_bits_per_byte,
)


class DictionaryKneserNey:
    """Modified Kneser-Ney written down from Chen and Goodman (1998), one dictionary a count."""

    def __init__(self, order: int, vocab_size: int, tokens: list[int]) -> None:
        self.order, self.vocab_size = order, vocab_size
        self.counts: list[dict[tuple[int, ...], int]] = []
        for k in range(1, order + 1):
            if k == order:
                grams = [tuple(tokens[i : i + k]) for i in range(len(tokens) - k + 1)]
                self.counts.append(dict(Counter(grams)))
            else:
                before = defaultdict(set)
                for i in range(1, len(tokens) - k + 1):
                    before[tuple(tokens[i : i + k])].add(tokens[i - 1])
                self.counts.append({gram: len(seen) for gram, seen in before.items()})

    def discount(self, k: int, count: int) -> float:
        n = Counter(self.counts[k - 1].values())
        if not all(n[i] for i in (1, 2, 3, 4)):
            return 0.5
        share = n[1] / (n[1] + 2 * n[2])
        values = [i - (i + 1) * share * n[i + 1] / n[i] for i in (1, 2, 3)]
        for i in (1, 2):
            values[i] = min(max(values[i], values[i - 1]), i + 1)
        return values[min(count, 3) - 1]

    def prob(self, word: int, context: tuple[int, ...]) -> float:
        lower = 1 / self.vocab_size if not context else self.prob(word, context[1:])
        k = len(context) + 1
        after = {g: c for g, c in self.counts[k - 1].items() if g[:-1] == context}
        total = sum(after.values())
        if not total:
            return lower
        count = after.get((*context, word), 0)
        direct = max(count - self.discount(k, count), 0) if count else 0.0
        return (direct + sum(self.discount(k, c) for c in after.values()) * lower) / total


def tokens_with_patterns(length: int, vocab_size: int, seed: int) -> list[int]:
    """Skewed tokens in which runs repeat, so that every order has counts from 1 to above 4."""
    rng = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < length:
        if tokens and rng.random() < 0.3:
            start = rng.randrange(len(tokens))
            tokens += tokens[start : start + rng.randrange(2, 9)]
        else:
            tokens.append(min(int(rng.expovariate(0.4)), vocab_size - 1))
    return tokens[:length]


@pytest.mark.parametrize(("order", "length"), [(1, 200), (2, 300), (3, 40), (5, 600)])
def test_ngram_probabilities_equal_the_dictionary_implementation(order: int, length: int) -> None:
    vocab_size = 12
    train = tokens_with_patterns(length, vocab_size, seed=order)
    heldout = tokens_with_patterns(60, vocab_size, seed=100 + order)
    slow = DictionaryKneserNey(order, vocab_size, train)
    expected = [
        math.log2(slow.prob(word, tuple(heldout[max(0, i - order + 1) : i])))
        for i, word in enumerate(heldout)
    ]
    model = NGramModel(order, vocab_size).fit(np.array(train))
    np.testing.assert_allclose(model.log2_probs(np.array(heldout)), expected, rtol=1e-10)


def test_the_discounts_of_all_three_classes_are_exercised() -> None:
    slow = DictionaryKneserNey(5, 12, tokens_with_patterns(600, 12, seed=5))
    assert len({slow.discount(5, count) for count in (1, 2, 3)}) == 3


@pytest.mark.parametrize("length", [8, 400])  # 8: every estimate of a discount is undefined
def test_ngram_probabilities_sum_to_one_after_any_context(length: int) -> None:
    vocab_size, order = 17, 4
    # Tokens 14 to 16 never occur in training, so contexts with them were never seen.
    train = np.array(tokens_with_patterns(length, 14, seed=3))
    model = NGramModel(order, vocab_size).fit(train)
    rng = np.random.default_rng(0)
    contexts = [rng.integers(0, vocab_size, size=rng.integers(0, 6)) for _ in range(40)]
    contexts += [train[i : i + 3] for i in range(0, length - 3, 1 + length // 40)]
    contexts += [train[-3:], np.array([16, 16, 16])]
    for context in contexts:
        after = [model.log2_probs(np.array([*context, w]))[-1] for w in range(vocab_size)]
        assert np.isfinite(after).all()
        assert np.exp2(after).sum() == pytest.approx(1, abs=1e-12)


def test_a_markov_source_is_learned_to_near_its_entropy() -> None:
    vocab_size, length = 6, 60_000
    rng = np.random.default_rng(1)
    transitions = rng.dirichlet(np.full(vocab_size, 0.5), size=(vocab_size, vocab_size))
    cumulative, draws = transitions.cumsum(-1), rng.random(length)
    tokens = [0, 0]
    for draw in draws:
        tokens.append(int(min(np.searchsorted(cumulative[tokens[-2], tokens[-1]], draw), 5)))
    stream = np.array(tokens)
    test = stream[-10_000:]
    # The cost of the true distribution on the very same tokens: no model can beat it by much.
    ideal = -np.log2(transitions[test[:-2], test[1:-1], test[2:]]).mean()
    cost = -NGramModel(3, vocab_size).fit(stream[:-10_000]).log2_probs(test)[2:].mean()
    assert ideal * 0.995 < cost < ideal * 1.03
    shorter = -NGramModel(2, vocab_size).fit(stream[:-10_000]).log2_probs(test)[2:].mean()
    assert shorter > cost * 1.05


def test_fitting_again_forgets_what_was_counted_before() -> None:
    first, second = (np.array(tokens_with_patterns(200, 9, seed)) for seed in (1, 2))
    again = NGramModel(3, 9).fit(first).fit(second).log2_probs(first)
    np.testing.assert_array_equal(again, NGramModel(3, 9).fit(second).log2_probs(first))


def test_misuse_of_the_ngram_model_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        NGramModel(0, 5)
    with pytest.raises(ValueError, match="too few"):
        NGramModel(5, 5).fit(np.array([1, 2]))
    with pytest.raises(ValueError, match="call fit first"):
        NGramModel(2, 5).log2_probs(np.array([1]))
    with pytest.raises(ValueError, match="0 to 4"):
        NGramModel(2, 5).fit(np.array([1, 5, 2]))
    with pytest.raises(ValueError, match="integers"):
        NGramModel(2, 5).fit(np.array([1.0, 2.0]))


def test_bytes_stand_between_their_document_marks() -> None:
    stream = byte_stream([b"ab", b"", b"\xff"])
    marks = [BYTE_BOS, 97, 98, BYTE_EOS, BYTE_BOS, BYTE_EOS, BYTE_BOS, 255, BYTE_EOS]
    assert stream.tolist() == marks
    assert max(marks) < BYTE_VOCAB_SIZE


def test_bits_per_byte_divides_by_bytes_and_leaves_out_free_tokens() -> None:
    train = byte_stream([b"banana band", b"bandana"])
    model = NGramModel(3, BYTE_VOCAB_SIZE).fit(train)
    heldout = byte_stream([b"ban"])
    bits = -model.log2_probs(heldout)
    assert bits_per_byte(model, heldout, 3) == pytest.approx(bits.sum() / 3)
    assert bits_per_byte(model, heldout, 3, free=[BYTE_BOS]) == pytest.approx(bits[1:].sum() / 3)
    with pytest.raises(ValueError, match="no held-out bytes"):
        bits_per_byte(model, heldout, 0)


def test_xz_stores_random_bytes_as_they_are_and_repetition_for_nothing() -> None:
    noise = random.Random(0).randbytes(20_000)
    assert 8.0 <= xz_bits_per_byte([noise[:9_000], noise[9_000:]]) < 8.1
    assert xz_bits_per_byte([b"again " * 4_000]) < 0.1


def test_primed_xz_knows_the_training_text() -> None:
    noise = random.Random(0).randbytes(20_000)
    assert primed_xz_bits_per_byte([noise], [noise]) < 0.2
    other = random.Random(1).randbytes(20_000)
    assert 7.9 < primed_xz_bits_per_byte([noise], [other]) < 8.1


def test_a_sample_to_prime_xz_with_reaches_all_through_the_training_texts() -> None:
    texts = [random.Random(i).randbytes(1_000) for i in range(16)]
    known = [primed_xz_bits_per_byte(texts, [text], sample_bytes=4_000) < 4 for text in texts]
    assert sum(known) == 4
    assert any(known[:4])
    assert any(known[-4:])
