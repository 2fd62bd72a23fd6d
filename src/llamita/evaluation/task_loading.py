"""lm-eval's tasks made ready: their documents fetched, their requests built, what is wrong said.

Imports lm_eval: import this module where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.api.task
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import TaskManager

from llamita.errors import UserError
from llamita.evaluation.lm_eval_manners import offline, quiet, seeded
from llamita.evaluation.own_questions import task_config
from llamita.evaluation.scores import Missing
from llamita.evaluation.suites import TaskWanted
from llamita.evaluation.task_data import DataError, dataset_of, find_split, read_split
from llamita.evaluation.task_index import Leaf, find_leaves

FEWSHOT_SEED = 1234
"""lm-eval's own (its defaults.py), so that few-shot examples are the ones everybody has."""

_LOCAL_BUILDERS = ("json", "csv", "parquet", "arrow", "text")


@dataclass(frozen=True)
class Asking:
    """How tasks are asked.

    limit: items of each task, its first ones; below 1, a share of them. data: folder of datasets.
    hub: whether it may be asked. chat: whether requests go through the model's chat template,
    examples as turns of their own. system: what the conversation, or the prompt, begins with.
    gen_kwargs: change how tasks that generate do so.

    Raises:
        UserError: the limit is not above 0, or is no whole number above 1.
    """

    limit: float | None = None
    data: Path | None = None
    hub: bool = True
    chat: bool = False
    system: str | None = None
    gen_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and (self.limit <= 0 or (self.limit > 1 and self.limit % 1)):
            raise UserError(
                f"a limit of {self.limit:g} items cannot be; give a number of items, or a share "
                "of them below 1"
            )

    def num_of(self, available: int) -> int | None:
        """Items to ask of so many; None for all."""
        if self.limit is None:
            return None
        return math.ceil(self.limit * available) if self.limit < 1 else int(self.limit)


@dataclass(frozen=True)
class Ready:
    """A task with its requests built (`task.instances`), and the number of its documents."""

    leaf: Leaf
    task: Any
    num_items: int
    available: int


def make_ready(
    lm: Any, wanted: Sequence[TaskWanted], asking: Asking
) -> tuple[list[Ready], list[Missing], list[Leaf]]:
    """Every task that can be had, why the others cannot, and all there should be.

    Raises:
        UserError: as `find_leaves`.
    """
    ready: list[Ready] = []
    missing: dict[str, str] = {}
    with quiet(), offline(not asking.hub):
        known = [each for each in wanted if each.kind == "lm_eval"]
        manager, leaves = find_leaves(known) if known else (TaskManager(include_defaults=False), [])
        own = [_own_leaf(each) for each in wanted if each.kind == "questions"]
        reach = _Reach(asking.hub)
        for leaf in (*leaves, *own):
            try:
                ready.append(_one(lm, manager, leaf, asking, reach))
            except DataError as error:
                missing[leaf.name] = str(error)
    return ready, _told(missing, [*leaves, *own]), [*leaves, *own]


def _told(missing: Mapping[str, str], leaves: Sequence[Leaf]) -> list[Missing]:
    """What is missing task by task, but a group of which nothing is there once."""
    members: dict[str, list[str]] = {}
    for leaf in leaves:
        members.setdefault(leaf.wanted.name, []).append(leaf.name)
    found = []
    for name, names in members.items():
        lacking = [each for each in names if each in missing]
        if len(lacking) == len(names) > 1:
            first = lacking[0]
            found.append(Missing(name, f"all {len(names)} tasks, as {first}: {missing[first]}"))
        else:
            found += [Missing(each, missing[each]) for each in lacking]
    return found


def _own_leaf(wanted: TaskWanted) -> Leaf:
    assert wanted.questions is not None
    return Leaf(wanted.name, wanted, task_config(wanted.questions), indexed=False)


