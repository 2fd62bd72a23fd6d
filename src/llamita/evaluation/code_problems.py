"""HumanEval and MBPP: what their problems ask, and the program that a completion makes.

Prompts, examples and stop strings are those of lm-eval's tasks of the same names; its `_instruct`
tasks are asked where requests go through a chat template. Imports no lm_eval; documents are read by
`task_data`, which needs datasets.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from llamita.errors import UserError
from llamita.evaluation.task_data import DataError, find_split, read_split

Row = Mapping[str, Any]
"""A problem, in upstream's schema."""

_MBPP_TEST = range(11, 511)  # by its README; 1 to 10 are for prompts, the rest for training
_NUM_TESTS = 3  # those that MBPP's prompt shows, and lm-eval judges by


@dataclass(frozen=True)
class CodeTask:
    """A set of problems, and how they are put.

    version: of lm-eval's task. dataset, config: the hub's; file: upstream's own.
    fields: of a problem, in the hub's order, with their types; those that come first are needed.
    generation: lm-eval's generation_kwargs. is_chat: whether the prompt is a conversation.
    question: what the user says. opening: what the answer begins with. answer: an example's.
    begun: the program up to the tests, of a problem and its completion. tests: what follows.
    """

    name: str
    version: str
    dataset: str
    config: str | None
    file: str
    fields: Mapping[str, type]
    num_needed: int
    generation: Mapping[str, Any]
    is_chat: bool
    num_fewshot: int
    question: Callable[[Row], str]
    opening: Callable[[Row], str]
    answer: Callable[[Row], str]
    begun: Callable[[Row, str], str]
    tests: Callable[[Row], str]

    def program(self, row: Row, completion: str) -> str:
        """What decides whether a completion is right: it runs to its end, or it does not."""
        return f"{self.begun(row, completion)}\n{self.tests(row)}\n"

    def shots(self, asked: int | None) -> int:
        """The number of examples in a prompt, by default lm-eval's.

        Raises:
            UserError: there are not so many.
        """
        there = len(_examples()) if self.num_fewshot else 0
        if asked is not None and not 0 <= asked <= there:
            raise UserError(
                f"{self.name} with {asked} examples in the prompt: it has {there}; give "
                f"--num-fewshot {there} or less, or leave it out"
            )
        return self.num_fewshot if asked is None else asked

    def prompt(
        self,
        row: Row,
        num_fewshot: int,
        *,
        system: str | None = None,
        render: Callable[..., str] | None = None,
    ) -> str:
        """The text that the model goes on with; `render` is lm-eval's `apply_chat_template`."""
        turns = [("system", system)] if system else []
        for example in _examples()[:num_fewshot]:
            said = self.opening(example) + self.answer(example)
            turns += [("user", self.question(example)), ("assistant", said)]
        turns.append(("user", self.question(row)))
        if opening := self.opening(row):
            turns.append(("assistant", opening))
        if render is not None:
            messages = [{"role": role, "content": content} for role, content in turns]
            return render(messages, add_generation_prompt=not opening)
        return "".join(said + "\n\n" * (role == "assistant") for role, said in turns)


def code_task(name: str, *, chat: bool) -> CodeTask:
    """humaneval or mbpp; with `chat` as lm-eval's task for models that were tuned to follow
    instructions, whose name it bears."""
    return (_CHAT if chat else _PLAIN)[name]


def own_task(name: str, *, chat: bool) -> CodeTask:
    """A user's own problems, put as HumanEval's are."""
    return replace(code_task("humaneval", chat=chat), name=name, version="1", dataset=name)


def find_problems(task: CodeTask, folder: Path) -> list[Path]:
    """The files of a task in a folder of data: upstream's own there, or as the hub has them."""
    base = task.name.removesuffix("_instruct")
    for place in (folder, folder / base):
        for name in (task.file, f"{task.file}.gz"):
            if (place / name).is_file():
                return [place / name]
    return find_split(folder, base, task.dataset, task.config, "test")


def read_problems(task: CodeTask, paths: Sequence[Path]) -> list[Row]:
    """Problems from a file; of MBPP the test split alone.

    Raises:
        DataError: a file cannot be read, or a problem is not in upstream's schema.
    """
    return checked(task, read_split(paths), str(paths[0]))


