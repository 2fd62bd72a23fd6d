"""lm-eval's tasks, and a user's own questions, asked of a model: scores item by item.

Prompts, requests, filters and judgement are lm-eval's own code; what is done here is what its
`evaluate` does around that, so that one task that cannot be had leaves the rest to run.

Imports lm_eval: import this module where it is used.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.api.metrics
from lm_eval.utils import handle_non_serializable, hash_string

import llamita
from llamita.evaluation.lm_eval_manners import quiet, seeded
from llamita.evaluation.scores import LM_EVAL, PERPLEXITIES, Missing, TaskScore, unique_ids
from llamita.evaluation.suites import TaskWanted
from llamita.evaluation.task_data import DataError
from llamita.evaluation.task_loading import (
    Asking,
    Ready,
    gold_of,
    has_choices,
    items_of,
    make_ready,
)

_CHOSEN = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Metrics that ask whether the right one of an item's choices was preferred."""

Progress = Callable[[str, int, int], None]
"""Told of a task, or group, that begins: its name, items judged before it, items of them all."""


@dataclass(frozen=True)
class Prepared:
    """Tasks with their requests built, in the order they run, and those that cannot be had.

    members: how many tasks each of lm-eval's groups has.
    """

    ready: tuple[Ready, ...]
    missing: tuple[Missing, ...]
    members: Mapping[str, int]

    @property
    def num_items(self) -> int:
        return sum(each.num_items for each in self.ready)

    @property
    def num_requests(self) -> int:
        """Of the model: a question with four choices is four."""
        return sum(len(each.task.instances) for each in self.ready)


def run_tasks(
    lm: Any,
    wanted: Sequence[TaskWanted],
    *,
    limit: float | None = None,
    data: Path | None = None,
    hub: bool = True,
    chat: bool = False,
    system: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    progress: Progress = lambda name, done, total: None,
) -> tuple[list[TaskScore], list[Missing]]:
    """Ask a model lm-eval's tasks and own questions; those wanted of kind "code" are passed over.

    Args:
        lm: an `lm_eval.api.model.LM`.
        others: as `Asking` has them; `data` is a folder of datasets in upstream's schema, looked
            into before the hub (`task_data`).

    Raises:
        UserError: a name is unknown, a task YAML or the limit is wrong, or two names hold one task.
    """
    asking = Asking(limit, data, hub, chat, system, gen_kwargs)
    return run_prepared(lm, prepare_tasks(lm, wanted, asking), progress=progress)


def prepare_tasks(lm: Any, wanted: Sequence[TaskWanted], asking: Asking) -> Prepared:
    """Fetch documents and build requests, so that what is missing is known before anything runs.

    Raises:
        UserError: as `run_tasks`.
    """
    ready, missing, leaves = make_ready(lm, wanted, asking)
    members = Counter(str(leaf.groups[0]["group"]) for leaf in leaves if leaf.groups)
    return Prepared(tuple(ready), tuple(missing), members)


def run_prepared(
    lm: Any,
    prepared: Prepared,
    *,
    progress: Progress = lambda name, done, total: None,
) -> tuple[list[TaskScore], list[Missing]]:
    """Ask the model: the tasks of a group together, so that batches are full."""
    units: dict[str, list[Ready]] = {}
    for ready in prepared.ready:
        units.setdefault(ready.leaf.wanted.name, []).append(ready)
    scores: list[TaskScore] = []
    missing = list(prepared.missing)
    done = 0
    for name, unit in units.items():
        progress(name, done, prepared.num_items)
        _answer(lm, unit)
        with quiet(), seeded():
            for ready in unit:
                found, lacking = _scores(ready)
                scores += found
                missing += lacking
                done += ready.num_items
    return _of_whole_groups(scores, missing, prepared.members)


def _of_whole_groups(
    scores: Sequence[TaskScore], missing: Sequence[Missing], members: Mapping[str, int]
) -> tuple[list[TaskScore], list[Missing]]:
    """The scores, of which a group's score is made only where all of its tasks have one: what some
    of a benchmark's tasks give is not what others call by its name."""
    found = Counter((each.group, each.metric) for each in scores if each.group)
    parts = {key: num for key, num in found.items() if num < members[str(key[0])]}
    kept = [
        replace(each, group=None) if (each.group, each.metric) in parts else each for each in scores
    ]
    told = [
        Missing(f"{group} ({metric})", f"only {num} of its {members[str(group)]} tasks were scored")
        for (group, metric), num in parts.items()
    ]
    return kept, [*missing, *told]


def _answer(lm: Any, unit: Sequence[Ready]) -> None:
    """The model's answers, put into `Instance.resps`, as often as each is repeated."""
    asked: dict[str, list[Any]] = defaultdict(list)
    for ready in unit:
        for instance in ready.task.instances:
            asked[instance.request_type].extend([instance] * instance.repeats)
    for kind, requests in asked.items():
        answers = getattr(lm, kind)(requests)
        for request, answer in zip(requests, answers, strict=True):
            request.resps.append(answer)


# -- from answers to scores ------------------------------------------------------------------------


