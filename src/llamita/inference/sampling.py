"""How the next token is drawn, as numbers; the drawing is done in drawing.py, or by llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llamita.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature: 0 takes the likeliest token, after penalties and bias; top_k: 0 keeps all; top_p:
    1 keeps all; min_p: tokens stay that have this share of the likeliest one's probability, 0
    keeps all. repetition_penalty: divides positive logits of tokens in the text so far, prompt
    included, and multiplies negative ones (CTRL, arXiv 1909.05858, section 4.1), 1 being none.
    presence_penalty is taken once from the logit of a token in the text so far, frequency_penalty
    as often as it stands there. logit_bias is added, by id.

    Raises:
        UserError: a value outside its range.
    """

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # Not hashed, so that a Sampling is hashable; compared all the same.
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature}: give 0 (greedy) or more")
        if not 0 <= self.top_k < 2**31:
            raise UserError(f"top_k {self.top_k}: give 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}: give a share above 0 and up to 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p {self.min_p}: give a share from 0 (all tokens) to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(
                f"repetition_penalty {self.repetition_penalty}: give a number above 0; 1 is none"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} {getattr(self, name)}: give a finite number; 0 is none")
        for token, bias in self.logit_bias.items():
            if token < 0 or not math.isfinite(bias):
                raise UserError(
                    f"logit_bias {token}: {bias}: give token ids from 0 up, each with a finite "
                    "number"
                )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise UserError(f"seed {self.seed}: give a whole number of 64 bits")

    @property
    def counts_tokens(self) -> bool:
        """Whether a penalty is on, so that the tokens of the text so far must be counted."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether the next token is the logits' argmax and nothing else matters."""
        return self.temperature == 0 and not self.counts_tokens and not self.logit_bias
