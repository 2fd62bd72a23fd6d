"""lm-eval's tasks on small files in upstream's schema: the same requests and scores as lm-eval."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.evaluation.scores import Evaluation, TaskScore
from llamita.evaluation.suites import resolve, suite_names
from tests.evaluation.lm_eval_helpers import FIXTURES, StubLM, lay_out, leaves_of

from llamita.evaluation.lm_eval_tasks import run_tasks  # isort: skip  (lm_eval is there)

# Tasks in each group, counted in the papers: MMLU 57 subjects, C-Eval 52, CMMLU 67, MATH 7, BBH 27
# (23 tasks, two of which come in three sizes).
SIZES = {
    "mmlu": 57,
    "ceval-valid": 52,
    "cmmlu": 67,
    "hendrycks_math": 7,
    "bbh_fewshot": 27,
    "bbh_cot_fewshot": 27,
}
WANTED = {each.name: each for each in resolve(suite_names()) if each.kind == "lm_eval"}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("datasets"), leaves_of(*suite_names()))


def run(*names: Any, lm: Any = None, **how: Any) -> tuple[dict[str, TaskScore], dict[str, str]]:
    """Scores and what is missing, by task and metric; the hub is never asked."""
    shots = how.pop("num_fewshot", None)
    wanted = resolve([str(each) for each in names], num_fewshot=shots)
    scores, missing = run_tasks(lm or StubLM(), wanted, **{"hub": False, **how})
    return (
        {f"{each.task} {each.metric}": each for each in scores},
        {each.task: each.why for each in missing},
    )


# -- every task of every suite ---------------------------------------------------------------------


@pytest.mark.parametrize("name", WANTED)
def test_every_task_of_every_suite_runs(name: str, data: Path) -> None:
    wanted = WANTED[name]
    lm = StubLM()
    scores, missing = run_tasks(lm, [wanted], data=data, hub=False)
    assert not missing
    assert len(scores) == SIZES.get(name, 1) * len(wanted.metrics)
    for each in scores:
        assert each.metric in wanted.metrics
        assert each.num_fewshot == wanted.num_fewshot
        assert each.group == (name if name in SIZES else None)
        assert len(each.values) == len(set(each.ids)) == len(each.samples) == each.available
        assert len(each.values) in (2, 3)
        assert (each.chance is None) == (not each.metric.startswith("acc"))
        assert each.harness.startswith("lm-evaluation-harness 0.")
        assert each.version.endswith("+llamita") == bool(wanted.overrides)
        assert each.config["task"] == each.task
    assert len(lm.calls) == 1  # all of a group in one batch
    json.dumps(scores[0].config, default=str)


def test_groups_are_scores_of_their_own(data: Path) -> None:
    scores, _ = run_tasks(StubLM(), [WANTED["hendrycks_math"]], data=data, hub=False)
    whole = Evaluation("m", "", None, tuple(scores), (), {}, {}, "2026-01-01").groups
    assert [(each.task, len(each.values)) for each in whole] == [("hendrycks_math", 14)]


# -- requests, by hand -----------------------------------------------------------------------------

HEADER = "The following are multiple choice questions (with answers) about anatomy.\n\n"
SHOTS = (
    "What is 2 plus 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: B\n\n"
    "Which is a colour?\nA. red\nB. seven\nC. loud\nD. heavy\nAnswer: A\n\n"
)


@pytest.mark.parametrize(
    ("name", "row", "contexts", "targets"),
    [
        (
            "hellaswag",
            0,
            ["Washing dishes: A boy stands at a sink. He"] * 4,
            [
                "rinses a plate and puts it on the rack.",
                "rides the plate down a hill.",
                "eats the sink.",
                " paints the wall with soup.",  # [laughs] goes, the blank after it stays
            ],
        ),
        (
            "hellaswag",
            1,
            ["How to water a plant: How to water a plant. Feel the soil."] * 4,
            [
                "Burn the pot.",
                "Sell the leaves.",
                "If it is dry, pour water slowly.",
                "Call the plant.",
            ],
        ),
        (
            "winogrande",
            1,
            ["Ann thanked Beth because Ann", "Ann thanked Beth because Beth"],
            ["had helped her."] * 2,
        ),
        (
            "boolq",
            1,
            ["Bees are flying insects.\nQuestion: can bees fly?\nAnswer:"] * 2,
            ["no", "yes"],
        ),
        (
            "arc_challenge",
            1,
            ["Question: What does a thermometer measure?\nAnswer:"] * 3,
            ["mass", "length", "temperature"],
        ),
        (
            "mmlu_anatomy",
            1,
            [
                "The following are multiple choice questions (with answers) about anatomy.\n\n"
                "What is 2 plus 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: B\n\n"
                "Which is a colour?\nA. red\nB. seven\nC. loud\nD. heavy\nAnswer: A\n\n"
                "Which planet is nearest to the sun?\n"
                "A. Venus\nB. Earth\nC. Mars\nD. Mercury\nAnswer:"
            ]
            * 4,
            ["A", "B", "C", "D"],
        ),
    ],
)
def test_requests(name: str, row: int, contexts: list[str], targets: list[str], data: Path) -> None:
    shots = 2 if name == "mmlu_anatomy" else 0
    found, _ = run(name, data=data, num_fewshot=shots)
    asked = found[f"{name} acc"].samples[row]["arguments"]
    assert asked == [(one, f" {two}") for one, two in zip(contexts, targets, strict=True)]


def test_drop_shows_answers_in_its_examples(data: Path) -> None:
    scores, _ = run_tasks(StubLM([" 3", " Jones"]), [WANTED["drop"]], data=data, hub=False)
    [(prompt, how)] = scores[0].samples[0]["arguments"]
    answers = {
        "begin?": "3 May 1901",
        "fall?": "Monday, Friday",
        "were there?": "18",
        "hall?": "40",
    }
    *shown, asked = prompt.split("\n\n")
    assert len(shown) == 3
    assert all(any(each.endswith(f"{q} {a}") for q, a in answers.items()) for each in shown)
    assert asked.endswith("How many goals did the Bears score?")
    assert how["until"] == ["\n"]
    # F1 of one name of two: the alignment gives (1 + 0) / 2.
    assert {each.metric: each.values for each in scores} == {"em": (1.0, 0.0), "f1": (1.0, 0.5)}


@pytest.mark.parametrize(
    ("group", "subject", "texts"),
    [
        ("gsm8k", "gsm8k", [" 12 - 2 = 10.\n#### 10", " That is $1,200.\n#### 1,200"]),
        ("hendrycks_math", "hendrycks_math_algebra", [" $\\frac12$", " $9$"]),
        # lm-eval's own comparison calls " True" wrong.
        ("bbh_fewshot", "bbh_fewshot_boolean_expressions", [" False", " True"]),
        (
            "bbh_cot_fewshot",
            "bbh_cot_fewshot_boolean_expressions",
            ["So the answer is False.", "So the answer is True."],
        ),
    ],
)
def test_right_texts_are_right(group: str, subject: str, texts: list[str], data: Path) -> None:
    wanted = replace(WANTED[group], name=subject)
    scores, missing = run_tasks(StubLM(texts), [wanted], data=data, hub=False)
    assert not missing
    assert [each.values for each in scores] == [(1.0, 1.0)] * len(wanted.metrics)


def test_chance_is_of_the_choices_there_are(data: Path) -> None:
    found, _ = run("tinyllama", data=data)
    assert found["arc_challenge acc_norm"].chance == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert found["arc_easy acc_norm"].chance == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert found["boolq acc"].chance == found["winogrande acc"].chance == 0.5


# -- lm-eval itself --------------------------------------------------------------------------------


@pytest.fixture
def served(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets.load_dataset`, as lm-eval calls it, gives the same documents."""
    import datasets

    def local(path: str, name: str | None = None, **_: Any) -> Any:
        folder = data / path.rpartition("/")[2] / (name or "")
        folder = folder if folder.is_dir() else folder.parent
        splits = {
            each.stem: datasets.Dataset.from_list(
                [json.loads(line) for line in each.read_text("utf-8").splitlines()]
            )
            for each in folder.glob("*.jsonl")
        }
        # lm-eval opens the split of examples though none is shown.
        return {"train": next(iter(splits.values())), **splits}

    monkeypatch.setattr(datasets, "load_dataset", local)


