"""From the tasks that are wanted to lm-eval's single tasks, each with what it is to be built from.

Imports lm_eval: import this module where it is used.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from llamita.errors import UserError, did_you_mean
from llamita.evaluation.suites import TaskWanted

_OUTPUT_TYPES = ("loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until")
_TASKS = Path(lm_eval.tasks.__file__).parent
_GROUP_FIELDS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag")


@dataclass(frozen=True)
class Leaf:
    """One of lm-eval's tasks. config: its YAML, functions unresolved. overrides: of that config.

    groups: of lm-eval it was reached through, outermost first, with what they aggregate.
    indexed: whether lm-eval knows the task by its name; else the config is all there is.
    """

    name: str
    wanted: TaskWanted
    config: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[Mapping[str, Any], ...] = ()
    indexed: bool = True

    def setting(self, key: str) -> Any:
        return self.overrides[key] if key in self.overrides else self.config.get(key)

    def group_of(self, metric: str) -> str | None:
        """The outermost group, if lm-eval gives it a score by this metric weighted by items."""
        for group in self.groups[:1]:
            listed = group.get("aggregate_metric_list") or []
            for each in listed if isinstance(listed, list) else [listed]:
                if each["metric"] == metric and each.get("weight_by_size", True):
                    return str(group["group"])
        return None


def _index(folders: tuple[str, ...] | None) -> TaskManager:
    """lm-eval's index of some folders of its tasks, or, after ten seconds or so, of them all."""
    if folders is None:
        return TaskManager()
    return TaskManager(include_defaults=False, include_path=[_TASKS / each for each in folders])


_kept_index = functools.lru_cache(maxsize=4)(_index)


def find_leaves(wanted: Sequence[TaskWanted]) -> tuple[TaskManager, list[Leaf]]:
    """lm-eval's single tasks for what is wanted of it, in order, and the manager that builds them.

    Raises:
        UserError: lm-eval has no task of a name; a task YAML is wrong; two names hold one task.
    """
    paths = [each.path for each in wanted if each.path is not None]
    folders = {_folder_of(each) for each in wanted if each.path is None}
    known = tuple(sorted(each for each in folders if each is not None))
    unknown = ""
    for some in [None] if None in folders else [known, None]:
        # A user's YAML may bear the name of one of lm-eval's tasks: it has an index of its own.
        manager = _index(some) if paths else _kept_index(some)
        for path in paths:
            _register(manager, path)
        try:
            return manager, _once(
                leaf for each in wanted for leaf in _leaves_of(manager, each, whole=some is None)
            )
        except _NotIndexed as error:
            unknown = str(error)
    raise UserError(unknown)


def _folder_of(wanted: TaskWanted) -> str | None:
    """Of lm-eval's tasks, the folder where one is, or may be: `lambada` for lambada_openai."""
    if wanted.folder is not None:
        return wanted.folder
    ends = [each.start() for each in re.finditer(r"[_-]|$", wanted.name)]
    names = [wanted.name[:end] for end in reversed(ends)]
    return next(
        (each for each in names if re.match(r"\w", each) and (_TASKS / each).is_dir()), None
    )


class _NotIndexed(Exception):
    """A group has a member that is not among the tasks indexed."""


def _once(leaves: Iterable[Leaf]) -> list[Leaf]:
    found: dict[str, Leaf] = {}
    for leaf in leaves:
        if leaf.name in found:
            raise UserError(
                f"{leaf.name} is wanted by {found[leaf.name].wanted.name} and by "
                f"{leaf.wanted.name}: leave one of them out"
            )
        found[leaf.name] = leaf
    return list(found.values())


def _leaves_of(manager: TaskManager, wanted: TaskWanted, whole: bool) -> Iterator[Leaf]:
    index = manager.task_index
    if wanted.path is not None:
        config = _read(wanted.path)
        names = [str(config.get("group", config.get("task")))]
    elif set(wanted.name) & set("*?["):
        if not whole:
            raise _NotIndexed(wanted.name)
        names = [each for each in manager.all_subtasks if fnmatch.fnmatchcase(each, wanted.name)]
        if not names:
            raise UserError(f"lm-eval has no task that {wanted.name!r} stands for")
    else:
        names = [wanted.name]
    for name in names:
        # Tasks of a tag may be anywhere.
        if not whole and (name not in index or index[name].kind is Kind.TAG):
            raise _NotIndexed(name)
        if name not in index:
            raise UserError(
                f"lm-eval has no task, group or tag {name!r}.{did_you_mean(name, index)}"
            )
        yield from _expand(index, name, wanted, dict(wanted.overrides), ())