def _one(lm: Any, manager: TaskManager, leaf: Leaf, asking: Asking, reach: _Reach) -> Ready:
    if refusal := _refusal(leaf, asking):
        raise DataError(refusal)
    with seeded():
        task = _built(manager, leaf, asking, reach)
        for name, missing in getattr(task, "_metric_fn_list", {}).items():
            if missing is None and task.config.process_results is None:
                raise DataError(f"its metric {name!r} is neither in lm-eval nor can it be fetched")
        num = leaf.wanted.num_fewshot
        # As lm-eval: a task that says it is zero-shot stays so.
        if task.get_config("num_fewshot") != 0 and num is not None:
            task.set_config("num_fewshot", num)
        elif task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        if asking.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", dict(asking.gen_kwargs), update=True)
        task.set_fewshot_seed(FEWSHOT_SEED)
        documents = getattr(task, "task_docs", None)
        available = len(task.eval_docs if documents is None else documents)
        _task_code(
            "its requests cannot be built",
            lambda: task.build_all_requests(
                limit=asking.num_of(available),
                system_instruction=asking.system,
                apply_chat_template=asking.chat,
                fewshot_as_multiturn=asking.chat,
                chat_template=lm.apply_chat_template if asking.chat else None,
                tokenizer_name=lm.tokenizer_name if asking.chat else "",
            ),
        )
        num_items = _task_code("its answers cannot be read", lambda: _checked_items(task))
    return Ready(leaf, task, num_items, available)


def _refusal(leaf: Leaf, asking: Asking) -> str | None:
    if leaf.setting("unsafe_code"):
        return "it runs what the model writes outside a sandbox; humaneval and mbpp run in one"
    if leaf.setting("doc_to_image") or leaf.setting("doc_to_audio"):
        return "it asks about pictures or sound"
    if asking.hub or leaf.setting("process_results"):
        return None
    for metric in leaf.setting("metric_list") or []:
        name = metric["metric"]
        is_function = not isinstance(name, str) or "/" in name  # as !function is, unresolved
        if metric.get("hf_evaluate") or not (is_function or name in metric_registry):
            return f"its metric {name!r} would have to come from the hub, which is not asked"
    return None


def _task_code(what: str, call: Callable[[], Any]) -> Any:
    """Run code that a task brings: whatever it raises means that the task cannot be had."""
    try:
        return call()
    except DataError:
        raise
    except Exception as error:  # there is no telling what the code of some hundred tasks raises
        reason = str(error).strip().split("\n")[0] or "no reason given"
        raise DataError(f"{what}: {type(error).__name__}: {reason}") from error


def _built(manager: TaskManager, leaf: Leaf, asking: Asking, reach: _Reach) -> Any:
    overrides = {**leaf.overrides, **_documents(leaf, asking)}

    def build() -> Any:
        if not leaf.indexed:
            return lm_eval.api.task.ConfigurableTask(config={**leaf.config, **overrides})
        # A group of one is lm-eval's way of changing the config of a task that it knows.
        spec = {"group": "llamita", "task": [{**overrides, "task": leaf.name}]}
        return manager.load([spec])["tasks"][leaf.name]

    try:
        with reach.limited():
            task = _task_code("it cannot be built", build)
    except DataError as error:
        if given := overrides.get("custom_dataset"):
            fields = ", ".join(next(iter(given().values())).column_names)
            raise DataError(f"{error}; its documents have the fields {fields}") from error
        if _of_hub(error.__cause__) and not _is_local(leaf):
            reach.failed(error.__cause__)
            raise DataError(_absent(leaf, asking, str(error.__cause__).split("\n")[0])) from error
        raise
    if "custom_dataset" in overrides:
        # It is in the config for lm-eval to call; what is recorded is the task as lm-eval has it.
        task.set_config("custom_dataset", None)
    return task


# -- documents -------------------------------------------------------------------------------------


def _documents(leaf: Leaf, asking: Asking) -> dict[str, Any]:
    """What of the config changes so that documents come from where they are; {} for the hub."""
    if leaf.wanted.questions is not None:
        rows = dataset_of(leaf.wanted.questions.items)
        return {"custom_dataset": lambda **_: {"test": rows}}
    if asking.data is not None and "class" not in leaf.config:
        eval_split = leaf.setting("test_split") or leaf.setting("validation_split")
        path, config = leaf.setting("dataset_path"), leaf.setting("dataset_name")
        find = functools.partial(find_split, asking.data, leaf.name, path, config)
        if eval_split and find(eval_split):
            return _local(leaf, find, str(eval_split))
    if not asking.hub and not _is_local(leaf):
        raise DataError(_absent(leaf, asking, "the hub is not asked"))
    return {}


