"""From a results file and its samples to an `Evaluation`: ours, and what lm-eval wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llamita.errors import UserError
from llamita.evaluation.scores import (
    LM_EVAL,
    WEIGHTED,
    Evaluation,
    Missing,
    TaskScore,
    group_score,
    unique_ids,
)

FORMAT = 1
"""Of the block `llamita` in a results file."""
_TOLERANCE = 1e-6
_GUESSED = ("acc", "acc_norm")
Samples = Callable[[str], list[dict[str, Any]] | None]
"""A task's records, None where there is no file of them."""


def packed(score: TaskScore, row: int) -> Any:
    """An item's value as it stands in a record. lm-eval has [log-likelihood, weight] for the
    metrics that are ratios."""
    value = score.values[row]
    if score.weights is None:
        return value
    return [-value * _nats(score.metric), score.weights[row]]


def _nats(metric: str) -> float:
    """Of one unit of a weighted metric's values: bits, or nats."""
    return math.log(2.0) if metric == "bits_per_byte" else 1.0


def evaluation_of(
    document: Mapping[str, Any], samples: Samples, *, source: Path, date: str
) -> Evaluation:
    """What a results document and its samples say.

    Args:
        source: of the document, for messages. date: in its name.

    Raises:
        UserError: a newer llamita wrote it, or a field is not what it has to be.
    """
    own = document.get("llamita") or {}
    if own.get("format", FORMAT) > FORMAT:
        raise UserError(f"{source} was written by a newer llamita, in format {own['format']}")
    try:
        scores, missing = _scores(document, own, samples)
        config = document.get("config") or {}
        missing = [*(Missing(**each) for each in own.get("missing", ())), *missing]
        return Evaluation(
            model=str(own.get("model") or document.get("model_name") or config.get("model", "")),
            fingerprint=str(own.get("fingerprint", config.get("model_sha") or "")),
            tokens=own.get("tokens"),
            scores=tuple(scores),
            missing=tuple(missing),
            settings=dict(own.get("settings", config)),
            versions=dict(own.get("versions", _versions(document))),
            date=str(own.get("date") or _date(document, date)),
            counts=dict(own.get("counts", {})),
        )
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{source} is not as llamita or lm_eval writes it: {error}") from error


def _versions(document: Mapping[str, Any]) -> dict[str, str]:
    names = ("lm_eval", "transformers")
    found = {name: document.get(f"{name}_version") for name in names}
    return {name: str(version) for name, version in found.items() if version}


def _date(document: Mapping[str, Any], named: str) -> str:
    if isinstance(document.get("date"), int | float):
        return datetime.fromtimestamp(document["date"], UTC).isoformat()
    return named


# -- scores ----------------------------------------------------------------------------------------


def _scores(
    document: Mapping[str, Any], own: Mapping[str, Any], samples: Samples
) -> tuple[list[TaskScore], list[Missing]]:
    notes = {(each["task"], each["metric"]): each for each in own.get("scores", ())}
    subtasks = document.get("group_subtasks") or {}
    groups = document.get("groups") or {}
    scores: list[TaskScore] = []
    missing: list[Missing] = []
    for task, summary in document["results"].items():
        if task in groups or subtasks.get(task):
            continue
        records = samples(task)
        for metric, stated in _metrics(summary):
            note = notes.get((task, metric)) or {"group": _outermost(task, subtasks, groups)}
            try:
                scores.append(_score(document, task, metric, stated, records, note))
            except _NotItemByItem as reason:
                missing.append(Missing(f"{task} ({metric})", str(reason)))
    return _grouped(scores, groups, missing), missing