def as_lm_eval(names: list[str], folders: list[str], **how: Any) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's own samples of tasks, by task."""
    import lm_eval.tasks
    from lm_eval.evaluator import simple_evaluate

    root = Path(lm_eval.tasks.__file__).parent
    found = simple_evaluate(
        StubLM(),
        tasks=names,
        task_manager=lm_eval.tasks.TaskManager(
            include_defaults=False, include_path=[root / each for each in folders]
        ),
        bootstrap_iters=0,
        **how,
    )
    assert found is not None
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    return samples


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (["hellaswag", "winogrande", "arc_easy", "boolq", "openbookqa"], {}),
        (
            [
                "mmlu_anatomy",
                "cmmlu_arts",
                "ceval-valid_law",
                "gsm8k",
                "hendrycks_math_geometry",
                "bbh_cot_fewshot_web_of_lies",
                "drop",
            ],
            {"num_fewshot": 3},
        ),
        (["gsm8k", "mmlu_anatomy"], {"num_fewshot": 2, "chat": True, "system": "Be brief."}),
        (["hellaswag"], {"limit": 2}),
    ],
)
@pytest.mark.usefixtures("served")
def test_requests_and_scores_are_lm_evals(
    names: list[str], how: dict[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # asks pip and git
    folders = ["hellaswag", "winogrande", "arc", "super_glue/boolq", "openbookqa", "mmlu/default"]
    folders += ["cmmlu", "ceval", "gsm8k", "hendrycks_math", "bbh/cot_fewshot", "drop"]
    theirs = {"apply_chat_template": how["chat"]} if "chat" in how else {}
    if "system" in how:
        theirs |= {"system_instruction": how["system"], "fewshot_as_multiturn": True}
    theirs |= {key: value for key, value in how.items() if key in ("limit", "num_fewshot")}
    expected = as_lm_eval(names, folders, **theirs)
    ours, missing = run(*names, data=data, **how)
    assert not missing
    compared = 0
    for score in ours.values():
        metric, _, name = score.metric.partition(",")
        rows = [each for each in expected[score.task] if each["filter"] == (name or "none")]
        assert score.ids == tuple(each["doc_hash"] for each in rows)
        assert score.values == tuple(each[metric] for each in rows)
        for sample, row in zip(score.samples, rows, strict=True):
            # `item` is ours: what a leak would hold.
            theirs_alone = {key: value for key, value in sample.items() if key != "item"}
            assert {key: row[key] for key in theirs_alone} == theirs_alone
            compared += 1
    assert compared >= 2 * len(names)


def test_what_a_leak_would_hold(data: Path) -> None:
    """Question and right answer, without the examples before them; of WinoGrande, whose choices
    are beginnings, the sentence with the right one."""
    found = [run("hellaswag", "winogrande", data=data), run("gsm8k", data=data, num_fewshot=2)]
    held = {each.task: each.samples[0] for scores, _ in found for each in scores.values()}
    doc = held["hellaswag"]["doc"]
    assert held["hellaswag"]["item"] == f"{doc['query']} {doc['choices'][doc['gold']]}"
    doc = held["winogrande"]["doc"]
    right = doc["option1"] if doc["answer"] == "1" else doc["option2"]
    assert held["winogrande"]["item"] == " ".join(doc["sentence"].replace("_", right).split())
    doc = held["gsm8k"]["doc"]
    assert held["gsm8k"]["item"] == f"Question: {doc['question']}\nAnswer: {doc['answer']}"


@pytest.mark.usefixtures("served")
def test_perplexities_are_lm_evals(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a task of documents, by lm-eval's aggregation."""
    from lm_eval.evaluator import simple_evaluate

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    path = task_file(
        tmp_path,
        task="pages",
        dataset_path="x/piqa",
        output_type="loglikelihood_rolling",
        validation_split="validation",
        doc_to_text="",
        doc_to_target="goal",
        doc_to_choice=None,
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    theirs = simple_evaluate(StubLM(), tasks=[str(path)], task_manager=empty(), bootstrap_iters=0)
    assert theirs is not None
    ours, missing = run(path, data=data)
    assert not missing
    for metric in ("word_perplexity", "bits_per_byte"):
        score = ours[f"pages {metric}"]
        assert score.estimate.value == pytest.approx(theirs["results"]["pages"][f"{metric},none"])
        assert not score.higher_is_better


def empty() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)


@pytest.mark.slow
def test_a_part_of_the_index_is_enough() -> None:
    """Tasks of every suite, found in their own folders, are the ones lm-eval finds in all."""
    from lm_eval.tasks import TaskManager

    everything = TaskManager().task_index
    for leaf in leaves_of(*suite_names()):
        assert leaf.config == everything[leaf.name].cfg, leaf.name


# -- what is missing -------------------------------------------------------------------------------


def test_offline_without_data_says_so_task_by_task(data: Path, tmp_path: Path) -> None:
    lm = StubLM()
    lay_out(tmp_path, leaves_of("piqa"))
    found, missing = run("tinyllama", "mmlu", lm=lm, data=tmp_path)
    assert set(found) == {"piqa acc_norm"}
    assert len(lm.asked) == 4  # the rest ran, and nothing of what is missing
    assert set(missing) == {"mmlu"} | {each.name for each in resolve(["tinyllama"])} - {"piqa"}
    assert "openbookqa (main)" in missing["openbookqa"]
    assert f"no test.jsonl or test.parquet in {tmp_path / 'openbookqa'}" in missing["openbookqa"]
    assert "the hub is not asked" in missing["openbookqa"]
    assert "all 57 tasks" in missing["mmlu"]


def test_a_group_in_part_is_no_group(data: Path, tmp_path: Path) -> None:
    leaves = leaves_of("hendrycks_math")
    lay_out(tmp_path, leaves[:5])
    found, missing = run("hendrycks_math", data=tmp_path)
    assert len(found) == 5
    assert {each.group for each in found.values()} == {None}
    assert missing["hendrycks_math (exact_match)"] == "only 5 of its 7 tasks were scored"
    assert len(missing) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("not json\n", r"validation\.jsonl:3 is no JSON"),
        ("[1]\n", "is no JSON object but list"),
        ({"label": 2}, "its item 2 has the answer 2, which is none of its 2 choices"),
        ({"label": -1}, "has the answer -1"),
        ({"sol1": ""}, "its item 2 has a choice that is empty"),
        ({"goal": 3}, "cannot be read"),
        (None, "has no document in it"),
    ],
)
def test_wrong_data_are_no_score(tmp_path: Path, change: Any, said: str) -> None:
    rows = (FIXTURES / "piqa" / "validation.jsonl").read_text("utf-8")
    if isinstance(change, dict):
        row = {"goal": "Open a door", "sol1": "Pull.", "sol2": "Sing.", "label": 0, **change}
        rows += json.dumps(row) + "\n"
    else:
        rows = "" if change is None else rows + change
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "validation.jsonl").write_text(rows, "utf-8")
    lay_out(tmp_path, leaves_of("boolq"))
    found, missing = run("piqa", "boolq", data=tmp_path)
    assert set(found) == {"boolq acc"}
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(missing["piqa"])


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "validation.jsonl").write_text('{"goal": "x", "sol1": "y", "label": 0}\n')
    _, missing = run("piqa", data=tmp_path)
    assert "its documents have the fields goal, sol1, label" in missing["piqa"]


