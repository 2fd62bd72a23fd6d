"""Of two answers to one prompt, prefer the chosen one: direct preference optimisation (DPO) and its
kin, without a reward model.

A reward is how much likelier than by the reference model the policy makes an answer,
β·(log π − log π_ref); the loss pushes the chosen answer's above the rejected one's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.data.batch import Batch
from llamita.inference.scoring import score_batch
from llamita.model.decoder import Decoder
from llamita.recipes.schema import Preference
from llamita.training.answers import answer_sums, answer_tokens, are_pairs, halves
from llamita.training.objective import LossSum
from llamita.training.reference import Reference


class Pairs(NamedTuple):
    """What is known of pairs of answers; all of one shape, float32.

    chosen, rejected: log π of the answer, summed over its tokens. ref_chosen, ref_rejected: by the
    reference model. chosen_tokens, rejected_tokens: how many tokens that is.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @classmethod
    def of(cls, policy: Tensor, reference: Tensor, tokens: Tensor) -> Pairs:
        """From (B, D) of documents to (B, D / 2) of pairs."""
        return cls(*halves(policy), *halves(reference), *halves(tokens))

    @property
    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """log π − log π_ref of the chosen and of the rejected."""
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected


def preference_losses(settings: Preference, pairs: Pairs) -> Tensor:
    """Each pair's loss, with h the chosen answer's log-ratio less the rejected one's.

    sigmoid: −log σ(βh) (arXiv 2305.18290, equation 7); with label smoothing ε it is weighted 1 − ε
    and −log σ(−βh) is added, weighted ε (cDPO, https://ericmitchell.ai/cdpo.pdf, equation 3).
    ipo: (h − 1 / 2β)² (arXiv 2310.12036, equation 17). Its log-ratios are averaged over each
    answer's tokens, as in the paper's experiments (its authors told TRL so); summed, the square
    would grow with length.
    """
    chosen, rejected = pairs.log_ratios
    beta, smoothing = settings.beta, settings.label_smoothing
    if settings.loss == "ipo":
        # A place where there is no pair has no tokens, and must not make 0 / 0.
        chosen = chosen / pairs.chosen_tokens.clamp(min=1.0)
        rejected = rejected / pairs.rejected_tokens.clamp(min=1.0)
        return (chosen - rejected - 1 / (2 * beta)).square()
    preferred = beta * (chosen - rejected)
    loss = -F.logsigmoid(preferred)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * F.logsigmoid(-preferred)
    return loss


class PreferencePairs:
    """The mean over pairs of `preference_losses`.

    Metrics are means over pairs too, by TRL's definitions: `rewards_chosen`, `rewards_rejected`,
    `margin` (their difference), `accuracy` (how often it is above 0), `logps_chosen` and
    `logps_rejected` (nats an answer). Rewards have summed log-ratios, with `ipo` as well.
    """

    def __init__(self, settings: Preference, reference: Reference) -> None:
        self.settings, self.reference = settings, reference

    def count(self, batch: Batch) -> int:
        return int(are_pairs(batch).sum())

    def loss_sum(self, model: Decoder, batch: Batch) -> LossSum:
        # The reference first: of the policy's pass, the backward keeps the activations.
        reference = self.reference.log_probs(model, batch)
        policy = answer_sums(score_batch(model, batch).log_probs, batch)
        pairs = Pairs.of(policy, reference, answer_tokens(batch))
        counted = are_pairs(batch)

        def total(values: Tensor) -> Tensor:
            return torch.where(counted, values, 0.0).sum()

        loss = total(preference_losses(self.settings, pairs))
        with torch.no_grad():
            chosen, rejected = (self.settings.beta * ratio for ratio in pairs.log_ratios)
            metrics = {
                "rewards_chosen": total(chosen),
                "rewards_rejected": total(rejected),
                "margin": total(chosen - rejected),
                "accuracy": total((chosen > rejected).float()),
                "logps_chosen": total(pairs.chosen),
                "logps_rejected": total(pairs.rejected),
            }
        return LossSum(loss, loss.detach(), metrics)
