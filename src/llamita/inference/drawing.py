"""From logits to a token: penalties, bias, temperature, top-k, top-p, min-p, in this order.

V is the vocabulary. Truncation and temperature are Transformers', in its order; penalties count
the prompt and what was written alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.errors import UserError
from llamita.inference.sampling import Sampling

# Looked at first where no top-k bounds the candidates: a nucleus is seldom larger, and sorting
# all of 49,152 tokens takes milliseconds.
_FIRST_LOOK = 256
# Below it float32 has no reciprocal, and 0 / 0 would come of the likeliest token.
_LEAST_TEMPERATURE = 1e-37


class Sampler:
    """The dice of one text: its settings, its generator, and counts of its tokens.

    Args:
        sampling: without a seed, every sampler draws differently.
        prompt: ids that penalties count from the start.
        vocab_size: V.

    Raises:
        UserError: a bias for a token beyond the vocabulary.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        self.sampling = sampling
        self.counts: Tensor | None = None
        if sampling.counts_tokens:
            self.counts = torch.bincount(torch.tensor(list(prompt)), minlength=vocab_size)
            self.counts = self.counts[:vocab_size]  # a padded embedding may know more ids
        self._bias: tuple[Tensor, Tensor] | None = None
        if sampling.logit_bias:
            if (largest := max(sampling.logit_bias)) >= vocab_size:
                raise UserError(
                    f"logit_bias names token {largest:,}, and the vocabulary ends at "
                    f"{vocab_size - 1:,}"
                )
            values = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32)
            self._bias = torch.tensor(list(sampling.logit_bias)), values
        self._generator = torch.Generator(device="cpu")
        if sampling.seed is not None:
            self._generator.manual_seed(sampling.seed)
        else:
            self._generator.seed()

    def choose(self, logits: Tensor) -> int:
        """The next id from logits (V,), float32 on the CPU; it is counted, the logits are kept."""
        if self.counts is not None:
            logits = penalised(logits, self.sampling, self.counts)
        if self._bias is not None:
            logits = logits.index_add(0, *self._bias)
        if self.sampling.temperature == 0:
            chosen = int(logits.argmax())
        else:
            ids, probabilities = candidates(logits, self.sampling)
            chosen = draw(ids, probabilities, self._generator)
        if self.counts is not None:
            self.counts[chosen] += 1
        return chosen


def penalised(logits: Tensor, sampling: Sampling, counts: Tensor) -> Tensor:
    """Logits (V,) after the penalties; `counts` (V,) says how often each token stands there."""
    seen, penalty = counts > 0, sampling.repetition_penalty
    if penalty != 1:
        repeated = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, repeated, logits)
    return logits - (sampling.frequency_penalty * counts + sampling.presence_penalty * seen)


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What may come next: ids (K,) and their probabilities (K,), which sum to 1.

    Of logits (V,), by a temperature above 0, then top-k (ties at its edge stay), top-p and min-p.
    """
    # The likeliest at 0, so that no temperature makes infinities of it; softmax does not mind.
    scaled = (logits - logits.max()) / max(sampling.temperature, _LEAST_TEMPERATURE)
    ids: Tensor | None = None
    if 0 < sampling.top_k < len(scaled):
        ids = (scaled >= scaled.topk(sampling.top_k).values[-1]).nonzero()[:, 0]
        scaled = scaled[ids]
    probabilities = scaled.softmax(-1)
    if sampling.top_p < 1:
        places = _nucleus(probabilities, sampling.top_p)
        ids = places if ids is None else ids[places]
        probabilities = probabilities[places]
    if sampling.min_p > 0:
        places = (probabilities >= sampling.min_p * probabilities.max()).nonzero()[:, 0]
        ids = places if ids is None else ids[places]
        probabilities = probabilities[places]
    if ids is None:
        ids = torch.arange(len(probabilities), device=probabilities.device)
    return ids, probabilities / probabilities.sum()


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Places of the likeliest that hold `top_p` together (arXiv 1904.09751, section 3.1).

    A token stays while those before it hold less, so the first always stays.
    """
    count = len(probabilities)
    ordered, places = probabilities.topk(min(_FIRST_LOOK, count))
    held = ordered.cumsum(-1)
    if len(ordered) < count and held[-1] < top_p:
        ordered, places = probabilities.sort(descending=True)
        held = ordered.cumsum(-1)
    return places[held - ordered < top_p]


def draw(ids: Tensor, probabilities: Tensor, generator: torch.Generator) -> int:
    """One of `ids` (K,) by its probability: one uniform number, laid against their sums."""
    if len(ids) == 1:
        return int(ids[0])
    sums = probabilities.double().cumsum(-1)
    uniform = torch.rand((), dtype=torch.float64, generator=generator)
    # To the right: what has probability 0 is never met. Rounding may leave the last sum short.
    place = int(torch.searchsorted(sums, uniform * sums[-1], right=True))
    return int(ids[min(place, len(ids) - 1)])