def test_examples_need_their_split(data: Path, tmp_path: Path) -> None:
    lay_out(tmp_path, leaves_of("gsm8k"))
    (tmp_path / "gsm8k" / "main" / "train.jsonl").unlink()
    found, missing = run("gsm8k", data=tmp_path)
    assert "its examples need the split 'train'" in missing["gsm8k"]
    found, missing = run("gsm8k", data=tmp_path, num_fewshot=0)  # none, no need
    assert not missing
    assert {each.num_fewshot for each in found.values()} == {0}
    _, missing = run("gsm8k", data=data, num_fewshot=50)
    assert "its requests cannot be built" in missing["gsm8k"]


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    modes = []

    def unreachable(path: str, **_: Any) -> Any:
        modes.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    found, missing = run("tinyllama", hub=True)
    assert not found
    assert len(missing) == 7
    assert "no route to the hub" in missing["piqa"]
    assert modes == [False] + [True] * 6
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_is_asked(data: Path, served: None) -> None:
    found, missing = run("piqa", hub=True)
    assert not missing
    local, _ = run("piqa", data=data)
    assert found["piqa acc_norm"].values == local["piqa acc_norm"].values
    assert found["piqa acc_norm"].ids == local["piqa acc_norm"].ids


# -- data from a hub's clone -----------------------------------------------------------------------