def checked(task: CodeTask, rows: Any, where: str) -> list[Row]:
    """Rows with their fields in the hub's order, by which lm-eval's hashes of documents are made.

    Raises:
        DataError: a problem is not in upstream's schema, or there is none.
    """
    found: list[Row] = []
    for number, row in enumerate(rows, 1):
        for name, kind in list(task.fields.items())[: task.num_needed]:
            value = row.get(name)
            short = isinstance(value, list) and len(value) < _NUM_TESTS
            if not isinstance(value, kind) or short:
                wanted = f"{_NUM_TESTS} tests" if kind is list else f"a {kind.__name__}"
                raise DataError(f"{where}, problem {number}: {name!r} is {value!r}, not {wanted}")
        if not str(row.get("entry_point", "name")).isidentifier():
            raise DataError(f"{where}, problem {number}: 'entry_point' is no name of a function")
        order = [name for name in task.fields if name in row]
        found.append({name: row[name] for name in (*order, *(k for k in row if k not in order))})
    if task.file == "mbpp.jsonl":
        found = [row for row in found if row["task_id"] in _MBPP_TEST]
    if not found:
        raise DataError(f"{where} has none of the problems of {task.name}")
    return found


@functools.cache
def _examples() -> list[Row]:
    """MBPP's three, which come with lm-eval's task too."""
    text = (files("llamita.evaluation") / "mbpp_examples.json").read_text(encoding="utf-8")
    found: list[Row] = json.loads(text)["examples"]
    return found


def _until_fence(completion: str) -> str:
    """The code of an answer that begins inside a block of it. (lm-eval's mbpp_instruct takes the
    first word, most often `def`, for the block's language and leaves it out; this does not.)"""
    return completion.partition("```")[0]


def _three(row: Row) -> str:
    return "\n".join(row["test_list"][:_NUM_TESTS])


def _nothing(row: Row) -> str:
    return ""


_STOPS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]  # arXiv 2107.03374, section 3.2

_HUMANEVAL = CodeTask(
    name="humaneval",
    version="1.0",
    dataset="openai/openai_humaneval",
    config=None,
    file="HumanEval.jsonl",
    fields={
        "task_id": str,
        "prompt": str,
        "canonical_solution": str,
        "test": str,
        "entry_point": str,
    },
    num_needed=5,
    generation={"until": _STOPS, "max_gen_toks": 1024, "do_sample": False},
    is_chat=False,
    num_fewshot=0,
    question=lambda row: str(row["prompt"]),
    opening=_nothing,
    answer=_nothing,
    begun=lambda row, completion: row["prompt"] + completion,
    tests=lambda row: f"{row['test']}\ncheck({row['entry_point']})",
)
_MBPP = CodeTask(
    name="mbpp",
    version="1.0",
    dataset="google-research-datasets/mbpp",
    config="full",
    file="mbpp.jsonl",
    fields={
        "task_id": int,
        "text": str,
        "code": str,
        "test_list": list,
        "test_setup_code": str,
        "challenge_test_list": list,
    },
    num_needed=4,
    generation={"until": ["[DONE]"], "do_sample": False},
    is_chat=False,
    num_fewshot=3,
    question=lambda row: (
        f"You are an expert Python programmer, and here is your task: {row['text']} "
        f"Your code should pass these tests:\n\n{_three(row)}\n[BEGIN]\n"
    ),
    opening=_nothing,
    answer=lambda row: f"{row['code']}\n[DONE]",
    begun=lambda row, completion: completion,
    # Some tests need what is set up (lm-eval leaves it out, so that nobody passes them). It uses
    # the solution's classes.
    tests=lambda row: f"{row.get('test_setup_code') or ''}\n{_three(row)}",
)
_PLAIN = {each.name: each for each in (_HUMANEVAL, _MBPP)}
_CHAT = {
    "humaneval": replace(
        _HUMANEVAL,
        name="humaneval_instruct",
        version="4.0",
        is_chat=True,
        question=lambda row: (
            "Write a solution to the following problem and make sure that it passes the tests:\n"
            f"```python\n{row['prompt']}\n```\n"
        ),
        opening=lambda row: f"Here is the completed function:\n```python\n{row['prompt']}\n",
        begun=lambda row, completion: row["prompt"] + _until_fence(completion),
    ),
    "mbpp": replace(
        _MBPP,
        name="mbpp_instruct",
        is_chat=True,
        generation={"until": [], "max_gen_toks": 256, "do_sample": False},
        question=lambda row: (
            f"You are an expert Python programmer, and here is your task:\n{row['text']}\n"
            f"Your code should pass these tests:\n{_three(row)}"
        ),
        opening=lambda row: "\n```python\n",
        answer=lambda row: f"{row['code']}\n```",
        begun=lambda row, completion: _until_fence(completion),
    ),
}