def _metrics(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The metrics of a task, a filter other than "none" after a comma, and their values."""
    for key, value in summary.items():
        name, _, chosen = key.partition(",")
        fixed = name in ("name", "alias", "sample_len", "sample_count")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not fixed and not name.endswith("_stderr"):
            yield (f"{name},{chosen}" if chosen not in ("", "none") else name), float(value)


class _NotItemByItem(Exception):
    """Why a metric cannot be had item by item."""


def _score(
    document: Mapping[str, Any],
    task: str,
    metric: str,
    stated: float,
    records: Sequence[Mapping[str, Any]] | None,
    note: Mapping[str, Any],
) -> TaskScore:
    config = (document.get("configs") or {}).get(task) or {}
    counts = (document.get("n-samples") or {}).get(task) or {}
    name, _, chosen = metric.partition(",")
    found: list[Mapping[str, Any]] = []
    if records is None:
        values, weights = _right_and_wrong(stated, int(counts.get("effective") or 0)), None
    else:
        found = [each for each in records if each.get("filter", "none") == (chosen or "none")]
        found = [each for each in found if each.get(name) is not None]
        values, weights = _values(name, found)
    higher = ((document.get("higher_is_better") or {}).get(task) or {}).get(name)
    version = str(document.get("lm_eval_version") or "")
    contaminated = note.get("contaminated")
    score = TaskScore(
        task=task,
        metric=metric,
        values=values,
        ids=unique_ids([str(each["doc_hash"]) for each in found]),
        chance=note.get("chance", _chance(name, config, found)),
        num_fewshot=int((document.get("n-shot") or {}).get(task) or 0),
        version=str((document.get("versions") or {}).get(task, "")),
        harness=note.get("harness", f"{LM_EVAL} {version}".rstrip()),
        higher_is_better=name not in WEIGHTED if higher is None else bool(higher),
        group=note.get("group"),
        weights=weights,
        available=note.get("available", counts.get("original")),
        contaminated=None if contaminated is None else frozenset(contaminated),
        config=config,
        samples=tuple(found),
    )
    # Only a mean has an interval from its items; and samples of another run would show here.
    if not _close(score.estimate.value, stated):
        raise _NotItemByItem(f"its value, {stated:.6g}, is not the mean of its items")
    return score


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _values(
    name: str, records: Sequence[Mapping[str, Any]]
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    found = [each[name] for each in records]
    if not found:
        raise _NotItemByItem("the file of its samples names it for no item")
    if name in WEIGHTED and all(isinstance(each, list) and len(each) == 2 for each in found):
        unit = _nats(name)
        return tuple(-float(a) / unit for a, _ in found), tuple(float(b) for _, b in found)
    if name in WEIGHTED or not all(isinstance(each, bool | int | float) for each in found):
        raise _NotItemByItem("it is no number for each item")
    return tuple(map(float, found)), None


def _right_and_wrong(stated: float, num: int) -> tuple[float, ...]:
    """Items of a share of right answers, in no order: all that a mean without its items says."""
    right = round(stated * num)
    if not num or not 0 <= right <= num or abs(right - stated * num) > _TOLERANCE * num:
        raise _NotItemByItem(
            "the results came without their items: run lm_eval again with --log_samples"
        )
    return (1.0,) * right + (0.0,) * (num - right)


def _chance(
    name: str, config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> float | None:
    """The mean of 1 / choices, where each choice was one request."""
    if config.get("output_type") != "multiple_choice" or name not in _GUESSED or not records:
        return None
    choices = [len(each.get("arguments") or ()) for each in records]
    return sum(1 / each for each in choices) / len(choices) if all(choices) else None


# -- groups ----------------------------------------------------------------------------------------


def _outermost(
    task: str, subtasks: Mapping[str, Iterable[str]], groups: Mapping[str, Any]
) -> str | None:
    """The outermost group that has a score and, at any depth, this task."""
    found, at, seen = None, task, {task}
    while parents := [g for g, members in subtasks.items() if at in members and g not in seen]:
        at = parents[0]
        seen.add(at)
        found = at if at in groups else found
    return found


def _grouped(
    scores: Sequence[TaskScore], groups: Mapping[str, Any], missing: list[Missing]
) -> list[TaskScore]:
    """The scores, out of their group where their items do not give the group's stated score."""
    members: dict[tuple[str, str], list[TaskScore]] = {}
    for each in scores:
        if each.group is not None:
            members.setdefault((each.group, each.metric), []).append(each)
    loose = set()
    for (group, metric), found in members.items():
        name, _, chosen = metric.partition(",")
        stated = groups.get(group, {}).get(f"{name},{chosen or 'none'}")
        if stated is None:
            loose.add((group, metric))
        elif not _close(group_score(found).estimate.value, stated):
            loose.add((group, metric))
            why = "its tasks are shown one by one: their items do not give the group's score"
            missing.append(Missing(f"{group} ({metric})", why))
    return [
        replace(each, group=None) if (each.group, each.metric) in loose else each for each in scores
    ]
