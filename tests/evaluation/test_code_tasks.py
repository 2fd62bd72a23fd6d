"""HumanEval and MBPP: prompts and programs as lm-eval's, judged in the sandbox, scored by hand."""

from __future__ import annotations

import ast
import gzip
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import handle_non_serializable, hash_string

from llamita.data.tokenizer import load_tokenizer
from llamita.errors import UserError
from llamita.evaluation import code_tasks, sandbox
from llamita.evaluation.code_problems import code_task, find_problems, read_problems
from llamita.evaluation.code_tasks import CodeRun, Judging, judge, run_code_tasks
from llamita.evaluation.harness import HarnessModel
from llamita.evaluation.intervals import Estimate
from llamita.evaluation.lm_eval_manners import quiet
from llamita.evaluation.own_questions import read_questions
from llamita.evaluation.sandbox import Outcome
from llamita.evaluation.suites import TaskWanted, resolve
from llamita.evaluation.task_data import DataError
from llamita.evaluation.task_loading import Asking
from llamita.model.huggingface import load_model
from tests.evaluation.tiny_models import KINDS, write_tiny_model

TASKS = Path(lm_eval.__file__).parent / "tasks"

# Two of MBPP's kind, by hand: one with what is to be set up, one with Windows' line ends.
MBPP = [
    {
        "text": "Write a function to count the nodes of a tree.",
        "code": "class Node:\n    def __init__(self, kids=()):\n        self.kids = kids\n\n"
        "def count(node):\n    return 1 + sum(count(kid) for kid in node.kids)",
        "task_id": 11,
        "test_setup_code": "root = Node((Node(), Node((Node(),))))",
        "test_list": [
            "assert count(root) == 4",
            "assert count(Node()) == 1",
            "assert count(root.kids[1]) == 2",
        ],
        "challenge_test_list": [],
    },
    {
        "text": "Write a python function to double a number {{x}}.",
        "code": "def double(x):\r\n  return 2 * x",
        "task_id": 510,
        "test_setup_code": "",
        "test_list": ["assert double(1) == 2", "assert double(2) == 4", "assert double(0) == 0"],
        "challenge_test_list": ["assert double(-1) == -2"],
    },
    {
        "text": "Not of the test split.",
        "code": "def f(): pass",
        "task_id": 601,
        "test_setup_code": "",
        "test_list": ["assert not f()"] * 3,
        "challenge_test_list": [],
    },
]


@pytest.fixture
def mbpp(tmp_path: Path) -> Path:
    with gzip.open(tmp_path / "mbpp.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in MBPP)
    return tmp_path


@pytest.fixture(scope="module")
def humaneval(shared_dir: Path) -> list[Mapping[str, Any]]:
    task = code_task("humaneval", chat=False)
    return list(read_problems(task, find_problems(task, shared_dir / "data" / "evals")))


class Writer:
    """A model that writes what it is told, and knows conversations of one form."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.requests: list[Any] = []

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        self.requests += requests
        return [self.texts.pop(0) for _ in requests]

    @staticmethod
    def apply_chat_template(
        messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text = "".join(f"<{each['role']}>{each['content']}" for each in messages)
        return text + "<assistant>" * add_generation_prompt


def task_of_lm_eval(name: str, rows: Sequence[Mapping[str, Any]]) -> ConfigurableTask:
    """lm-eval's task over these rows, without its metric, which would come from the hub."""
    folder = TASKS / name.partition("_")[0]
    config = load_yaml(folder / f"{name}.yaml", resolve_func=False)
    config |= {
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": None,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list([dict(r) for r in rows])},
    }
    if "fewshot_config" in config:
        samples = function_of_lm_eval("mbpp", "list_fewshot_samples")()
        config["fewshot_config"] = {"sampler": "first_n", "samples": samples}
    return ConfigurableTask(config=config)


def function_of_lm_eval(folder: str, name: str) -> Any:
    """A function of a task's utils.py, which cannot be imported without the hub."""
    tree = ast.parse((TASKS / folder / "utils.py").read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.Try)]
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    namespace: dict[str, Any] = {}
    exec("import re\nfrom typing import Union", namespace)
    exec(compile(tree, "utils.py", "exec"), namespace)
    return namespace[name]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_prompts_are_those_of_lm_eval(
    name: str, chat: bool, system: str | None, mbpp: Path, shared_dir: Path
) -> None:
    task = code_task(name, chat=chat)
    folder = mbpp if name == "mbpp" else shared_dir / "data" / "evals"
    rows = read_problems(task, find_problems(task, folder))
    theirs = task_of_lm_eval(task.name, rows)
    assert len(rows) == {"humaneval": 164, "mbpp": 2}[name]
    assert theirs.config.num_fewshot == task.shots(None)
    assert task.version == str(theirs.VERSION)
    assert task.dataset == theirs.config.dataset_path
    assert task.config == theirs.config.dataset_name
    for setting, value in theirs.config.generation_kwargs.items():
        assert task.generation[setting] == value, setting
    with quiet():  # else lm-eval compiles its templates anew for each row
        for row in rows if system is None and not chat else rows[::20]:
            doc = dict(row)
            asked = theirs.fewshot_context(
                doc,
                task.shots(None),
                system_instruction=system,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                chat_template=Writer.apply_chat_template if chat else None,
                gen_prefix=theirs.resolve_field(doc, theirs.config.gen_prefix),
            )
            render = Writer.apply_chat_template if chat else None
            assert task.prompt(row, task.shots(None), system=system, render=render) == asked
            if name == "humaneval":
                assert task.tests(row) == theirs.doc_to_target(doc)
            else:
                assert task.tests(row).endswith(theirs.doc_to_target(doc))