def test_a_clone_of_a_hubs_repository(data: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        json.loads(each) for each in (FIXTURES / "piqa/validation.jsonl").read_text().splitlines()
    ]
    folder = tmp_path / "baber" / "piqa" / "data"
    folder.mkdir(parents=True)
    for number, row in enumerate(rows):
        name = f"validation-{number:05}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / name)
    cloned, missing = run("piqa", data=tmp_path)
    assert not missing
    local, _ = run("piqa", data=data)
    assert cloned["piqa acc"].ids == local["piqa acc"].ids
    assert cloned["piqa acc"].values == local["piqa acc"].values
    (folder / "validation-00001-of-00002.parquet").unlink()
    _, missing = run("piqa", data=tmp_path)
    assert "has 1 of the 2 parts" in missing["piqa"]


# -- tasks and questions of the user's -------------------------------------------------------------


def task_file(tmp_path: Path, **fields: Any) -> Path:
    import yaml

    config = {
        "task": "doors",
        "dataset_path": "someone/piqa",
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{goal}}",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
        **fields,
    }
    path = tmp_path / f"{config['task']}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("task", "has no 'task', its name"),
        ("dataset_path", "has no 'dataset_path'"),
        ("validation_split", "has no 'test_split'"),
        ("doc_to_text", "has no 'doc_to_text'"),
        ("doc_to_target", "has no 'doc_to_target'"),
        ("doc_to_choice", "has no 'doc_to_choice'"),
    ],
)
def test_a_task_file_that_lacks_a_field(tmp_path: Path, field: str, said: str) -> None:
    path = task_file(tmp_path, **{"task": "doors", field: None})
    with pytest.raises(UserError, match=said):
        run(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "cannot be read as a task"),
        ("task: [", "cannot be read as a task"),
        ("include: other.yaml\ntask: x\n", "includes .*other.yaml"),
        ("task: x\noutput_type: multiple_choices\n", "Did you mean 'multiple_choice'"),
        ("dataset_path: x\n", "has no 'task'"),
    ],
)
def test_a_broken_task_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        run(tmp_path / "mine.yaml")