def _scores(ready: Ready) -> tuple[list[TaskScore], list[Missing]]:
    try:
        records = _judged(ready.task)
    except Exception as error:  # a task's own code; there is no telling what it raises
        why = f"its answers could not be judged: {type(error).__name__}: {error}"
        return [], [Missing(ready.leaf.name, why)]
    found: dict[str, list[_Record]] = {}
    for record in records:
        for metric in record.metrics:
            key = metric if record.filter == "none" else f"{metric},{record.filter}"
            found.setdefault(key, []).append(record)
    wanted = ready.leaf.wanted.metrics or tuple(found)
    scores: list[TaskScore] = []
    missing: list[Missing] = []
    for key in wanted:
        try:
            if key not in found:
                raise DataError(f"it has no metric {key!r}, but {', '.join(found)}")
            scores.append(_score(ready, key, found[key]))
        except DataError as error:
            missing.append(Missing(f"{ready.leaf.name} ({key})", str(error)))
    return scores, missing


@dataclass(frozen=True)
class _Record:
    """An item, by one filter. sample: lm-eval's record of it, but for the metrics."""

    id: str
    filter: str
    metrics: Mapping[str, Any]
    sample: Mapping[str, Any]


def _judged(task: Any) -> list[_Record]:
    """Filters and `process_results` over the answers; the fields are those of lm-eval's samples."""
    task.apply_filters()
    items = items_of(task)
    ids = dict(
        zip(items, unique_ids([_doc_hash(each[0].doc) for each in items.values()]), strict=True)
    )
    records = []
    for name in task.instances[0].filtered_resps:
        for number, requests in items.items():
            doc = requests[0].doc
            filtered = [each.filtered_resps[name] for each in requests]
            metrics = task.process_results(doc, filtered)
            target = task.doc_to_target(doc)
            sample = {
                "doc_id": number,
                "doc": doc,
                "target": target,
                "arguments": [each.args for each in requests],
                "resps": [each.resps for each in requests],
                "filtered_resps": filtered,
                "prompt_hash": hash_string(requests[0].arguments[0]),
                "target_hash": hash_string(str(target)),
                "item": _item_text(task, doc, target),
            }
            records.append(_Record(ids[number], name, metrics, sample))
    return records


def _item_text(task: Any, doc: Any, target: Any) -> str:
    """What a leak of the item would hold: question and right answer, no examples before it."""
    question = task.doc_to_text(doc)
    if not has_choices(task):
        return f"{question} {target}"
    choices, right = gold_of(task, doc)
    if task.multiple_input:  # each choice is a beginning of its own, and the target follows
        return f"{choices[right[0]]} {target}"
    return f"{question} {choices[right[0]]}"


def _doc_hash(doc: Any) -> str:
    told = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    hashed: str = hash_string(told)
    return hashed


def _score(ready: Ready, key: str, records: Sequence[_Record]) -> TaskScore:
    task, leaf = ready.task, ready.leaf
    metric = key.partition(",")[0]
    values, weights = _values(task, metric, [each.metrics[metric] for each in records])
    own = leaf.wanted.questions is not None
    version = str(task.VERSION)
    return TaskScore(
        task=leaf.name,
        metric=key,
        values=values,
        ids=tuple(each.id for each in records),
        chance=_chance(task, records) if metric in _CHOSEN and has_choices(task) else None,
        num_fewshot=task.get_config("num_fewshot"),
        # A version of lm-eval's stands for its own config alone.
        version=f"{version}+llamita" if leaf.wanted.overrides else version,
        harness=f"llamita {llamita.__version__}" if own else f"{LM_EVAL} {lm_eval.__version__}",
        higher_is_better=task.higher_is_better().get(metric, True),
        group=leaf.group_of(metric),
        weights=weights,
        available=ready.available,
        config=task.dump_config(),
        samples=tuple(each.sample for each in records),
    )


def _values(
    task: Any, metric: str, given: Sequence[Any]
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """An item's numbers as `TaskScore` has them: values, and weights for ratios of sums.

    Raises:
        DataError: the metric is no mean and no ratio over items, so that it has no interval here.
    """
    names = lm_eval.api.metrics
    aggregation = task.aggregation().get(metric, names.mean)
    if aggregation in (names.weighted_perplexity, names.bits_per_byte):
        unit = math.log(2.0) if aggregation is names.bits_per_byte else 1.0
        pairs = [(-float(nats) / unit, float(weight)) for nats, weight in given]
        return tuple(value for value, _ in pairs), tuple(weight for _, weight in pairs)
    if aggregation is names.perplexity and metric in PERPLEXITIES:
        return tuple(-float(each) for each in given), (1.0,) * len(given)
    if aggregation is not names.mean:
        name = getattr(aggregation, "__name__", str(aggregation))
        raise DataError(f"it is {name} over all items, of which no interval is known")
    try:
        values = tuple(float(each) for each in given)
    except (TypeError, ValueError):
        raise DataError(f"it is no number for each item but, say, {given[0]!r}") from None
    if not all(map(math.isfinite, values)):
        raise DataError("it is no finite number for some item")
    return values, None


def _chance(task: Any, records: Sequence[_Record]) -> float:
    """What choosing blindly scores: the mean of the share of an item's choices that are right."""
    golds = (gold_of(task, each.sample["doc"]) for each in records)
    return math.fsum(len(set(right)) / len(choices) for choices, right in golds) / len(records)