@pytest.mark.parametrize(
    "text",
    [
        "    return 1\n",
        "    return 1\n```\nThat is it.",
        "```",
        "",
        "a\n```python\nb\n```",
        "\n\n```",
    ],
)
def test_completions_are_read_as_lm_eval_reads_them(text: str) -> None:
    row = {"prompt": "def f():\n"}
    for chat, function in ((False, "build_predictions"), (True, "build_predictions_instruct")):
        theirs = function_of_lm_eval("humaneval", function)([[text]], [row])
        assert [[code_task("humaneval", chat=chat).begun(row, text)]] == theirs
    assert code_task("mbpp", chat=False).begun(row, text) == text


def test_every_canonical_solution_passes(humaneval: list[Mapping[str, Any]]) -> None:
    task = code_task("humaneval", chat=False)
    programs = [task.program(row, row["canonical_solution"]) for row in humaneval]
    outcomes = judge(programs, Judging(seconds=60))
    assert len(outcomes) == 164
    assert [each for each in outcomes if not each.passed] == []


def test_wrong_solutions_fail(humaneval: list[Mapping[str, Any]]) -> None:
    """Each for another reason; the last takes the tests' place, too early."""
    task = code_task("humaneval", chat=False)
    wrong = {
        "    return None\n": "failed",
        "    return (\n": "failed",
        "    while True: pass\n": "timeout",
        "    x = [0] * 10**12\n": "memory",
        "    import os; os._exit(0)\n": "failed",
        "    raise SystemExit(0)\n": "failed",
        "    pass\nimport sys\nsys.exit(0)\n": "failed",
        "    pass\ndef check(candidate): pass\n": "failed",
    }
    programs = [task.program(humaneval[0], each) for each in wrong]
    outcomes = judge(programs, Judging(seconds=1))
    assert [each.why for each in outcomes] == list(wrong.values())


def wanted(name: str, num_fewshot: int | None = None) -> list[TaskWanted]:
    return [TaskWanted(name, "code", num_fewshot=num_fewshot)]


def test_humaneval_from_prompt_to_score(
    humaneval: list[Mapping[str, Any]], shared_dir: Path
) -> None:
    texts = [row["canonical_solution"] for row in humaneval[:3]] + ["    while True: pass\n"]
    writer = Writer(texts)
    told: list[tuple[str, int, int]] = []
    run = run_code_tasks(
        writer,
        wanted("humaneval"),
        Asking(limit=4, data=shared_dir / "data" / "evals", hub=False),
        Judging(seconds=1),
        progress=lambda *each: told.append(each),
    )
    (score,) = run.scores
    assert run.missing == []
    assert run.counts == {"humaneval: programs stopped (timeout)": 1}
    assert (score.task, score.metric, score.num_fewshot) == ("humaneval", "pass@1", 0)
    assert score.values == (1.0, 1.0, 1.0, 0.0)
    assert score.available == 164
    assert score.chance is None
    assert isinstance(score.estimate, Estimate)
    assert score.estimate.value == 0.75
    assert told[-1] == ("humaneval", 4, 4)
    arguments = [each.args for each in writer.requests]
    assert [each[0] for each in arguments] == [row["prompt"] for row in humaneval[:4]]
    assert arguments[0][1]["max_gen_toks"] == 1024
    assert arguments[0][1]["do_sample"] is False
    for sample, one in zip(score.samples, score.ids, strict=True):
        told_doc = json.dumps(
            sample["doc"], indent=2, default=handle_non_serializable, ensure_ascii=False
        )
        assert one == hash_string(told_doc)
        assert list(sample["doc"])[:5] == [
            "task_id", "prompt", "canonical_solution", "test", "entry_point",
        ]  # fmt: skip
    assert [each["outcomes"][0].partition(":")[0] for each in score.samples] == (
        ["passed"] * 3 + ["timeout"]
    )


