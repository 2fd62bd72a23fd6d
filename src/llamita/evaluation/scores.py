"""What an evaluation found: scores item by item, what is missing, and how it was asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from llamita.evaluation import intervals
from llamita.evaluation.intervals import Estimate

LM_EVAL = "lm-evaluation-harness"
"""The first word of `TaskScore.harness` for what lm-eval's own task code asked and judged."""

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
WEIGHTED = ("bits_per_byte", *PERPLEXITIES)
"""Metrics that are ratios of sums over documents, and not means over items."""


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task, item by item.

    task: lm-eval's name, or the file's for a user's own questions.
    metric: lm-eval's name; with a filter other than "none" the filter follows a comma, as in
        `exact_match,strict-match`.
    values: one a document, larger or smaller being better by `higher_is_better`. With `weights`
        they are sums that belong to those: bits with bytes (`bits_per_byte`), or nats with tokens,
        words or bytes (the names in PERPLEXITIES).
    ids: stable hashes of the documents (lm-eval's doc_hash), each once (`unique_ids`); () where a
        file names no items, and then no item can be paired with another result's.
    chance: what guessing scores: the mean over items of one divided by the number of choices. None
        where guessing means nothing.
    version: of the task. harness: who asked and judged, name first, then its version, as in
        `lm-evaluation-harness 0.4.13` or `llamita 0.1.0`.
    group: e.g. "mmlu" for its 57 subjects.
    available: documents in the split, of which `values` may be a part (`--limit`).
    contaminated: ids of items that were found in the training text; None: nobody looked.
    config: what was asked: lm-eval's task config (prompt, description, normalisation, ...).
    samples: lm-eval's record of each item, in the order of `values`: doc_id, doc, target,
        arguments, resps, filtered_resps, prompt_hash, target_hash, those there are.
    """

    task: str
    metric: str
    values: tuple[float, ...]
    ids: tuple[str, ...]
    chance: float | None
    num_fewshot: int
    version: str
    harness: str
    higher_is_better: bool = True
    group: str | None = None
    weights: tuple[float, ...] | None = None
    available: int | None = None
    contaminated: frozenset[str] | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    samples: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError: nothing was scored, or what belongs together differs in number."""
        name, num = f"{self.task} ({self.metric})", len(self.values)
        if not num:
            raise ValueError(f"{name}: not one item was scored")
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"{name}: a score is no finite number")
        for what, found in (("ids", self.ids), ("samples", self.samples)):
            if found and len(found) != num:
                raise ValueError(f"{name}: {num} scores and {len(found)} {what}")
        if (self.weights is not None) != (self.metric in WEIGHTED):
            raise ValueError(f"{name}: weights belong to {', '.join(WEIGHTED)}, and to these alone")
        if self.weights is not None and len(self.weights) != num:
            raise ValueError(f"{name}: {num} scores and {len(self.weights)} weights")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(f"{name}: an id stands for two items")

    @cached_property
    def estimate(self) -> Estimate:
        """The mean over items, or the ratio of sums where there are weights, with 95% interval."""
        if self.weights is None:
            return intervals.mean(self.values)
        found = intervals.ratio(self.values, self.weights)
        if self.metric not in PERPLEXITIES:
            return found
        value = _exp(found.value)
        # The delta method: d exp(x) = exp(x) dx. The ends are carried over as they are.
        return replace(
            found,
            value=value,
            stderr=value * found.stderr,
            low=_exp(found.low),
            high=_exp(found.high),
        )

    @property
    def not_above_chance(self) -> bool:
        """Whether guessing could have scored this: the 95% interval does not lie above chance."""
        return self.chance is not None and not intervals.above_chance(self.estimate, self.chance)

    @property
    def is_share(self) -> bool:
        """Whether items score from 0 to 1, so that the score is read in per cent."""
        return self.weights is None and min(self.values) >= 0 and max(self.values) <= 1

    @property
    def filter(self) -> str:
        """lm-eval's filter, "none" where the metric names none."""
        return self.metric.partition(",")[2] or "none"

    def only(self, ids: Iterable[str]) -> TaskScore | None:
        """The score over these items alone; None where none of them is among its items."""
        wanted = set(ids)
        rows = [row for row, each in enumerate(self.ids) if each in wanted]
        if not rows:
            return None
        return replace(
            self,
            values=tuple(self.values[row] for row in rows),
            ids=tuple(self.ids[row] for row in rows),
            weights=None if self.weights is None else tuple(self.weights[row] for row in rows),
            samples=tuple(self.samples[row] for row in rows) if self.samples else (),
        )

    @property
    def clean(self) -> TaskScore | None:
        """The score without contaminated items; None where nobody looked, or none is left."""
        if self.contaminated is None:
            return None
        return self.only(each for each in self.ids if each not in self.contaminated)


