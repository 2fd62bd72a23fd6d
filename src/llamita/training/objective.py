"""What a stage learns: small objects over per-token log-probabilities.

An objective says how many tokens of a batch learn (known before the backward pass, so that a
loss can be weighted by token whatever the accumulation or the number of ranks) and sums its
loss over a micro-batch.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from llamita.data.batch import Batch
from llamita.model.decoder import Decoder
from llamita.model.head import IGNORE
from llamita.recipes.schema import LanguageModelling


class Objective(Protocol):
    """See the module's text. `loss_sum` returns (what is differentiated, what is reported), both
    scalars in nats summed over the tokens that learn."""

    def num_tokens(self, batch: Batch) -> int: ...

    def loss_sum(self, model: Decoder, batch: Batch) -> tuple[Tensor, Tensor]: ...


class NextToken:
    """Mean negative log-likelihood of the next token, plus `z_loss`·log(Z)² (PaLM, 2204.02311
    §5)."""

    def __init__(self, settings: LanguageModelling) -> None:
        self.z_loss = settings.z_loss

    def num_tokens(self, batch: Batch) -> int:
        return int((batch.targets != IGNORE).sum())

    def loss_sum(self, model: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = model(batch.tokens, batch.targets, documents=batch.documents)
        reported = -scores.log_probs.sum()
        if not self.z_loss:
            return reported, reported.detach()
        learns = batch.targets != IGNORE
        drift = (scores.log_normalizers.square() * learns).sum()
        return reported + self.z_loss * drift, reported.detach()


def build_objective(settings: LanguageModelling) -> Objective:
    return NextToken(settings)