def test_mbpp_from_prompt_to_score(mbpp: Path) -> None:
    """As the paper has it, with what is set up for the tests; a right one of two."""
    right = MBPP[0]["code"]
    writer = Writer([f"{right}\n", "def double(x): return x"])
    run = run_code_tasks(writer, wanted("mbpp"), Asking(data=mbpp, hub=False))
    (score,) = run.scores
    assert score.values == (1.0, 0.0)
    assert (score.num_fewshot, score.available) == (3, 2)
    assert "line" in score.samples[1]["outcomes"][0]
    prompt = writer.requests[0].args[0]
    assert prompt.count("[BEGIN]") == 4
    assert prompt.count("[DONE]") == 3
    writer = Writer([right, right])
    run_code_tasks(writer, wanted("mbpp", 1), Asking(data=mbpp, hub=False))
    assert writer.requests[0].args[0].count("[BEGIN]") == 2


def test_several_samples(mbpp: Path) -> None:
    """pass@k over the C(n, k) ways to draw k of n, by hand: 1 of 4 right, and 2 of 4."""
    right, double = MBPP[0]["code"], MBPP[1]["code"]
    writer = Writer([right, "", "x", "1 / 0", double, double, "", "def double(x): return 0"])
    run = run_code_tasks(
        writer,
        wanted("mbpp"),
        Asking(data=mbpp, hub=False),
        Judging(samples=4, ks=(1, 2, 4), temperature=0.8),
    )
    one, two, four = run.scores
    assert [each.metric for each in run.scores] == ["pass@1", "pass@2", "pass@4"]
    assert one.values == pytest.approx((1 / 4, 2 / 4))
    assert two.values == pytest.approx((1 - math.comb(3, 2) / 6, 1 - math.comb(2, 2) / 6))
    assert four.values == (1.0, 1.0)
    # The mean of two: its standard error is half their distance.
    assert one.estimate.stderr == pytest.approx(abs(1 / 4 - 2 / 4) / 2)
    kwargs = writer.requests[0].args[1]
    assert (kwargs["do_sample"], kwargs["temperature"], kwargs["top_p"]) == (True, 0.8, 0.95)
    assert [each.args[0] for each in writer.requests[:4]] == [writer.requests[0].args[0]] * 4
    assert len(one.samples[0]["resps"][0]) == 4


def test_chat_asks_the_tasks_for_instructed_models(mbpp: Path) -> None:
    answer = f"{MBPP[0]['code']}\n```\nIt counts recursively."
    run = run_code_tasks(
        Writer([answer, "no code"]), wanted("mbpp"), Asking(data=mbpp, hub=False, chat=True)
    )
    (score,) = run.scores
    assert score.task == "mbpp_instruct"
    assert score.values == (1.0, 0.0)


def test_own_problems(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        json.dumps(
            {
                "prompt": "def triple(x):\n",
                "test": "def check(candidate):\n    assert candidate(2) == 6\n",
                "entry_point": "triple",
            }
        )
    )
    found = resolve([str(path)])
    assert read_questions(path).kind == "code"
    run = run_code_tasks(Writer(["    return 3 * x\n"]), found, Asking(hub=False))
    (score,) = run.scores
    assert (score.task, score.values, score.available) == ("mine.jsonl", (1.0,), 1)


