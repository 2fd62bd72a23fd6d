"""Suites and names: what is measured is what the papers' tables name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamita.errors import UserError
from llamita.evaluation.suites import load_suite, resolve, suite_names

# (name, first metric, shots) as each paper's table has them; metrics as lm-eval has them per task.
TABLES = {
    "tinyllama": [
        ("hellaswag", "acc_norm", 0),
        ("openbookqa", "acc_norm", 0),
        ("winogrande", "acc", 0),
        ("arc_challenge", "acc_norm", 0),
        ("arc_easy", "acc_norm", 0),
        ("boolq", "acc", 0),
        ("piqa", "acc_norm", 0),
    ],
    "instructeval": [
        ("mmlu", "acc", 5),
        ("bbh_fewshot", "exact_match,stripped", 3),
        ("humaneval", "pass@1", 0),
        ("drop", "em", 3),
    ],
    "minicpm": [
        ("ceval-valid", "acc", 5),
        ("cmmlu", "acc", 5),
        ("mmlu", "acc", 5),
        ("gsm8k", "exact_match,strict-match", 5),
        ("hendrycks_math", "exact_match", 4),
        ("humaneval", "pass@1", 0),
        ("mbpp", "pass@1", 3),
        ("bbh_cot_fewshot", "exact_match,get-answer", 3),
        ("arc_easy", "acc_norm", 0),
        ("arc_challenge", "acc_norm", 0),
        ("hellaswag", "acc_norm", 0),
    ],
}


@pytest.mark.parametrize("name", TABLES)
def test_suite_is_the_papers(name: str) -> None:
    found = [(each.name, each.metrics[0], each.num_fewshot) for each in load_suite(name).tasks]
    assert found == TABLES[name]


def test_every_suite_is_checked_here() -> None:
    assert suite_names() == sorted(TABLES)


def test_what_departs_from_lm_eval_says_so() -> None:
    for name in suite_names():
        for each in load_suite(name).tasks:
            assert bool(each.overrides) == bool(each.note), each.name


def test_suites_share_tasks() -> None:
    found = resolve(["tinyllama", "minicpm"])
    assert len(found) == 7 + 11 - 3
    assert [each.suite for each in found if each.name == "hellaswag"] == ["tinyllama"]
    kinds = {each.name: each.kind for each in found}
    assert kinds["humaneval"] == kinds["mbpp"] == "code"
    assert kinds["mmlu"] == "lm_eval"


def test_a_bare_name_leaves_how_to_the_suite() -> None:
    [drop] = [each for each in resolve(["drop", "instructeval"]) if each.name == "drop"]
    assert (drop.num_fewshot, drop.suite) == (3, "instructeval")
    assert drop.overrides
    assert drop.metrics == ()  # by its name, all of them
    [alone] = resolve(["drop"])
    assert (alone.num_fewshot, alone.overrides) == (None, {})


def test_num_fewshot_is_for_all() -> None:
    assert {each.num_fewshot for each in resolve(["tinyllama", "drop"], num_fewshot=2)} == {2}


def test_files_are_told_by_their_names(tmp_path: Path) -> None:
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text('{"question": "1+1?", "answer": "2"}\n')
    code = tmp_path / "code.json"
    code.write_text('[{"prompt": "def f():\\n", "test": "def check(f): 1", "entry_point": "f"}]')
    task = tmp_path / "mine.yaml"
    task.write_text("task: mine\n")
    found = resolve([str(quiz), str(code), str(task)])
    assert [each.kind for each in found] == ["questions", "code", "lm_eval"]
    assert [each.name for each in found[:2]] == ["quiz.jsonl", "code.json"]
    assert found[1].questions is not None
    assert found[1].questions.items[0]["entry_point"] == "f"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no task is named"),
        (["no/such.yaml"], "there is no file"),
        (["some/thing"], "is no file of tasks"),
    ],
)
def test_wrong_names(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(names)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "quiz.jsonl")
        paths[-1].write_text('{"question": "1+1?", "answer": "2"}\n')
    with pytest.raises(UserError, match="wanted in two ways"):
        resolve([str(each) for each in paths])


def test_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'tinyllama'"):
        load_suite("tinylama")
