"""The distribution that tokens are drawn from: Transformers', and arithmetic where it has none."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llamita.errors import UserError
from llamita.inference.drawing import Sampler, candidates, draw, penalised
from llamita.inference.sampling import Sampling

PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0)


def their_probabilities(logits: Tensor, sampling: Sampling, text: list[int]) -> Tensor:
    """What Transformers' generate would draw from after `text`."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors(torch.tensor([text]), logits[None].clone())[0].softmax(-1)


def our_probabilities(logits: Tensor, sampling: Sampling, text: list[int]) -> Tensor:
    if sampling.counts_tokens:
        counts = torch.bincount(torch.tensor(text), minlength=len(logits))
        logits = penalised(logits, sampling, counts)
    ids, probabilities = candidates(logits, sampling)
    assert len(set(ids.tolist())) == len(ids)
    return torch.zeros(len(logits)).index_copy(0, ids, probabilities)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_the_distribution_is_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    for scale in (0.1, 2.0, 10.0):
        logits = scale * torch.randn(100, generator=generator)
        ours = our_probabilities(logits, sampling, text)
        theirs = their_probabilities(logits, sampling, text)
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_nucleus_of_a_large_vocabulary(top_p: float) -> None:
    """Smaller and larger than what is looked at first."""
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(1.0, top_k=0, top_p=top_p)
    sizes = []
    for scale in (0.1, 1.0, 4.0):
        logits = scale * torch.randn(3000, generator=generator)
        ours, theirs = (
            each(logits, sampling, [0]) for each in (our_probabilities, their_probabilities)
        )
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs)
        sizes.append(int((ours > 0).sum()))
    assert sizes[0] > 256
    assert sizes[0] > sizes[2]


def test_ties_at_the_edge_of_top_k_stay() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    sampling = Sampling(1.0, top_k=2, top_p=1.0)
    ours = our_probabilities(logits, sampling, [0])
    torch.testing.assert_close(ours, their_probabilities(logits, sampling, [0]))
    assert int((ours > 0).sum()) == 3


def test_presence_and_frequency_are_taken_from_logits() -> None:
    """OpenAI's formula: mu[j] - c[j] · alpha_frequency - (c[j] > 0) · alpha_presence."""
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0])
    sampling = dataclasses.replace(PLAIN, presence_penalty=0.25, frequency_penalty=0.5)
    found = penalised(logits, sampling, torch.tensor([0, 1, 0, 3]))
    assert found.tolist() == [1.0, -2.75, 0.5, 1.25]


def test_repetition_comes_before_the_subtractions() -> None:
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=1.0)
    found = penalised(torch.tensor([4.0, -4.0, 4.0]), sampling, torch.tensor([2, 1, 0]))
    assert found.tolist() == [1.0, -9.0, 4.0]


def greedy(logits: list[float], prompt: list[int], count: int = 1, **values: object) -> list[int]:
    sampling = Sampling(temperature=0, **values)  # type: ignore[arg-type]
    sampler = Sampler(sampling, prompt, len(logits))
    return [sampler.choose(torch.tensor(logits)) for _ in range(count)]


def test_greedy_takes_the_likeliest_after_penalties_and_bias() -> None:
    logits = [0.0, 5.0, 4.9, 4.0]
    assert greedy(logits, [0]) == [1]
    assert greedy(logits, [1], repetition_penalty=1.1) == [2]
    assert greedy(logits, [0], logit_bias={0: 5.5}) == [0]
    assert greedy(logits, [0], logit_bias={1: -100, 2: -100}) == [3]
    # Truncation does not move the likeliest.
    assert greedy(logits, [0], top_k=1, top_p=0.01, min_p=1.0) == [1]


def test_what_was_written_counts_like_the_prompt() -> None:
    logits = [0.0, 5.0, 4.9, 4.0]
    assert greedy(logits, [0], 3, presence_penalty=0.5) == [1, 2, 1]
    assert greedy(logits, [0], 4, frequency_penalty=0.5) == [1, 2, 1, 2]
    assert greedy(logits, [1, 2], 2, frequency_penalty=2.0) == [3, 1]


