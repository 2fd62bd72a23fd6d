"""HumanEval, MBPP and a user's own problems, asked of a model and judged in the sandbox.

lm-eval's tasks of these names fetch the metric from the hub, and it runs what models write as the
user; so they are asked here. Imports lm_eval where the model is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import llamita
from llamita.cores import usable_cores
from llamita.errors import UserError
from llamita.evaluation.code_problems import (
    CodeTask,
    Row,
    checked,
    code_task,
    find_problems,
    own_task,
    read_problems,
)
from llamita.evaluation.intervals import pass_at_k
from llamita.evaluation.sandbox import Outcome, protect, run_python
from llamita.evaluation.scores import Missing, TaskScore, unique_ids
from llamita.evaluation.task_data import DataError

if TYPE_CHECKING:
    from llamita.evaluation.suites import TaskWanted
    from llamita.evaluation.task_loading import Asking

_T = TypeVar("_T")
_DRAWN = {"do_sample": True, "temperature": 0.2, "top_p": 0.95}  # lm-eval's humaneval_64


@dataclass(frozen=True)
class Judging:
    """How completions are drawn and judged.

    samples: completions of each problem; one is greedy. ks: of pass@k. temperature: of several
    completions. seconds, memory_bytes, unsafe: of each program, see `sandbox.run_python`. cores:
    programs that run at a time; by default as many as there are.

    Raises:
        UserError: pass@k of fewer samples than k, or samples that would all be the same.
    """

    samples: int = 1
    ks: tuple[int, ...] = (1,)
    temperature: float | None = None
    seconds: float = 10.0
    memory_bytes: int = 1024**3
    unsafe: bool = False
    cores: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples {self.samples}: give 1 or more of each problem")
        for k in self.ks:
            pass_at_k(self.samples, 0, k)
        if self.samples == 1 and self.temperature is not None:
            raise UserError(
                f"temperature {self.temperature:g} is of several programs a problem, and one is "
                "greedy: give samples above 1, or leave the temperature out"
            )
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                f"samples {self.samples} at temperature 0 would all be the same: give a "
                "temperature above 0, or one sample"
            )


@dataclass
class CodeRun:
    """What came of it. counts: programs that were stopped for time or memory, by task."""

    scores: list[TaskScore] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


Progress = Callable[[str, int, int], None]
"""Told of programs judged: the task, how many are, of how many."""


def run_code_tasks(
    lm: Any,
    wanted: Sequence[TaskWanted],
    asking: Asking,
    judging: Judging | None = None,
    *,
    progress: Progress = lambda name, done, total: None,
) -> CodeRun:
    """Ask a model the tasks of kind "code" among those wanted, and judge what it writes.

    A task that cannot be had, or not be judged safely on this machine, is missing; the rest runs.

    Args:
        lm: an `lm_eval.api.model.LM`, for its `generate_until` and `apply_chat_template`.
        asking: of its fields `limit`, `data`, `hub`, `chat`, `system` and `gen_kwargs`.

    Raises:
        UserError: more examples in the prompt than there are, or what the model refuses.
    """
    judging = judging or Judging()
    run = CodeRun()
    for each in wanted:
        if each.kind != "code":
            continue
        task = (
            own_task(each.questions.name, chat=asking.chat)
            if each.questions is not None
            else code_task(each.name, chat=asking.chat)
        )
        num_fewshot = task.shots(each.num_fewshot)
        try:
            protect(unsafe=judging.unsafe)  # before the model writes for an hour
            given = None if each.questions is None else each.questions.items
            rows = _rows(task, given, asking)
        except (DataError, UserError) as error:
            run.missing.append(Missing(task.name, str(error)))
            continue
        asked = _Asked(task, rows[: asking.num_of(len(rows))], len(rows), num_fewshot)
        _run(lm, asked, asking, judging, run, progress)
    return run


def judge(
    programs: Sequence[str],
    judging: Judging,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """What comes of each program, as many at a time as there are cores; equal ones run once.

    Raises:
        UserError: see `run_python`.
    """
    unique = list(dict.fromkeys(programs))
    found: dict[str, Outcome] = {}

    def one(program: str) -> Outcome:
        return run_python(
            program,
            seconds=judging.seconds,
            memory_bytes=judging.memory_bytes,
            unsafe=judging.unsafe,
        )

    pool = ThreadPoolExecutor(judging.cores or usable_cores())
    try:
        for program, outcome in zip(unique, pool.map(one, unique), strict=True):
            found[program] = outcome
            progress(len(found), len(unique))
    finally:
        pool.shutdown(cancel_futures=True)
    return [found[program] for program in programs]


@dataclass(frozen=True)
class _Asked:
    task: CodeTask
    rows: Sequence[Row]
    available: int
    num_fewshot: int


def _rows(task: CodeTask, given: Sequence[Row] | None, asking: Asking) -> list[Row]:
    """A task's problems: the user's own, from the folder of data, or else from the hub."""
    if given is not None:
        return list(given)
    if asking.data is not None and (paths := find_problems(task, asking.data)):
        return read_problems(task, paths)
    folder = "no folder of data is given" if asking.data is None else f"it is not in {asking.data}"
    if not asking.hub:
        raise DataError(
            f"{task.dataset}: {folder} ({task.file}, or test.jsonl in "
            f"{task.name.removesuffix('_instruct')}/), and the hub is not asked"
        )
    import datasets

    from llamita.evaluation.lm_eval_manners import quiet

    try:
        with quiet():
            found = datasets.load_dataset(task.dataset, task.config, split="test")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{task.dataset}: {folder}, and the hub gave none: {reason}") from error
    return checked(task, found, task.dataset)


def _run(
    lm: Any, asked: _Asked, asking: Asking, judging: Judging, run: CodeRun, progress: Progress
) -> None:
    task, rows = asked.task, asked.rows
    settings = dict(task.generation)
    if judging.samples > 1:
        settings |= _DRAWN
        if judging.temperature is not None:
            settings["temperature"] = judging.temperature
    settings |= asking.gen_kwargs or {}
    render = lm.apply_chat_template if task.is_chat else None
    prompts = [
        task.prompt(row, asked.num_fewshot, system=asking.system, render=render) for row in rows
    ]
    completions = _written(lm, task, rows, prompts, settings, judging.samples)
    programs = [
        task.program(row, each)
        for row, texts in zip(rows, completions, strict=True)
        for each in texts
    ]
    try:
        judged = judge(programs, judging, lambda done, total: progress(task.name, done, total))
    except UserError as error:
        run.missing.append(Missing(task.name, str(error)))
        return
    for outcome in judged:
        if outcome.why in ("timeout", "memory"):
            run.counts[f"{task.name}: programs stopped ({outcome.why})"] += 1
    outcomes = _grouped(judged, judging.samples)
    samples = [
        _sample(task, number, row, (prompts[number], settings), completions[number], outcome)
        for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True))
    ]
    run.scores += _scores(asked, judging, settings, outcomes, samples)


def _grouped(each: Sequence[_T], size: int) -> list[list[_T]]:
    return [list(each[first : first + size]) for first in range(0, len(each), size)]


def _sample(
    task: CodeTask,
    number: int,
    row: Row,
    arguments: tuple[str, Mapping[str, Any]],
    completions: Sequence[str],
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    """lm-eval's record of an item, with what came of each completion."""
    target = task.tests(row)
    return {
        "doc_id": number,
        "doc": dict(row),
        "target": target,
        "arguments": [arguments],
        "resps": [list(completions)],
        "filtered_resps": [[task.begun(row, each) for each in completions]],
        "prompt_hash": _sha256(arguments[0]),
        "target_hash": _sha256(target),
        "outcomes": [f"{each.why}: {each.detail}".removesuffix(": ") for each in outcomes],
    }