def _local(leaf: Leaf, find: Callable[[str], list[Path]], eval_split: str) -> dict[str, Any]:
    """The splits that are needed, and no others: a zero-shot task needs no examples."""
    shots = leaf.wanted.num_fewshot
    own_shots = leaf.setting("num_fewshot")
    num = own_shots if own_shots == 0 or shots is None else shots
    fewshot = leaf.setting("fewshot_config") or {}
    named = {
        "training_split": leaf.setting("training_split"),
        "validation_split": leaf.setting("validation_split"),
        "fewshot_split": fewshot.get("split") or leaf.setting("fewshot_split"),
    }
    wanted = {eval_split}
    if num and not fewshot.get("samples"):
        # lm-eval's order: fewshot_split, training_split, validation_split, test_split.
        order = (named["fewshot_split"], named["training_split"], named["validation_split"])
        wanted.add(next((each for each in order if each), eval_split))
    found = {split: find(split) for split in sorted(wanted)}
    if lacking := [split for split, paths in found.items() if not paths]:
        beside = found[eval_split][0].parent
        raise DataError(f"its examples need the split {lacking[0]!r}, which is not in {beside}")
    data = {split: read_split(paths) for split, paths in found.items()}
    overrides: dict[str, Any] = {"custom_dataset": lambda **_: data}
    overrides |= {key: None for key, split in named.items() if split and split not in wanted}
    return overrides


def _is_local(leaf: Leaf) -> bool:
    """Whether a task names files of its own, or makes its documents."""
    if leaf.setting("custom_dataset") is not None:
        return True
    path, kwargs = leaf.setting("dataset_path"), leaf.setting("dataset_kwargs") or {}
    if path in _LOCAL_BUILDERS:
        return "://" not in repr(kwargs.get("data_files"))
    return isinstance(path, str) and Path(path).exists()


def _absent(leaf: Leaf, asking: Asking, why: str) -> str:
    name = leaf.setting("dataset_path")
    config = leaf.setting("dataset_name")
    data = f"{name} ({config})" if config else f"{name}"
    split = leaf.setting("test_split") or leaf.setting("validation_split")
    if asking.data is None:
        return f"no folder of data is given for {data}, and {why}"
    places = [leaf.name]
    if isinstance(name, str):
        places.append("/".join([name.rpartition("/")[2], *([config] if config else [])]))
    either = " or ".join(str(asking.data / each) for each in dict.fromkeys(places))
    return f"{data}: there is no {split}.jsonl or {split}.parquet in {either}, and {why}"


def _of_hub(error: BaseException | None) -> bool:
    """Whether it is one of those that fetching raises."""
    libraries = ("datasets", "huggingface_hub", "httpx", "requests")
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in libraries


class _Reach:
    """Whether the hub answers: once it has not, what it once sent is looked for on the disk alone,
    and nobody waits for it a hundred times."""

    def __init__(self, hub: bool) -> None:
        self._unreachable = not hub

    def failed(self, error: BaseException | None) -> None:
        while error is not None:
            self._unreachable |= isinstance(error, ConnectionError | TimeoutError)
            error = error.__cause__ or error.__context__

    def limited(self) -> contextlib.AbstractContextManager[None]:
        return offline(self._unreachable)


# -- what is asked, checked ------------------------------------------------------------------------


def items_of(task: Any) -> dict[int, list[Any]]:
    """A task's requests by document, in order."""
    found: dict[int, list[Any]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance)
    for requests in found.values():
        requests.sort(key=lambda each: each.idx)
    return found


def has_choices(task: Any) -> bool:
    """Whether lm-eval itself judges which choice is the likeliest."""
    return task.OUTPUT_TYPE == "multiple_choice" and task.config.process_results is None


def gold_of(task: Any, doc: Any) -> tuple[list[str], list[int]]:
    """A document's choices, and the indices of the right ones.

    Raises:
        DataError: a choice is empty, or a right answer is none of them: lm-eval would score it as
            wrong, or divide by a choice's length of 0.
    """
    choices = task.doc_to_choice(doc)
    if not choices or not all(isinstance(each, str) and each for each in choices):
        raise DataError(f"has a choice that is empty or no text: {choices!r}")
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    right = []
    for each in answer if isinstance(answer, list) else [answer]:
        index = choices.index(each) if isinstance(each, str) and each in choices else each
        if not isinstance(index, int) or not 0 <= index < len(choices):
            raise DataError(f"has the answer {each!r}, which is none of its {len(choices)} choices")
        right.append(index)
    if not right:
        raise DataError("has no right answer")
    return choices, right


def _checked_items(task: Any) -> int:
    items = items_of(task)
    if has_choices(task):
        for number, requests in items.items():
            try:
                gold_of(task, requests[0].doc)
            except DataError as error:
                raise DataError(f"its item {number} {error}") from error
    return len(items)