def test_the_logits_are_left_as_they_are() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    sampling = Sampling(1.0, 5, 0.9, 0.1, 1.5, 0.5, 0.5, {3: 2.0}, seed=0)
    Sampler(sampling, [1, 2, 3], 50).choose(logits)
    assert torch.equal(logits, before)


def test_bias_reaches_the_dice() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampler = Sampler(dataclasses.replace(PLAIN, logit_bias={3: 60.0}, seed=1), [0], 4)
    assert {sampler.choose(logits) for _ in range(50)} == {3}


class Uniform:
    """Stands for `torch.rand`: the numbers of a list, one after another."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def __call__(self, *_: object, **__: object) -> Tensor:
        return torch.tensor(next(self.values), dtype=torch.float64)


def test_draws_follow_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand evenly spaced numbers in place of the dice give each token its share exactly."""
    ids, probabilities = torch.tensor([7, 2, 5, 9]), torch.tensor([0.5, 0.25, 0.0, 0.25])
    even = [(place + 0.5) / 1000 for place in range(1000)]
    monkeypatch.setattr(torch, "rand", Uniform([*even, 0.0, 1 - 2**-53]))
    drawn = Counter(draw(ids, probabilities, torch.Generator()) for _ in even)
    assert drawn == {7: 500, 2: 250, 9: 250}
    assert draw(ids, probabilities, torch.Generator()) == 7
    assert draw(ids, probabilities, torch.Generator()) == 9


def test_the_dice_are_uniform() -> None:
    """Four thousand draws of a seeded generator, against their shares."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampling = Sampling(temperature=1.0, top_k=3, top_p=1.0, seed=5)
    sampler = Sampler(sampling, [0], 4)
    drawn = torch.tensor([sampler.choose(logits) for _ in range(4000)])
    counts = torch.bincount(drawn, minlength=4).double()
    expected = 4000 * their_probabilities(logits, sampling, [0]).double()
    assert counts[3] == 0
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 18.4  # 2 degrees of freedom: beyond it once in 10,000


def test_a_seed_fixes_what_is_drawn_and_only_that() -> None:
    logits = torch.zeros(1000)

    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(dataclasses.replace(PLAIN, seed=seed), [0], 1000)
        return [sampler.choose(logits) for _ in range(8)]

    torch.manual_seed(0)
    one = drawn(3)
    torch.manual_seed(1)
    assert drawn(3) == one
    assert drawn(4) != one
    assert drawn(None) != drawn(None)


def test_tiny_temperatures_are_greedy() -> None:
    for temperature in (1e-5, 1e-30, 5e-324):
        ids, probabilities = candidates(
            torch.tensor([1.0, 3.0, 2.999, -9.0]),
            dataclasses.replace(PLAIN, temperature=temperature),
        )
        assert ids[probabilities.argmax()] == 1
        assert probabilities.max() == 1


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (-0.1, NAN, INFINITY)),
        ("top_k", (-1, NAN, INFINITY)),
        ("top_p", (0.0, 1.1, NAN)),
        ("min_p", (-0.1, 1.1, NAN)),
        ("repetition_penalty", (0.0, -1.0, NAN, INFINITY)),
        ("presence_penalty", (NAN, INFINITY, -INFINITY)),
        ("frequency_penalty", (NAN, INFINITY, -INFINITY)),
        ("logit_bias", ({-1: 0.0}, {3: NAN}, {3: -INFINITY})),
        ("seed", (2**64, -(2**63) - 1)),
    ],
)
def test_values_out_of_range(name: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=name):
            Sampling(**{name: value})  # type: ignore[arg-type]


def test_a_bias_beyond_the_vocabulary() -> None:
    with pytest.raises(UserError, match="logit_bias names token 50, and the vocabulary ends at 49"):
        Sampler(Sampling(logit_bias={50: 1.0}), [0], 50)


def test_settings_are_values() -> None:
    bias = {3: 1.0}
    one, two = Sampling(logit_bias=bias), Sampling(logit_bias={3: 1.0})
    bias[3] = 2.0
    assert one == two != Sampling(logit_bias=bias)
    assert hash(one) == hash(two)
    assert dataclasses.asdict(one)["logit_bias"] == {3: 1.0}
    assert Sampling(temperature=0).takes_the_likeliest
    assert not Sampling(temperature=0, presence_penalty=0.1).takes_the_likeliest
