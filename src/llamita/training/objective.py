"""What a stage learns: small objects over per-token log-probabilities.

An objective says over how many things of a batch its loss is a mean (known before the backward
pass, so that each weighs the same whatever the accumulation or the number of ranks) and sums its
loss over a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from llamita.data.batch import Batch
from llamita.inference.scoring import score_batch
from llamita.model.decoder import Decoder
from llamita.model.head import IGNORE
from llamita.recipes.schema import LanguageModelling, Preference

if TYPE_CHECKING:
    from llamita.training.reference import Reference

_NO_METRICS: Mapping[str, Tensor] = MappingProxyType({})


class LossSum(NamedTuple):
    """Scalars summed over what `Objective.count` counts, of one micro-batch.

    loss: what is differentiated. reported: what is shown as the loss, in nats, detached.
    metrics: more to show, detached; the same names for every micro-batch.
    """

    loss: Tensor
    reported: Tensor
    metrics: Mapping[str, Tensor] = _NO_METRICS


class Objective(Protocol):
    """See the module's text. `count`: what the loss is a mean over, tokens that learn or pairs."""

    def count(self, batch: Batch) -> int: ...

    def loss_sum(self, model: Decoder, batch: Batch) -> LossSum: ...


class NextToken:
    """Mean negative log-likelihood of the next token, plus `z_loss`·log(Z)² (PaLM, 2204.02311
    §5)."""

    def __init__(self, settings: LanguageModelling) -> None:
        self.z_loss = settings.z_loss

    def count(self, batch: Batch) -> int:
        return int((batch.targets != IGNORE).sum())

    def loss_sum(self, model: Decoder, batch: Batch) -> LossSum:
        scores = score_batch(model, batch)
        reported = -scores.log_probs.sum()
        if not self.z_loss:
            return LossSum(reported, reported.detach())
        learns = batch.targets != IGNORE
        drift = (scores.log_normalizers.square() * learns).sum()
        return LossSum(reported + self.z_loss * drift, reported.detach())


def build_objective(
    settings: LanguageModelling | Preference, reference: Reference | None = None
) -> Objective:
    """The objective of a stage; that of preferences needs its reference model."""
    if isinstance(settings, LanguageModelling):
        return NextToken(settings)
    from llamita.training.preference import PreferencePairs  # which is built on this file

    assert reference is not None, "preferences are judged against a reference"
    return PreferencePairs(settings, reference)