def test_equal_programs_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(program: str, **settings: Any) -> Outcome:
        ran.append(program)
        return Outcome("passed" if program == "a" else "failed")

    monkeypatch.setattr(code_tasks, "run_python", run)
    assert [each.passed for each in judge(["a", "b", "a"], Judging())] == [True, False, True]
    assert sorted(ran) == ["a", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_model(kind: str, shared_dir: Path, tmp_path: Path) -> None:
    """A random one writes nothing that is right; what it was asked is what it read."""
    directory = write_tiny_model(tmp_path, kind, longest=256)
    tokenizer = load_tokenizer(directory)
    lm = HarnessModel(load_model(directory), tokenizer, name="tiny")
    run = run_code_tasks(
        lm,
        wanted("humaneval"),
        Asking(
            limit=3,
            data=shared_dir / "data" / "evals",
            hub=False,
            gen_kwargs={"max_gen_toks": 8},
        ),
        Judging(samples=2),
    )
    (score,) = run.scores
    assert score.values == (0.0, 0.0, 0.0)
    assert all(len(each["resps"][0]) == 2 for each in score.samples)
    assert score.samples[0]["arguments"][0][1]["temperature"] == 0.2


# -- what cannot be had, and what makes no sense ---------------------------------------------------


def missing(run: CodeRun) -> str:
    assert run.scores == []
    (only,) = run.missing
    return only.why


def test_missing_data_is_said(tmp_path: Path) -> None:
    run = run_code_tasks(Writer([]), wanted("humaneval"), Asking(hub=False))
    assert "no folder of data is given (HumanEval.jsonl" in missing(run)
    run = run_code_tasks(Writer([]), wanted("mbpp"), Asking(data=tmp_path, hub=False))
    assert f"it is not in {tmp_path}" in missing(run)


def test_found_as_the_hub_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "google-research-datasets" / "mbpp" / "full"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(MBPP[:2]).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    task = code_task("mbpp", chat=False)
    rows = read_problems(task, find_problems(task, tmp_path))
    assert list(rows[0]) == list(task.fields)
    assert rows[1]["code"] == MBPP[1]["code"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"test": None}, "problem 1: 'test' is None, not a str"),
        ({"prompt": 3}, "problem 1: 'prompt' is 3"),
        ({"entry_point": "f(); import os"}, "'entry_point' is no name"),
    ],
)
def test_wrong_problems_are_named(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    row = {"task_id": "x/0", "prompt": "p", "canonical_solution": "c", "test": "t"}
    row |= {"entry_point": "f", **change}
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(row))
    run = run_code_tasks(Writer([]), wanted("humaneval"), Asking(data=tmp_path, hub=False))
    assert why in missing(run)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"test_list": ["assert 1"]}, "'test_list' is ['assert 1'], not 3 tests"),
        ({"task_id": 700}, "none of the problems of mbpp"),
    ],
)
def test_wrong_problems_of_mbpp(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "mbpp.jsonl").write_text(json.dumps({**MBPP[0], **change}))
    task = code_task("mbpp", chat=False)
    with pytest.raises(DataError) as caught:
        read_problems(task, find_problems(task, tmp_path))
    assert why in str(caught.value)


def test_settings_that_make_no_sense(mbpp: Path) -> None:
    with pytest.raises(UserError, match="pass@10 needs 10 samples"):
        Judging(samples=5, ks=(1, 10))
    with pytest.raises(UserError, match="samples 0"):
        Judging(samples=0)
    with pytest.raises(UserError, match="would all be the same"):
        Judging(samples=5, temperature=0)
    with pytest.raises(UserError, match="mbpp with 5 examples"):
        run_code_tasks(Writer([]), wanted("mbpp", 5), Asking(data=mbpp, hub=False))
    with pytest.raises(UserError, match="humaneval with 3 examples"):
        run_code_tasks(Writer([]), wanted("humaneval", 3), Asking(data=mbpp, hub=False))


def test_a_machine_that_is_not_safe(mbpp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the model writes anything; the rest of a suite runs."""
    monkeypatch.setattr(sys, "platform", "darwin")
    sandbox._best.cache_clear()
    try:
        run = run_code_tasks(Writer([]), wanted("mbpp"), Asking(data=mbpp, hub=False))
        assert "--unsafe-code" in missing(run)
        run = run_code_tasks(
            Writer([MBPP[0]["code"], ""]),
            wanted("mbpp"),
            Asking(data=mbpp, hub=False),
            replace(Judging(), unsafe=True),
        )
        (score,) = run.scores
        assert score.values == (1.0, 0.0)
        assert "NOT SAFE" in "".join(score.config["sandbox"])
    finally:
        sandbox._best.cache_clear()
