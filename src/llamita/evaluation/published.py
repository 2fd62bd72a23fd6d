"""Scores that papers have published: published/*.yaml, each with its source and harness."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from llamita.errors import UserError, did_you_mean
from llamita.evaluation.results import TaskScore


@dataclass(frozen=True)
class PublishedTask:
    """A column. task: lm-eval's name. metric, num_fewshot: None where the source names none."""

    task: str
    label: str
    metric: str | None = None
    num_fewshot: int | None = None


@dataclass(frozen=True)
class PublishedRow:
    """A model's scores, as shares, in the order of the tasks.

    of: the model that checkpoints with different `tokens` belong to. mean: as printed.
    """

    model: str
    scores: tuple[float, ...]
    mean: float | None = None
    tokens: int | None = None
    of: str | None = None
    note: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """One source's scores. comparable: whether they are lm-eval's own, so that ours may stand
    beside them; `note` says what is to be thought of."""

    name: str
    title: str
    source: str
    harness: str
    comparable: bool
    note: str
    tasks: tuple[PublishedTask, ...]
    rows: tuple[PublishedRow, ...]

    def chosen(self, scores: tuple[TaskScore, ...]) -> tuple[TaskScore | None, ...]:
        """For each column the score that belongs there: of its task, by its metric where the
        source names one, else the first."""
        return tuple(
            next(
                (s for s in scores if s.task == column.task and column.metric in (None, s.metric)),
                None,
            )
            for column in self.tasks
        )


def differs(score: TaskScore, column: PublishedTask, table: PublishedTable) -> str:
    """What keeps a score from being compared with a table's column; "" if nothing does."""
    found = []
    if not table.comparable:
        found.append(f"{table.harness}'s is another harness")
    elif score.harness.partition(" ")[0] != table.harness:
        found.append(f"not asked by {table.harness}")
    if column.num_fewshot is not None and column.num_fewshot != score.num_fewshot:
        found.append(f"{score.num_fewshot} shots, there {column.num_fewshot}")
    if score.available is not None and len(score.values) < score.available:
        found.append("only some of its items")
    return "; ".join(found)


def published_names() -> list[str]:
    """The tables that ship with llamita."""
    shipped = (files("llamita.evaluation") / "published").iterdir()
    return sorted(each.name[: -len(".yaml")] for each in shipped if each.name.endswith(".yaml"))


@cache
def published_table(name: str) -> PublishedTable:
    """A table by its name.

    Raises:
        UserError: there is none of that name.
    """
    known = published_names()
    if name not in known:
        raise UserError(
            f"there is no table of published scores {name!r}; there are {', '.join(known)}."
            f"{did_you_mean(name, known)}"
        )
    place = files("llamita.evaluation") / "published" / f"{name}.yaml"
    given: dict[str, Any] = yaml.safe_load(place.read_text(encoding="utf-8"))
    tasks = tuple(PublishedTask(**each) for each in given.pop("tasks"))
    rows = tuple(_row(**each) for each in given.pop("rows"))
    assert all(len(row.scores) == len(tasks) for row in rows)
    return PublishedTable(name=name, tasks=tasks, rows=rows, **given)


def _row(
    *,
    model: str,
    scores: list[float],
    mean: float | None = None,
    tokens: float | None = None,
    **others: str,
) -> PublishedRow:
    """From per cent, as printed."""
    return PublishedRow(
        model=model,
        scores=tuple(each / 100 for each in scores),
        mean=None if mean is None else mean / 100,
        tokens=None if tokens is None else int(tokens),
        **others,
    )