def test_a_task_file_beside_lm_evals_tasks(tmp_path: Path, data: Path) -> None:
    metrics = [{"metric": "acc"}, {"metric": "f1"}]
    path = task_file(tmp_path, metric_list=metrics)
    found, missing = run(path, "piqa", data=data)
    assert {"doors acc", "piqa acc", "piqa acc_norm"} == set(found)
    # F1 is no mean over items: no number stands in for it.
    assert "it is f1_score over all items" in missing["doors (f1)"]
    assert found["doors acc"].samples[0]["arguments"][0] == (
        "Keep soup warm.",
        " Put a lid on the pot.",
    )


def test_a_task_file_with_data_of_its_own(tmp_path: Path) -> None:
    files = {"validation": str(FIXTURES / "piqa" / "validation.jsonl")}
    how = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path)},
    }
    found, missing = run(task_file(tmp_path, **how))
    assert not missing
    assert len(found["doors acc"].values) == 2
    files["validation"] = "https://example.org/validation.jsonl"
    _, missing = run(task_file(tmp_path, **how))
    assert "the hub is not asked" in missing["doors"]


def test_a_group_file_of_tasks_beside_it(tmp_path: Path, data: Path) -> None:
    task_file(tmp_path)
    task_file(tmp_path, task="locks", doc_to_text="How? {{goal}}")
    group = tmp_path / "_house.yaml"
    group.write_text(
        "group: house\ntask: [doors, {task: locks, doc_to_text: 'Why? {{goal}}'},\n"
        "  {task: keys, dataset_path: x/piqa, output_type: multiple_choice, doc_to_target: label,\n"
        "   validation_split: validation, doc_to_text: goal, doc_to_choice: '{{[sol2, sol1]}}'}]\n"
        "aggregate_metric_list: [{metric: acc}]\n"
    )
    found, missing = run(group, data=data)
    assert not missing
    assert {each.group for each in found.values() if each.metric == "acc"} == {"house"}
    assert found["locks acc"].samples[0]["arguments"][0][0] == "Why? Keep soup warm."
    # Written out in the group, and named after it, as in lm-eval.
    assert found["house::keys acc"].samples[0]["arguments"][0][1] == " Put the pot into snow."


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"unsafe_code": True}, "outside a sandbox"),
        (
            {"metric_list": [{"metric": "bleurt", "hf_evaluate": True}]},
            "would have to come from the hub",
        ),
        ({"metric_list": [{"metric": "no_such_metric"}]}, "would have to come from the hub"),
        ({"doc_to_image": "image"}, "pictures or sound"),
        ({"use_prompt": "promptsource:x"}, "cannot be built"),
    ],
)
def test_tasks_that_cannot_be_had(tmp_path: Path, fields: Any, said: str, data: Path) -> None:
    found, missing = run(task_file(tmp_path, **fields), data=data)
    assert not found
    assert said in missing["doors"]


