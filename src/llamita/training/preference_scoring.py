"""How well a model tells good answers from bad ones that it has not learned from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llamita.data.mixture import IntArray
from llamita.data.packed_stream import PackedStream
from llamita.model.decoder import Decoder
from llamita.recipes.schema import Preference
from llamita.training.parallelism import World
from llamita.training.preference import Pairs, preference_losses
from llamita.training.reference import AnswerTable, answer_table

_Z = NormalDist().inv_cdf(0.975)

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and the ends of its 95% confidence interval."""

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        ends = self._asdict().items()
        return {name: value if math.isfinite(value) else None for name, value in ends}


def mean_interval(values: Values) -> Interval:
    """By the normal approximation, mean ± 1.96 standard errors; unbounded for a single value."""
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    error = _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - error, mean + error)


def wilson_interval(successes: float, trials: int) -> Interval:
    """Of a proportion (Wilson 1927, JASA 22:209): honest near 0 and 1 and for few trials."""
    share, square = successes / trials, _Z * _Z / trials
    centre = (share + square / 2) / (1 + square)
    spread = _Z / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return Interval(share, max(0.0, centre - spread), min(1.0, centre + spread))


def preferred(differences: Values) -> Values:
    """Of each pair: 1 where the chosen answer comes out higher, 0 where lower, ½ at a tie, as a
    policy has throughout that is its own reference."""
    return np.where(differences == 0, 0.5, (differences > 0).astype(np.float64))


@dataclass(frozen=True)
class PreferenceScore:
    """A policy on held-out pairs, pair by pair, (n,) each, in the order of `pairs`.

    pairs: numbers of the pairs in their split. losses: as training has them. margins:
    β·(log-ratio of the chosen answer − log-ratio of the rejected one) to the reference.
    policy, reference: log π of the chosen answer − log π of the rejected one, in nats, by either
    model alone; `…_per_token`: the same of means over each answer's tokens, which do not favour
    short answers.
    """

    pairs: NDArray[np.int64]
    losses: Values
    margins: Values
    policy: Values
    reference: Values
    policy_per_token: Values
    reference_per_token: Values

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def margin(self) -> Interval:
        """Mean reward margin: paired against the reference, whose own is 0."""
        return mean_interval(self.margins)

    @property
    def accuracy(self) -> Interval:
        """How often the chosen answer has the higher reward; 0.5 says nothing was learnt."""
        return _accuracy(self.margins)

    @property
    def policy_accuracy(self) -> Interval:
        """How often the policy alone finds the chosen answer likelier."""
        return _accuracy(self.policy)

    @property
    def policy_accuracy_per_token(self) -> Interval:
        return _accuracy(self.policy_per_token)

    @property
    def reference_accuracy(self) -> Interval:
        return _accuracy(self.reference)

    @property
    def reference_accuracy_per_token(self) -> Interval:
        return _accuracy(self.reference_per_token)

    @property
    def accuracy_gain(self) -> Interval:
        """Policy's accuracy less the reference's, paired: a mean over pairs of −1 … 1."""
        return mean_interval(preferred(self.policy) - preferred(self.reference))

    @property
    def accuracy_gain_per_token(self) -> Interval:
        before, after = self.reference_per_token, self.policy_per_token
        return mean_interval(preferred(after) - preferred(before))

    @property
    def has_effect(self) -> bool:
        """Whether the mean margin differs from 0 by more than chance explains."""
        return not self.margin.low <= 0 <= self.margin.high

    def as_json(self) -> dict[str, Any]:
        """What an event says of it."""
        names = (
            "margin",
            "accuracy",
            "policy_accuracy",
            "policy_accuracy_per_token",
            "reference_accuracy",
            "reference_accuracy_per_token",
            "accuracy_gain",
            "accuracy_gain_per_token",
        )
        intervals = {name: getattr(self, name).as_json() for name in names}
        return {
            "pairs": len(self.pairs),
            "loss": self.loss,
            **intervals,
            "has_effect": self.has_effect,
        }


def score_preferences(
    model: Decoder,
    stream: PackedStream,
    reference: AnswerTable,
    settings: Preference,
    *,
    sequence_length: int,
    rows: int,
    indices: IntArray | None = None,
    world: World | None = None,
) -> PreferenceScore:
    """Score held-out pairs, packed as they were for `reference`. Every process must call it.

    Args:
        stream: a split of pairs.
        reference: of the same split at the same sequence length, of the same rows or more.
        rows, indices: as `answer_table` takes them.
    """
    policy = answer_table(
        model, stream, sequence_length=sequence_length, rows=rows, indices=indices, world=world
    )
    return compare(policy, reference, settings)


def compare(policy: AnswerTable, reference: AnswerTable, settings: Preference) -> PreferenceScore:
    """The score of one table of a split against another."""
    tokens = policy.num_tokens.view(-1, 2)
    numbers = torch.nonzero((tokens > 0).all(1))[:, 0]
    assert len(numbers), "no pairs to score"
    assert torch.equal(reference.num_tokens.view(-1, 2)[numbers], tokens[numbers]), (
        "the tables are of other tokens"
    )
    pairs = Pairs.of(
        policy.log_probs.view(-1, 2)[numbers],
        reference.log_probs.view(-1, 2)[numbers],
        tokens[numbers],
    )
    chosen, rejected = pairs.log_ratios
    found = (
        preference_losses(settings, pairs),
        settings.beta * (chosen - rejected),
        pairs.chosen - pairs.rejected,
        pairs.ref_chosen - pairs.ref_rejected,
        pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens,
        pairs.ref_chosen / pairs.chosen_tokens - pairs.ref_rejected / pairs.rejected_tokens,
    )
    return PreferenceScore(numbers.numpy(), *(values[:, 0].double().numpy() for values in found))


def _accuracy(differences: Values) -> Interval:
    return wilson_interval(float(preferred(differences).sum()), len(differences))
