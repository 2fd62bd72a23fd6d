"""What is to be measured: from the names that a user gives to tasks with metrics and shots.

A name is a suite's, lm-eval's (a task, group or tag, `*` allowed), a task YAML's path, or the path
of a user's own questions. Imports neither torch nor lm_eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from llamita.errors import UserError, did_you_mean
from llamita.evaluation.own_questions import (
    SUFFIXES,
    Questions,
    is_question_file,
    read_questions,
)

CODE_TASKS = ("humaneval", "mbpp")
"""Judged by running what the model wrote, in the sandbox; see code_tasks."""

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class TaskWanted:
    """One task, or group of tasks, that is to be measured.

    name: lm-eval's, a pattern of them, or a file's.
    kind: who asks and judges: lm-eval's task code, code_tasks, or lm-eval over own questions.
    metrics: as `TaskScore.metric` has them, the one to show first; () for all that there are.
    num_fewshot: examples in the prompt; None for the task's own number.
    suite: the first that names it. folder: of lm-eval's tasks, where this one is, if known.
    overrides: of lm-eval's task config; note: what they change, and why.
    """

    name: str
    kind: Literal["lm_eval", "code", "questions"]
    metrics: tuple[str, ...] = ()
    num_fewshot: int | None = None
    suite: str | None = None
    folder: str | None = None
    path: Path | None = None
    questions: Questions | None = field(default=None, repr=False)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Suite:
    """A named list of tasks. source: of the list. published: the table of scores to put beside."""

    name: str
    about: str
    source: str
    published: str | None
    tasks: tuple[TaskWanted, ...]


def suite_names() -> list[str]:
    """The suites that ship with llamita."""
    shipped = (files("llamita.evaluation") / "suites").iterdir()
    return sorted(each.name[: -len(".yaml")] for each in shipped if each.name.endswith(".yaml"))


def load_suite(name: str) -> Suite:
    """A suite by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in suite_names():
        raise UserError(
            f"there is no suite {name!r}; there are {', '.join(suite_names())}."
            f"{did_you_mean(name, suite_names())}"
        )
    text = (files("llamita.evaluation") / "suites" / f"{name}.yaml").read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    tasks = tuple(_suite_task(name, **each) for each in given["tasks"])
    return Suite(name, given["about"], given["source"], given["published"], tasks)


def _suite_task(
    suite: str,
    *,
    task: str,
    metrics: Sequence[str],
    num_fewshot: int,
    folder: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    note: str = "",
) -> TaskWanted:
    return TaskWanted(
        name=task,
        kind="code" if task in CODE_TASKS else "lm_eval",
        metrics=tuple(metrics),
        num_fewshot=num_fewshot,
        suite=suite,
        folder=folder,
        overrides=overrides or {},
        note=note,
    )


def resolve(names: Sequence[str], *, num_fewshot: int | None = None) -> list[TaskWanted]:
    """The tasks that names stand for, each once, in the order given.

    Args:
        num_fewshot: examples for every task, in place of its own number. A task that lm-eval
            defines as zero-shot stays so, as in lm-eval.

    Raises:
        UserError: a file is not there or is wrong, nothing is named, or two names want one task
            differently. Names that only lm-eval can know are looked up when tasks are loaded.
    """
    found: dict[str, TaskWanted] = {}
    for name in names:
        for each in _of_name(name):
            if num_fewshot is not None:
                each = replace(each, num_fewshot=num_fewshot)
            earlier = found.get(each.name)
            found[each.name] = each if earlier is None else _both(earlier, each)
    if not found:
        raise UserError(f"no task is named; name a suite ({', '.join(suite_names())}) or tasks")
    return list(found.values())


def _of_name(name: str) -> Sequence[TaskWanted]:
    path = Path(name).expanduser()
    if name in suite_names():
        return load_suite(name).tasks
    if name in CODE_TASKS:
        return [TaskWanted(name, "code")]
    is_yaml = path.suffix.lower() in _YAML
    if not is_yaml and not is_question_file(path):
        if "/" in name or path.exists():
            raise UserError(
                f"{name} is no file of tasks; name a task YAML ({' or '.join(_YAML)}) or a file "
                f"of questions ({', '.join(SUFFIXES)})"
            )
        return [_plain(name)]
    if not path.is_file():
        raise UserError(f"there is no file {name}")
    if is_yaml:
        return [TaskWanted(str(path), "lm_eval", path=path)]
    questions = read_questions(path)
    kind: Literal["code", "questions"] = "code" if questions.kind == "code" else "questions"
    return [TaskWanted(questions.name, kind, path=path, questions=questions)]


def _plain(name: str) -> TaskWanted:
    """A task by lm-eval's name, as lm-eval has it; a suite's knowledge of where it is helps."""
    tasks = [each for suite in suite_names() for each in load_suite(suite).tasks]
    folders = [each.folder for each in tasks if each.name == name]
    return TaskWanted(name, "lm_eval", folder=folders[0] if folders else None)


def _both(first: TaskWanted, second: TaskWanted) -> TaskWanted:
    """One task that two names want. A bare name leaves it to the other how it is asked."""
    ways = [(each.path, each.num_fewshot, each.overrides) for each in (first, second)]
    alone: tuple[Any, ...] = (None, None, {})
    if ways[0] != ways[1] and alone not in ways:
        raise UserError(
            f"{first.name} is wanted in two ways ({_way(first)}; {_way(second)}): evaluate one "
            "after the other"
        )
    # () is all metrics there are.
    every = () in (first.metrics, second.metrics)
    metrics = () if every else tuple(dict.fromkeys((*first.metrics, *second.metrics)))
    return replace(second if ways[0] == alone else first, metrics=metrics)


def _way(wanted: TaskWanted) -> str:
    shots = "its own" if wanted.num_fewshot is None else wanted.num_fewshot
    return f"{wanted.suite or wanted.path or 'by name'}: {shots} shots"
