"""Benchmarks while a run goes on: what they say, what they leave alone, and what they may cost."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'llamita[eval]'")

import llamita
from llamita.errors import UserError
from llamita.evaluation.quick_suite import QuickSuite
from llamita.planning.check import check_run
from llamita.recipes.quick_evaluation import QuickEvaluation
from llamita.reporting.events import read_events
from llamita.reporting.panel_state import RunState
from llamita.reporting.report import write_report
from llamita.reporting.report_figures import Level, figures
from llamita.reporting.report_records import read_run
from llamita.reporting.sinks import scalars
from llamita.training import preparation, quick_evaluation
from llamita.training.parallelism import World
from llamita.training.quick_evaluation import Evaluator, describe_scores
from llamita.training.run import RunInterrupted, train
from llamita.training.telemetry import EventLog
from tests.evaluation.lm_eval_helpers import lay_out, leaves_of
from tests.training.helpers import assert_same_checkpoint, quiet, tiny_recipe, trained
from tests.training.test_parallelism import torchrun


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("benchmarks"), leaves_of("tinyllama", "mmlu_anatomy"))


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quiz") / "quiz.jsonl"
    rows = [
        {"question": f"{n} or {n + 1}?", "choices": [str(n), str(n + 1)], "answer": "AB"[n % 2]}
        for n in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asking(quiz: Path, **changes: Any) -> dict[str, Any]:
    return {"tasks": [str(quiz)], "every_steps": 4, "max_share": 1.0, **changes}


def of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == kind]


def test_scores_are_those_of_eval_and_the_run_is_as_without(
    tiny_data: Path, tmp_path: Path, benchmarks: Path, quiz: Path, reference: Path
) -> None:
    tasks = ["tinyllama", "mmlu_anatomy", str(quiz)]
    settings = {"tasks": tasks, "every_steps": 5, "limit": 4, "max_share": 1.0}
    settings |= {"data": str(benchmarks), "offline": True}
    run, said = tmp_path / "run", []
    trained(tiny_recipe(tiny_data, evaluation=settings), run, say=said.append)
    found = of(run, "evaluation")
    # Every 5 steps, and at the ends of both stages.
    assert [event["step"] for event in found] == [5, 8, 10, 12]
    assert all(event["seconds"] > 0 and 0 < event["share"] < 1 for event in found)
    assert_same_checkpoint(run / "step-12", reference / "step-12")

    wanted = llamita.evaluate(
        run / "final", tasks, limit=4, data=benchmarks, offline=True, dtype="float32",
        cache=False, say=quiet,
    )  # fmt: skip
    told = {(each["task"], each["metric"]): each for each in found[-1]["scores"]}
    assert list(told) == [(each.task, each.metric) for each in wanted.shown]
    for score in wanted.shown:
        each = told[score.task, score.metric]
        ours = (each["value"], each["low"], each["high"], each["chance"], each["items"])
        estimate = score.estimate
        assert ours == (
            estimate.value, estimate.low, estimate.high, score.chance, len(score.values)
        )  # fmt: skip
    assert max(each["items"] for each in told.values()) == 4
    assert any(
        line.startswith("step 12: quiz.jsonl ") and "of 4 items" in line and " to " in line
        for line in said
    )


def test_scores_move_with_the_weights(
    tiny_data: Path, tmp_path: Path, quiz: Path, reference: Path
) -> None:
    """Asked again of the same model the answers are the same; of another they are not."""
    from llamita.data.tokenizer import load_tokenizer
    from llamita.model.huggingface import load_model

    tokenizer = load_tokenizer(reference / "final")
    model = load_model(reference / "final")
    suite = QuickSuite(QuickEvaluation(**asking(quiz)), model, tokenizer, 64)

    def answers() -> list[Any]:
        suite.ask()
        return [each.resps for each in suite._instances()]

    before = [list(each) for each in answers()]
    assert [list(each) for each in answers()] == before
    other = load_model(reference / "step-8")
    model.load_state_dict(other.state_dict())
    assert [list(each) for each in answers()] != before


def test_before_the_first_step_of_a_tuned_model(
    tiny_data: Path, tmp_path: Path, quiz: Path, reference: Path
) -> None:
    recipe = tiny_recipe(
        tiny_data,
        model=None,
        start_from=str(reference / "final"),
        adapter={"rank": 2},
        evaluation=asking(quiz, every_steps=None),
    )
    trained(recipe, tmp_path / "run")
    assert [event["step"] for event in of(tmp_path / "run", "evaluation")] == [0, 8, 12]


def test_what_writes_texts_is_left_out(tiny_data: Path, tmp_path: Path, quiz: Path) -> None:
    written = tmp_path / "written.jsonl"
    written.write_text(json.dumps({"question": "Two and two?", "answer": "four"}) + "\n")
    tasks = [str(quiz), str(written), "humaneval"]
    said: list[str] = []
    recipe = tiny_recipe(tiny_data, evaluation=asking(quiz, tasks=tasks))
    trained(recipe, tmp_path / "run", say=said.append)
    warned = [line for line in said if "evaluation leaves out" in line]
    assert [line.split("leaves out ")[1].split(":")[0] for line in warned] == [
        "written.jsonl", "humaneval"
    ]  # fmt: skip
    assert all("llamita eval" in line for line in warned)
    scores = of(tmp_path / "run", "evaluation")[0]["scores"]
    assert {each["task"] for each in scores} == {"quiz.jsonl"}
    with pytest.raises(UserError, match="none of them can be asked while training"):
        trained(
            tiny_recipe(tiny_data, evaluation=asking(quiz, tasks=[str(written)])), tmp_path / "two"
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["no/such.jsonl"]}, "no/such.jsonl"),
        ({"tasks": ["hellaswag"], "offline": True}, "the hub is not asked"),
    ],
)
def test_what_cannot_be_asked_is_said_before_the_first_step(
    tiny_data: Path, tmp_path: Path, quiz: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        trained(tiny_recipe(tiny_data, evaluation=asking(quiz, **changes)), tmp_path / "run")
    assert not list((tmp_path / "run").glob("step-*"))


def test_without_lm_eval(
    tiny_data: Path, tmp_path: Path, quiz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "find_spec", lambda name: None)
    recipe = tiny_recipe(tiny_data, evaluation=asking(quiz))
    with pytest.raises(UserError, match=r"pip install 'llamita\[eval\]'"):
        train(recipe, out=tmp_path / "run", dry_run=True, say=quiet)
    trained(tiny_recipe(tiny_data), tmp_path / "run")  # who asks for none needs none


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": ["a", "a"]}, "each can be named once"),
        ({"tasks": ["a"], "limit": 0}, "limit"),
        ({"tasks": ["a"], "max_share": 0}, "max_share"),
        ({"tasks": ["a"], "max_share": 1.5}, "max_share"),
        ({"tasks": ["a"], "every": 3}, "every"),
    ],
)
def test_settings_that_cannot_be(tiny_data: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny_recipe(tiny_data, evaluation=settings)


# -- what it costs --------------------------------------------------------------------------------


class FakeTime:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class FakeSuite:
    """Takes ten seconds."""

    def __init__(self, clock: FakeTime) -> None:
        self._clock = clock

    def ask(self, stopping: Callable[[], bool]) -> dict[str, Any]:
        self._clock.now += 10
        return {"scores": [], "missing": {}, "counts": {}}

    def measure(self) -> tuple[Callable[[], object], float]:
        raise AssertionError


def evaluator(
    folder: Path, monkeypatch: pytest.MonkeyPatch, max_share: float
) -> tuple[Evaluator, FakeTime]:
    clock = FakeTime()
    monkeypatch.setattr(quick_evaluation, "time", clock)
    settings = QuickEvaluation(tasks=["any"], every_steps=1, max_share=max_share)
    log = EventLog(folder / "events.jsonl")
    return Evaluator(settings, FakeSuite(clock), World(0, 1), log, quiet, lambda: False), clock


@pytest.mark.parametrize("max_share", [0.02, 0.1, 0.5])
def test_no_more_than_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_share: float
) -> None:
    """A step takes 3 s and an evaluation 10 s: at every step evaluation would take 77%."""
    asked, clock = evaluator(tmp_path, monkeypatch, max_share)
    spent, made = [], 0
    for step in range(1, 2001):
        clock.now += 3
        before = clock.now
        asked.evaluate(step, whatever_it_costs=False)
        made += clock.now > before
        spent.append(10 * made / clock.now)
    # The first one, whose cost nobody knows, is made at once; soon the share is kept.
    assert made * 10 <= max_share * clock.now
    assert made * 10 > 0.95 * max_share * clock.now
    asked.events.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    kinds = [line["event"] for line in lines]
    assert kinds.count("evaluation") == made
    assert kinds.count("evaluation_left_out") == 2000 - made
    assert lines[-1]["share"] == pytest.approx(spent[-1], abs=1e-5)


def test_at_ends_whatever_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, clock = evaluator(tmp_path, monkeypatch, 0.01)
    for step in (1, 2):
        asked.evaluate(step, whatever_it_costs=True)
    assert clock.now == 20


def test_the_plan_counts_it(tiny_data: Path, tmp_path: Path, quiz: Path) -> None:
    run = tmp_path / "run"
    said: list[str] = []
    trained(tiny_recipe(tiny_data, evaluation=asking(quiz)), run, say=said.append)
    (planned,) = of(run, "forecast")
    # At steps 4, 8 (a stage's end too) and 12.
    assert planned["parts"]["evaluation"]["count"] == 3 == len(of(run, "evaluation"))
    assert planned["parts"]["evaluation"]["seconds"] > 0
    assert of(run, "probe")[0]["evaluation_seconds"] > 0
    assert any("and evaluation" in line for line in said if line.startswith("  time"))
    rows = {row.what.strip(): row for row in check_run(run).rows}
    row = rows["in evaluation"]
    spent = sum(event["seconds"] for event in of(run, "evaluation"))
    assert row.achieved == pytest.approx(spent, rel=0.5, abs=0.05)


def test_the_plan_keeps_to_the_share(tiny_data: Path, tmp_path: Path, quiz: Path) -> None:
    """Steps take milliseconds: at one thousandth of the time only the ends are planned."""
    settings = asking(quiz, every_steps=1, max_share=0.001)
    trained(tiny_recipe(tiny_data, evaluation=settings), tmp_path / "run")
    (planned,) = of(tmp_path / "run", "forecast")
    assert planned["parts"]["evaluation"]["count"] == 2
    left_out = of(tmp_path / "run", "evaluation_left_out")
    # Whatever the first cost it was asked; from then on only at ends.
    assert [event["step"] for event in of(tmp_path / "run", "evaluation")] == [1, 8, 12]
    assert [event["step"] for event in left_out] == [2, 3, 4, 5, 6, 7, 9, 10, 11]


def test_a_dry_run_says_it(tiny_data: Path, quiz: Path) -> None:
    said: list[str] = []
    train(tiny_recipe(tiny_data, evaluation=asking(quiz)), dry_run=True, say=said.append)
    (line,) = [line for line in said if line.startswith("  evaluation")]
    assert "100 items of each task" in line
    assert "every 4 steps" in line


# -- where it is shown ----------------------------------------------------------------------------


def test_report_card_and_sinks(
    tiny_data: Path, tmp_path: Path, quiz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    trained(tiny_recipe(tiny_data, evaluation=asking(quiz, every_steps=5)), run)
    told = of(run, "evaluation")[-1]["scores"]
    (acc,) = [each for each in told if each["metric"] == "acc"]

    page = write_report(run).read_text("utf-8")
    assert '<section id="benchmarks">' in page
    assert "quiz.jsonl acc" in page
    assert f"{acc['value']:.1%}" in page
    assert "4 evaluations in " in page  # at steps 5, 8, 10 and 12
    record = read_run(run)
    shown = {each.title: each for each in figures([record])}
    drawn = shown["quiz.jsonl acc"]
    assert (drawn.unit, drawn.levels) == ("share", [Level(0.5, "chance")])
    assert record.evaluation.columns["step"] == [5, 8, 10, 12]
    assert record.evaluation.columns["value/quiz.jsonl acc"][-1] == acc["value"]

    card = (run / "final/README.md").read_text("utf-8")
    assert "Of benchmarks, asked by the run itself while it trained:" in card
    (row,) = [line for line in card.splitlines() if line.startswith("| quiz.jsonl | acc |")]
    assert f"{acc['low']:.4f} to {acc['high']:.4f}" in row
    assert "its first 9 items, 0-shot" in row
    assert str(quiz.parent) not in card  # a path of this machine is nobody else's
    assert "- quiz.jsonl" in card
    index = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    (result,) = [each for each in index if each["dataset"]["name"] == "quiz.jsonl"]
    assert {"type": "acc", "name": "acc", "value": acc["value"]} in result["metrics"]

    event = of(run, "evaluation")[-1]
    assert scalars(event)["evaluation/acc/quiz.jsonl"] == acc["value"]
    state = RunState()
    for each in read_events(run):
        state.observe(each)
    assert f"quiz.jsonl acc {acc['value']:.1%}" in state.scores


def test_one_document_has_no_interval(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "A dog and a cat."}) + "\n")
    task = {
        "task": "one_text",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "text.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    file = tmp_path / "one_text.yaml"
    file.write_text(yaml.safe_dump(task))
    run = tmp_path / "run"
    trained(tiny_recipe(tiny_data, evaluation={"tasks": [str(file)]}), run)
    (score,) = of(run, "evaluation")[-1]["scores"]
    assert (score["task"], score["low"], score["high"]) == ("one_text", "-inf", "inf")
    card = (run / "final/README.md").read_text("utf-8")
    assert "none computed" in next(line for line in card.splitlines() if "| one\\_text |" in line)
    assert "one_text bits_per_byte" in write_report(run).read_text("utf-8")


def test_a_report_of_scores_left_out(tiny_data: Path, tmp_path: Path, quiz: Path) -> None:
    settings = asking(quiz, every_steps=1, max_share=0.001)
    trained(tiny_recipe(tiny_data, evaluation=settings), tmp_path / "run")
    page = write_report(tmp_path / "run").read_text("utf-8")
    assert "9 more were due and left out" in page


# -- stopping and sharing -------------------------------------------------------------------------


def test_ctrl_c_is_not_kept_waiting(
    tiny_data: Path, tmp_path: Path, quiz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while answers are computed: they are dropped, and the run saves and ends."""
    ask, calls = QuickSuite.ask, itertools.count(1)

    def interrupted(self: QuickSuite, stopping: Callable[[], bool] = lambda: False) -> Any:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return ask(self, stopping)

    monkeypatch.setattr(QuickSuite, "ask", interrupted)
    recipe = tiny_recipe(tiny_data, evaluation=asking(quiz))
    said: list[str] = []
    with pytest.raises(RunInterrupted, match="step 5"):
        trained(recipe, tmp_path / "run", say=said.append)
    assert "step 4: the evaluation was stopped" in said
    assert not of(tmp_path / "run", "evaluation")
    trained(recipe, tmp_path / "run")
    assert [event["step"] for event in of(tmp_path / "run", "evaluation")] == [8, 12]