def test_own_questions(tmp_path: Path) -> None:
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text(
        '{"question": "Sky?", "choices": ["blue", "red"], "answer": "blue"}\n'
        '{"question": "Grass {{x}}?", "choices": ["pink", "green", "grey"], "answer": "B"}\n'
    )
    exact = tmp_path / "sums.csv"
    exact.write_text("question,answer\n7/2?,3.5\nCapital of France?,Paris\n-5+0?,-5\n")
    lm = StubLM([" 3.5.\n", "PARIS", "5"])
    found, missing = run(quiz, exact, lm=lm)
    assert not missing
    assert set(found) == {"quiz.jsonl acc", "quiz.jsonl acc_norm", "sums.csv exact_match"}
    asked = [each for sample in found["quiz.jsonl acc"].samples for each in sample["arguments"]]
    assert asked == [
        ("Question: Sky?\nAnswer:", " blue"),
        ("Question: Sky?\nAnswer:", " red"),
        *[("Question: Grass {{x}}?\nAnswer:", f" {each}") for each in ("pink", "green", "grey")],
    ]
    assert found["quiz.jsonl acc"].chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["sums.csv exact_match"].values == (1.0, 1.0, 0.0)
    assert found["sums.csv exact_match"].harness.startswith("llamita ")


def test_own_questions_with_several_answers_and_examples(tmp_path: Path) -> None:
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text(
        "".join(
            json.dumps({"question": f"q{each}", "answer": [f"a{each}", f"b{each}"]}) + "\n"
            for each in range(4)
        )
    )
    found, _ = run(quiz, lm=StubLM([" b0", "a1 ", "a0", "x"]), num_fewshot=2)
    [score] = found.values()
    assert score.values == (1.0, 1.0, 0.0, 0.0)
    for number, sample in enumerate(score.samples):
        prompt = sample["arguments"][0][0]
        assert prompt.count("Question: ") == 3
        assert prompt.count(f"Question: q{number}\n") == 1  # never the question itself
        assert f"a{number}" not in prompt