def _written(
    lm: Any,
    task: CodeTask,
    rows: Sequence[Row],
    prompts: Sequence[str],
    settings: Mapping[str, Any],
    samples: int,
) -> list[list[str]]:
    """The model's completions of each prompt."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance(
            request_type="generate_until",
            doc=dict(row),
            arguments=(prompt, dict(settings)),
            idx=0,
            metadata=(task.name, number, samples),
        )
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
        for _ in range(samples)
    ]
    texts = lm.generate_until(requests)
    assert len(texts) == len(requests)
    return _grouped(texts, samples)


def _scores(
    asked: _Asked,
    judging: Judging,
    settings: Mapping[str, Any],
    outcomes: Sequence[Sequence[Outcome]],
    samples: Sequence[Mapping[str, Any]],
) -> list[TaskScore]:
    task = asked.task
    told = [json.dumps(dict(row), indent=2, ensure_ascii=False) for row in asked.rows]
    ids = unique_ids([_sha256(each) for each in told])  # lm-eval's doc_hash
    config = {
        "task": task.name,
        "dataset_path": task.dataset,
        "dataset_name": task.config,
        "num_fewshot": asked.num_fewshot,
        "generation_kwargs": dict(settings),
        "repeats": judging.samples,
        "seconds": judging.seconds,
        "memory_bytes": judging.memory_bytes,
        "sandbox": protect(unsafe=judging.unsafe).lines(),
        "metadata": {"version": task.version},
    }
    return [
        TaskScore(
            task=task.name,
            metric=f"pass@{k}",
            values=tuple(
                pass_at_k(judging.samples, sum(one.passed for one in each), k) for each in outcomes
            ),
            ids=ids,
            chance=None,
            num_fewshot=asked.num_fewshot,
            version=task.version,
            harness=f"llamita {llamita.__version__}",
            available=asked.available,
            config=config,
            samples=tuple(samples),
        )
        for k in judging.ks
    ]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