@pytest.mark.slow
def test_two_processes_ask_together(tiny_data: Path, tmp_path: Path, quiz: Path) -> None:
    settings = asking(quiz, every_steps=6)
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    trained(tiny_recipe(tiny_data, evaluation=settings), one)
    torchrun(tiny_recipe(tiny_data, evaluation=settings), two / "run")
    ours, theirs = (
        [(event["step"], event["scores"]) for event in of(run, "evaluation")]
        for run in (two / "run", one)
    )
    assert [step for step, _ in ours] == [6, 8, 12]
    assert ours == theirs


def test_the_model_is_left_as_it_was(
    tiny_data: Path, tmp_path: Path, quiz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, and asked in evaluation: dropout would make scores random."""
    seen: list[bool] = []
    ask = QuickSuite.ask

    def watched(self: QuickSuite, *arguments: Any) -> Any:
        hook = self._lm.model.register_forward_pre_hook(
            lambda module, *_: seen.append(module.training)
        )
        before = self._lm.model.training
        found = ask(self, *arguments)
        hook.remove()
        assert self._lm.model.training is before is True
        return found

    monkeypatch.setattr(QuickSuite, "ask", watched)
    trained(tiny_recipe(tiny_data, evaluation=asking(quiz)), tmp_path / "run")
    assert seen
    assert not any(seen)


def test_lines() -> None:
    score = {
        "task": "piqa", "metric": "acc", "value": 0.55, "low": 0.45, "high": 0.645, "items": 100,
        "is_share": True, "chance": 0.5, "not_above_chance": True,
    }  # fmt: skip
    bits = {
        "task": "wikitext", "metric": "bits_per_byte", "value": 1.25, "low": 1.0, "high": "inf",
        "items": 1, "is_share": False, "chance": None, "not_above_chance": None,
    }  # fmt: skip
    assert describe_scores([score, bits]) == [
        "piqa acc 55.0% (45.0% to 64.5%) of 100 items, not above chance (50.0%)",
        "wikitext bits_per_byte 1.2500 (1.0000 to inf) of 1 item",
    ]