# -- how it is asked -------------------------------------------------------------------------------


def test_limits(data: Path) -> None:
    found, _ = run("hellaswag", data=data, limit=2)
    assert (len(found["hellaswag acc"].values), found["hellaswag acc"].available) == (2, 3)
    found, _ = run("hellaswag", data=data, limit=0.5)  # lm-eval rounds up
    assert len(found["hellaswag acc"].values) == 2
    for wrong in (0, -1, 2.5):
        with pytest.raises(UserError, match="a limit of"):
            run("hellaswag", data=data, limit=wrong)


def test_gen_kwargs(data: Path) -> None:
    lm = StubLM()
    run("gsm8k", lm=lm, data=data, gen_kwargs={"max_gen_toks": 7})
    assert {each[1]["max_gen_toks"] for each in lm.asked} == {7}
    assert all("Question:" in each[1]["until"] for each in lm.asked)


def test_a_task_that_says_it_is_zero_shot_stays_so(tmp_path: Path, data: Path) -> None:
    """As in lm-eval, whose config of 0 no --num-fewshot overrides."""
    found, _ = run(task_file(tmp_path, num_fewshot=0), data=data, num_fewshot=1)
    assert found["doors acc"].num_fewshot == 0
    assert found["doors acc"].samples[0]["arguments"][0][0] == "Keep soup warm."


def test_a_task_wanted_twice(data: Path) -> None:
    with pytest.raises(UserError, match="is wanted by mmlu and by mmlu_anatomy"):
        run("mmlu", "mmlu_anatomy", data=data)


@pytest.mark.slow
def test_names_that_need_the_whole_index(data: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'hellaswag'"):
        run("helaswag", data=data)
    found, _ = run("mmlu_*_law", data=data)  # a pattern
    assert set(found) >= {"mmlu_international_law acc", "mmlu_professional_law acc"}
    found, _ = run("ai2_arc", data=data)  # a tag
    assert set(found) == {
        f"arc_{each} {how}" for each in ("easy", "challenge") for how in ("acc", "acc_norm")
    }
    assert {each.group for each in found.values()} == {None}


def test_progress_and_the_callers_randomness(data: Path) -> None:
    told: list[tuple[str, int, int]] = []
    random.seed(7)
    state = random.getstate()
    run("tinyllama", data=data, progress=lambda *each: told.append(each))
    assert random.getstate() == state
    assert [each[0] for each in told] == [t.name for t in resolve(["tinyllama"])]
    assert [each[1] for each in told] == [0, 3, 5, 7, 9, 11, 13]
    assert {each[2] for each in told} == {15}


def test_a_metric_that_a_task_lacks(data: Path) -> None:
    wanted = replace(WANTED["piqa"], metrics=("acc", "bleu"))
    scores, missing = run_tasks(StubLM(), [wanted], data=data, hub=False)
    assert [each.metric for each in scores] == ["acc"]
    assert missing[0].task == "piqa (bleu)"
    assert "acc, acc_norm" in missing[0].why


def test_an_error_of_the_model_is_no_missing_task(data: Path) -> None:
    class Broken(StubLM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run("piqa", lm=Broken(), data=data)
