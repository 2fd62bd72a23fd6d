"""An answer of `plan`: the recommendation, what stands beside it, and all that it assumes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from llamita.architecture.config import ModelConfig
from llamita.architecture.presets import Parametrization
from llamita.planning.demand import Demand
from llamita.planning.economics import Economics
from llamita.planning.laws import Law, Rule
from llamita.planning.optimum import TRAINING_FLOPS, Limits


@dataclass(frozen=True)
class Question:
    """What is asked, in numbers. Exactly one of `loss` and `budget` is given.

    words: the question as a sentence.
    budget: in dollars if `budget_in_money`, else in FLOPs.
    budget_for_all: whether it pays for serving too, or for training alone.
    budget_in_time: whether it was given as time on the training hardware.
    quality: (N, D) that the loss stands for, so that another law may be asked the same; D is None
        for the law's compute-optimal one.
    chosen: a size that is settled already.
    """

    words: str
    law: Law
    economics: Economics
    demand: Demand | None = None
    loss: float | None = None
    quality: tuple[float, float | None] | None = None
    budget: float | None = None
    budget_in_money: bool = False
    budget_for_all: bool = True
    budget_in_time: bool = False
    chosen: float | None = None
    chosen_tokens: float | None = None
    unique: float | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Option:
    """One model that could be trained. Money is None where there are no prices, seconds where
    there is no hardware; loss is None under a rule of thumb."""

    label: str
    parameters: float
    tokens: float
    loss: float | None
    training_flops: float
    serving_flops: float
    training_usd: float | None = None
    serving_usd: float | None = None
    training_seconds: float | None = None
    epochs: float | None = None
    extra: float | None = None
    """Total cost over the recommended one's, as a share of the latter; 0 for itself."""
    beyond_limits: str = ""
    """Which limits of the question it does not keep: it is shown for comparison."""

    @property
    def total_flops(self) -> float:
        return self.training_flops + self.serving_flops

    @property
    def total_usd(self) -> float | None:
        if self.training_usd is None:
            return None
        return self.training_usd + (self.serving_usd or 0.0)

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters

    @property
    def total(self) -> float:
        """In dollars where there are prices, else in FLOPs."""
        return self.total_flops if self.total_usd is None else self.total_usd


@dataclass(frozen=True)
class Change:
    """What the recommendation becomes if something is otherwise.

    regret: what keeping to the original size would cost beyond the best, as a share; None where
        that cannot be said.
    obstacle: why there is no answer, in place of one.
    """

    what: str
    parameters: float = math.nan
    tokens: float = math.nan
    loss: float | None = None
    total: float = math.nan
    regret: float | None = None
    obstacle: str = ""


@dataclass(frozen=True)
class Epochs:
    """Reading unique text so often. fresh_loss: were all of it unique. worth: of the last token
    read, beside a fresh one."""

    epochs: float
    tokens: float
    effective_tokens: float
    loss: float
    fresh_loss: float
    worth: float


@dataclass(frozen=True)
class Candidate:
    """A shape that can be built.

    parameters: as the law counts them, in a mixture those that a token passes through.
    total_parameters: the same with all experts.
    error: its parameters beside the recommended, as a share.
    flops_per_token: of training at the shape's full context, head and attention counted, which
        6·N leaves out; the FLOPs, seconds and dollars of training follow from it.
    """

    config: ModelConfig
    parametrization: Parametrization
    parameters: int
    total_parameters: int
    error: float
    tokens: float
    loss: float
    flops_per_token: float
    training_seconds: float | None
    training_usd: float | None

    @property
    def training_flops(self) -> float:
        return self.flops_per_token * self.tokens

    @property
    def beyond_the_law(self) -> float:
        """Its training FLOPs over 6·N·D."""
        return self.flops_per_token / (TRAINING_FLOPS * self.parameters)


@dataclass(frozen=True)
class Answer:
    """options: the recommended one first."""

    question: Question | None
    words: str
    law: Law | Rule
    options: tuple[Option, ...]
    facts: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    changes: tuple[Change, ...] = ()
    repeats: tuple[Epochs, ...] = ()
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def recommended(self) -> Option:
        return self.options[0]

    @property
    def in_money(self) -> bool:
        return self.recommended.total_usd is not None

    def lines(self) -> list[str]:
        """The answer as lines of plain text."""
        from llamita.planning.answer_text import describe_answer

        return describe_answer(self)

    def as_json(self) -> dict[str, Any]:
        """Plain values: counts, and FLOPs, dollars and seconds where a key's name says so."""
        law = {
            key: value
            for key, value in asdict(self.law).items()
            if value not in (None, "", {}) and key != "samples"
        }
        candidates = [
            {**asdict(each), "config": each.config.to_huggingface()} for each in self.candidates
        ]
        values = {
            "question": self.words,
            "recommended": asdict(self.recommended),
            "alternatives": [asdict(option) for option in self.options[1:]],
            "facts": list(self.facts),
            "candidates": candidates,
            "sensitivity": [asdict(change) for change in self.changes],
            "repeats": [asdict(each) for each in self.repeats],
            "law": law,
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
        }
        return {key: finite(value) for key, value in values.items()}


def finite(value: Any) -> Any:
    """JSON knows no NaN: a number that is none is null."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