@dataclass(frozen=True)
class Missing:
    """A task that was asked for and has no score, and why."""

    task: str
    why: str


@dataclass(frozen=True)
class Evaluation:
    """What one model scored.

    model: the MODEL as the user wrote it. fingerprint: a hash of its weights, "" if unknown.
    tokens: that this checkpoint was trained on, where known.
    settings: how it was asked: limit, chat template, seeds, dtype, engine, command, ...
    versions: of llamita, lm_eval, torch and whatever else took part.
    date: ISO 8601, when it began. counts: truncated contexts and the like.
    """

    model: str
    fingerprint: str
    tokens: int | None
    scores: tuple[TaskScore, ...]
    missing: tuple[Missing, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    date: str
    counts: dict[str, int] = field(default_factory=dict)

    def score(self, task: str, metric: str) -> TaskScore | None:
        """The score of a task, or of a group as a whole; None where there is none."""
        found = (*self.scores, *self.groups)
        return next((s for s in found if (s.task, s.metric) == (task, metric)), None)

    @cached_property
    def shown(self) -> tuple[TaskScore, ...]:
        """Scores as a reader wants them: each group as one, where its first task stands."""
        return shown(self.scores)

    @cached_property
    def groups(self) -> tuple[TaskScore, ...]:
        """Each group of tasks as one score for each metric."""
        return groups(self.scores)


def shown(scores: Sequence[TaskScore]) -> tuple[TaskScore, ...]:
    """Scores, each group as one, where its first task stands."""
    whole = {(each.task, each.metric): each for each in groups(scores)}
    found = {
        (each.group or each.task, each.metric): whole[each.group, each.metric]
        if each.group is not None
        else each
        for each in scores
    }
    return tuple(found.values())


def groups(scores: Sequence[TaskScore]) -> tuple[TaskScore, ...]:
    """Each group of tasks as one score for each metric."""
    members: dict[tuple[str, str], list[TaskScore]] = {}
    for each in scores:
        if each.group is not None:
            members.setdefault((each.group, each.metric), []).append(each)
    return tuple(group_score(found) for found in members.values())


def group_score(scores: Sequence[TaskScore]) -> TaskScore:
    """A group's tasks as one task: every item counts the same, as lm-eval weights by size.

    Its ids are `task/id`, so that two models' groups can be compared item by item.

    Raises:
        ValueError: the scores are of different groups or metrics.
    """
    if len({(each.group, each.metric, each.higher_is_better) for each in scores}) != 1:
        raise ValueError("a group's score is over tasks of one group and one metric")
    first = scores[0]
    assert first.group is not None
    chances = [each.chance for each in scores]
    sizes = [len(each.values) for each in scores]
    chance = None
    if None not in chances:
        total = sum(size * each for size, each in zip(sizes, chances, strict=True) if each)
        chance = total / sum(sizes)
    looked = [each for each in scores if each.contaminated is not None]
    known = all(each.ids for each in scores)
    return TaskScore(
        task=first.group,
        metric=first.metric,
        values=tuple(value for each in scores for value in each.values),
        ids=tuple(f"{each.task}/{one}" for each in scores for one in each.ids) if known else (),
        chance=chance,
        num_fewshot=max(each.num_fewshot for each in scores),
        version=first.version,
        harness=first.harness,
        higher_is_better=first.higher_is_better,
        weights=None
        if first.weights is None
        else tuple(one for each in scores for one in each.weights or ()),
        available=_sum(each.available for each in scores),
        contaminated=frozenset(
            f"{each.task}/{one}" for each in looked for one in each.contaminated or ()
        )
        if len(looked) == len(scores)
        else None,
    )


def _exp(power: float) -> float:
    return math.exp(power) if power < 700 else math.inf


def _sum(counts: Iterable[int | None]) -> int | None:
    found = list(counts)
    return None if None in found else sum(each for each in found if each is not None)


def unique_ids(hashes: Sequence[str]) -> tuple[str, ...]:
    """Hashes of documents as ids of items: where a document comes again, `#2`, `#3`, ... follow."""
    seen: Counter[str] = Counter()
    found = []
    for each in hashes:
        seen[each] += 1
        found.append(each if seen[each] == 1 else f"{each}#{seen[each]}")
    return tuple(found)