def _expand(
    index: Mapping[str, Entry],
    item: str | Mapping[str, Any],
    wanted: TaskWanted,
    overrides: Mapping[str, Any],
    groups: tuple[Mapping[str, Any], ...],
) -> Iterator[Leaf]:
    """The tasks of a task's, tag's or group's name, or of a group's member with settings."""
    above, item = overrides, item if isinstance(item, Mapping) else {"task": item}
    name = item.get("group") or item.get("task")
    if not isinstance(name, str):
        raise UserError(f"the group {groups[-1]['group']} has a member without a name")
    overrides = {**above, **{k: v for k, v in item.items() if k not in ("group", "task")}}
    entry = index.get(name)
    if entry is None:
        if "group" in item:  # which its parent writes out
            yield from _members(index, item, wanted, above, groups)
            return
        if "dataset_path" in overrides:  # a task, which lm-eval names after its group
            name = f"{groups[-1]['group']}::{name}"
            yield Leaf(name, wanted, {**overrides, "task": name}, {}, groups, indexed=False)
            return
        raise _NotIndexed(
            f"the group {groups[-1]['group']} has a member {name!r}, which is no task"
        )
    if entry.kind is Kind.TAG:
        for each in sorted(entry.tags):
            yield from _expand(index, each, wanted, overrides, groups)
    elif entry.kind is Kind.GROUP:
        config = load_yaml(entry.yaml_path, resolve_func=True)
        yield from _members(index, config, wanted, overrides, groups)
    else:
        yield Leaf(name, wanted, entry.cfg or {}, overrides, groups)


def _members(
    index: Mapping[str, Entry],
    config: Mapping[str, Any],
    wanted: TaskWanted,
    overrides: Mapping[str, Any],
    groups: tuple[Mapping[str, Any], ...],
) -> Iterator[Leaf]:
    settings = {key: value for key, value in config.items() if key not in _GROUP_FIELDS}
    members = config.get("task") or []
    for member in members if isinstance(members, list) else [members]:
        yield from _expand(index, member, wanted, {**settings, **overrides}, (*groups, config))


# -- task files of the user's ----------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        config = load_yaml(path, resolve_func=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} includes {error.filename}, which is not there") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a task: {error}") from None
    assert isinstance(config, dict)
    return config


def _register(manager: TaskManager, path: Path) -> None:
    """Put a task file into the index; for a group, tasks beside it, of which it may be made."""
    config = _read(path)
    if "group" in config:
        for beside in sorted(path.parent.glob("*.yaml")):
            if beside != path and isinstance(_read(beside).get("task"), str):
                _register(manager, beside)
        name, kind = str(config["group"]), Kind.GROUP
    else:
        _check(path, config)
        name, kind = config["task"], Kind.PY_TASK if "class" in config else Kind.TASK
    manager.task_index[name] = Entry(name, kind, path, config)


def _check(path: Path, config: Mapping[str, Any]) -> None:
    """What lm-eval would stumble over later, and say less clearly."""
    if not isinstance(config.get("task"), str):
        raise UserError(f"{path} has no 'task', its name")
    if "class" in config:
        return
    kind = config.get("output_type", "generate_until")
    if kind not in _OUTPUT_TYPES:
        raise UserError(
            f"{path}: output_type is {kind!r}, and none of {', '.join(_OUTPUT_TYPES)}."
            f"{did_you_mean(str(kind), _OUTPUT_TYPES)}"
        )
    needed = {
        "its documents": ("dataset_path", "custom_dataset"),
        "the split to judge": ("test_split", "validation_split"),
        "the prompt": ("doc_to_text", "use_prompt"),
        "the answer": ("doc_to_target", "use_prompt"),
    }
    if kind == "loglikelihood_rolling":
        del needed["the prompt"]
    if kind == "multiple_choice":
        needed["the choices"] = ("doc_to_choice", "use_prompt")
    for what, fields in needed.items():
        if all(config.get(each) is None for each in fields):
            raise UserError(f"{path} has no {fields[0]!r} ({what})")
