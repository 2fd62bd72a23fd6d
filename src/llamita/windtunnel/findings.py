"""What a study measures and what is made of it: plain data, no torch.

Losses are bits per byte of held-out text. N is parameters without embeddings, D training tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llamita.planning.fitting import FittedLaw

Interval = tuple[float, float]
Status = Literal["done", "diverged", "pruned", "failed", "killed"]
Edge = Literal["low", "high"]


@dataclass(frozen=True)
class RunResult:
    """One ended run of a study.

    key: names the run's directory, and follows from what it computes. values: the axes' values, by
    recipe key. curve: (tokens, loss) of each validation. loss: the last; None unless `done`.
    """

    key: str
    experiment: str
    status: Status
    size: str
    hidden_size: int
    layers: int
    parameters: int
    total_parameters: int
    parametrization: str
    seed: int
    tokens: int
    batch_tokens: int
    values: Mapping[str, Any]
    loss: float | None
    curve: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    flops: float = 0.0
    reason: str = ""
    """Of a run that is not `done`."""


# -- an optimum, and whether it moves with size --------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A loss at one value of what is searched; `loss` None where the run diverged."""

    x: float
    loss: float | None
    seed: int = 0


@dataclass(frozen=True)
class Optimum:
    """Where a parabola in ln x through the best trials is lowest.

    interval: of 95%; None where the trials do not determine one, as the curvature may be nought.
    edge: the best value tried is the first or last. fitted: the parabola, loss = c0 + c1·ln x +
    c2·(ln x)², over `window`; None at an edge, and where none has its minimum among the values.
    Then there is no optimum, and `value` is the best that was tried.
    """

    value: float
    loss: float
    interval: Interval | None
    edge: Edge | None
    fitted: tuple[float, float, float] | None
    window: Interval
    trials: tuple[Trial, ...]
    diverged: tuple[float, ...] = ()
    noise: float | None = None
    """Standard deviation of a loss about the parabola, the seeds' own offsets taken out."""
    notes: tuple[str, ...] = ()

    @property
    def is_found(self) -> bool:
        """Whether there is one."""
        return self.fitted is not None


@dataclass(frozen=True)
class SizeOptimum:
    """The optimum of one size under one parametrisation."""

    size: str
    hidden_size: int
    parameters: int
    optimum: Optimum


@dataclass(frozen=True)
class Transfer:
    """Optima of one parametrisation over its sizes.

    exponent: p in optimum ∝ width^p, with its interval; None with fewer than two optima that are
    inside their grids. cost: what the largest size loses, in loss, at the smallest one's optimum.
    verdict: a sentence.
    """

    parametrization: str
    axis: str
    optima: tuple[SizeOptimum, ...]
    exponent: float | None
    exponent_interval: Interval | None
    cost: float | None
    transferred: float | None
    """The value to take to a larger size, None where no optimum lies inside its grid."""
    transferred_interval: Interval | None
    verdict: str


# -- batch size -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EqualLoss:
    """Tokens that each batch takes to reach one loss, of one size, and where that is fewest."""

    size: str
    loss: float
    batches: tuple[int, ...]
    tokens: tuple[float, ...]
    best: Optimum
    """Over batch tokens; its `loss` is ln(tokens)."""


@dataclass(frozen=True)
class BatchLaw:
    """bs = a / L^b tokens, with 95% intervals by resampling runs.

    skipped: sentences about losses and sizes that gave no minimum.
    """

    a: float
    b: float
    a_interval: Interval | None
    b_interval: Interval | None
    samples: tuple[tuple[float, float], ...]
    minima: tuple[EqualLoss, ...]
    curves: Mapping[str, Mapping[int, tuple[tuple[int, float], ...]]]
    """Size → batch tokens → (tokens, loss)."""
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def batch(self, loss: float) -> float:
        return float(self.a / loss**self.b)


# -- coordinates ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coordinate:
    """Root mean square of one thing's elements after some steps, over widths.

    kind: "activation", as it is, or "update", its change since before the first step. rms: width →
    one value a seed. exponent: p in rms ∝ width^p with its 95% interval.
    """

    what: str
    kind: Literal["activation", "update"]
    step: int
    rms: Mapping[int, tuple[float, ...]]
    exponent: float
    interval: Interval


@dataclass(frozen=True)
class CoordinateCheck:
    """Of one parametrisation. passed: nothing grows with width beyond the tolerance."""

    parametrization: str
    widths: tuple[int, ...]
    coordinates: tuple[Coordinate, ...]
    passed: bool
    growing: tuple[str, ...]
    """What grows, in words, such as "logits (update) as width^0.91 after 10 steps"."""
    verdict: str
    tolerance: float


# -- decay ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecayCell:
    """One way to end a run; differences are paired by seed, from the study's first way."""

    share: float
    form: str
    mixture: str
    size: str
    losses: Mapping[int, float]
    """Seed → loss."""
    mean: float
    difference: float | None = None
    difference_interval: Interval | None = None


@dataclass(frozen=True)
class DecayStudy:
    cells: tuple[DecayCell, ...]
    undecayed: Mapping[str, float]
    """Size → mean loss of the trunk where its last decay begins."""
    verdict: str
    notes: tuple[str, ...] = ()


# -- the law --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimalRatio:
    """The compute-optimal point at one budget."""

    flops: float
    parameters: float
    tokens: float
    ratio: float
    ratio_interval: Interval | None
    extrapolated: bool


@dataclass(frozen=True)
class LawStudy:
    fitted: FittedLaw
    ratios: tuple[OptimalRatio, ...]
    runs: tuple[RunResult, ...]
    trunk_tokens: int
    branch_tokens: int
    separate_tokens: int
    """What the same points would have taken as runs of their own."""


@dataclass(frozen=True)
class Findings:
    """All that a study says. refusals: experiment → why nothing was made of it."""

    name: str
    runs: tuple[RunResult, ...]
    coordinates: tuple[CoordinateCheck, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    batch_law: BatchLaw | None = None
    decays: tuple[DecayStudy, ...] = ()
    law: LawStudy | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """What to know of the study: text, tokenizer, machine, time, utilisation."""
