"""Two models on the same items: is one better, or could it be luck?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from llamita.errors import UserError
from llamita.evaluation import intervals
from llamita.evaluation.intervals import Difference, Estimate
from llamita.evaluation.results import PERPLEXITIES, Evaluation, TaskScore

_LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """One task's or group's score of two models.

    first, second: over the items that both have, where they are paired. difference: second minus
    first, with 95% interval; p is for this one comparison alone. paired: item by item; otherwise as
    two independent samples, which shows less. holds: whether the difference is still shown when all
    comparisons made together may err but once in twenty (Holm, Scand. J. Statist. 6:65, 1979).
    notes: what was not alike.
    """

    first: TaskScore
    second: TaskScore
    difference: Difference
    paired: bool
    holds: bool = False
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`better` or `worse`, the second beside the first; "" where no difference is shown."""
        if self.difference.includes_zero:
            return ""
        return "better" if (self.difference.value > 0) == self.first.higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """A model beside the one that all are compared with. alone: tasks that only one of them has."""

    first: Evaluation
    second: Evaluation
    pairs: tuple[Pair, ...]
    alone: tuple[str, ...]


def compare(evaluations: Sequence[Evaluation]) -> tuple[Comparison, ...]:
    """Each model but the first beside the first, task by task, a group of tasks as one.

    Items are paired by their ids. Perplexities are left out: what they say, bits per byte say for
    any tokenizer.

    Raises:
        UserError: fewer than two evaluations, or none shares a task and metric with the first.
    """
    if len(evaluations) < 2:
        raise UserError("a comparison is of two results or more: name another")
    base = evaluations[0]
    found = [_beside(base, each) for each in evaluations[1:]]
    if not any(each.pairs for each in found):
        listed = ", ".join(sorted({each.task for each in base.shown})) or "nothing"
        raise UserError(
            f"{base.model} was measured on {listed}, and no other result on any of it by the same "
            "metric: evaluate them on the same tasks"
        )
    pairs = [pair for each in found for pair in each.pairs]
    held = iter(_holm([pair.difference.p for pair in pairs]))
    return tuple(
        replace(each, pairs=tuple(replace(pair, holds=next(held)) for pair in each.pairs))
        for each in found
    )


def _beside(base: Evaluation, other: Evaluation) -> Comparison:
    ours, theirs = (
        {(s.task, s.metric): s for s in each.shown if s.metric not in PERPLEXITIES}
        for each in (base, other)
    )
    pairs = tuple(compare_scores(ours[key], theirs[key]) for key in ours if key in theirs)
    alone = [f"{task} ({metric})" for task, metric in (*ours, *theirs)]
    return Comparison(base, other, pairs, tuple(each for each in alone if alone.count(each) == 1))


def compare_scores(first: TaskScore, second: TaskScore) -> Pair:
    """Two scores of one task by one metric: paired where items are the same, else unpaired."""
    notes = _unlike(first, second)
    known = set(second.ids)
    common = [each for each in first.ids if each in known]
    ours, theirs = first.only(common), second.only(common)
    if ours is None or theirs is None:
        notes.append("not the same items: compared as two independent samples")
        return Pair(first, second, _independent(first, second), False, notes=tuple(notes))
    order = {each: row for row, each in enumerate(theirs.ids)}
    rows = [order[each] for each in ours.ids]
    if (len(first.values), len(second.values)) != (len(common), len(common)):
        notes.append("on the items that both have")
    if ours.weights is None or theirs.weights is None:
        difference = intervals.paired(tuple(theirs.values[row] for row in rows), ours.values)
    elif tuple(theirs.weights[row] for row in rows) == ours.weights:
        difference = intervals.paired_ratio(
            tuple(theirs.values[row] for row in rows), ours.values, ours.weights
        )
    else:
        notes.append("not the same text: compared as two independent samples")
        return Pair(first, second, _independent(first, second), False, notes=tuple(notes))
    prompts = [_prompts(each) for each in (ours, theirs)]
    if any(prompts[0][one] != prompts[1][one] for one in prompts[0].keys() & prompts[1].keys()):
        notes.append("the prompts were not the same")
    return Pair(ours, theirs, difference, True, notes=tuple(notes))


def _prompts(score: TaskScore) -> dict[str, str]:
    """Hashes of what the model read, by item, where they are known."""
    found = zip(score.ids, (each.get("prompt_hash") for each in score.samples), strict=False)
    return {one: str(prompt) for one, prompt in found if prompt}


def _unlike(first: TaskScore, second: TaskScore) -> list[str]:
    """In what the same task was not asked alike."""
    terms: list[tuple[str, Callable[[TaskScore], object]]] = [
        ("shots", lambda score: score.num_fewshot),
        ("task version", lambda score: score.version),
        ("harness", lambda score: score.harness),
    ]
    return [
        f"{what}: {term(first)} and {term(second)}"
        for what, term in terms
        if term(first) != term(second)
    ]


# -- without pairs ---------------------------------------------------------------------------------


def _independent(first: TaskScore, second: TaskScore) -> Difference:
    """Second minus first of two independent samples.

    The interval is made of both scores' own (Newcombe, Statistics in Medicine 17:873, 1998, method
    10 for shares; Zou and Donner, ibid. 27:1693, 2008, for any). The p-value is of a z-test, for
    right and wrong with the pooled share.
    """
    a, b = first.estimate, second.estimate
    value = b.value - a.value
    low = value - math.hypot(b.value - b.low, a.high - a.value)
    high = value + math.hypot(b.high - b.value, a.value - a.low)
    stderr = math.hypot(a.stderr, b.stderr)
    p = _p_value(value, _stderr_if_equal(first, second, a, b))
    return Difference(value, stderr, low, high, min(a.n, b.n), p)


def _stderr_if_equal(first: TaskScore, second: TaskScore, a: Estimate, b: Estimate) -> float:
    if not set(first.values) | set(second.values) <= {0.0, 1.0}:
        return math.hypot(a.stderr, b.stderr)
    share = (a.value * a.n + b.value * b.n) / (a.n + b.n)
    return math.sqrt(share * (1 - share) * (1 / a.n + 1 / b.n))


def _p_value(value: float, stderr: float) -> float:
    if value == 0 or math.isinf(stderr):
        return 1.0
    return 2 * NormalDist().cdf(-abs(value) / stderr) if stderr else 0.0


def _holm(p_values: Sequence[float]) -> list[bool]:
    """Which differences hold when all comparisons together may err once in twenty."""
    held = [False] * len(p_values)
    for done, row in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        if p_values[row] > _LEVEL / (len(p_values) - done):
            break
        held[row] = True
    return held
