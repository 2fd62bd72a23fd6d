"""`llamita eval` from beginning to end, on small random models and a few items of each dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'llamita[eval]'")

from typer.testing import CliRunner

import llamita
from llamita.cli import app
from llamita.data.build import build_data
from llamita.errors import UserError
from llamita.evaluation import harness
from llamita.evaluation.opening import open_model
from llamita.evaluation.results import Evaluation, load_evaluation
from tests.data.corpus import small_tokenizer, write_records
from tests.evaluation.lm_eval_helpers import FIXTURES, lay_out, leaves_of
from tests.evaluation.tiny_models import write_tiny_model

HELLASWAG = FIXTURES / "hellaswag/validation.jsonl"
TEXTS = ("A man is standing on a ladder.", "He is cleaning the window with a cloth.", "Ünïcödé.")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", "byte-level", longest=512)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "other"
    return write_tiny_model(folder, "metaspace with BOS", longest=512, seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("data"), leaves_of("tinyllama"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_suite_and_a_text(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "texts.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in TEXTS))
    said: list[str] = []

    def evaluated() -> Evaluation:
        return llamita.evaluate(
            model, ["tinyllama"], text=[text], data=data, out=tmp_path / "out", offline=True,
            say=said.append,
        )  # fmt: skip

    first = evaluated()
    assert not first.missing
    assert [each.task for each in first.scores] == [
        "texts.jsonl", "texts.jsonl", "hellaswag", "openbookqa", "winogrande", "arc_challenge",
        "arc_easy", "boolq", "piqa",
    ]  # fmt: skip
    assert first.scores[0].weights == tuple(float(len(each.encode())) for each in TEXTS)
    assert {each.metric for each in first.scores[2:]} == {"acc_norm", "acc"}
    saved = load_evaluation(tmp_path / "out/tiny")
    assert [(each.task, each.metric, each.values) for each in saved.scores] == [
        (each.task, each.metric, each.values) for each in first.scores
    ]
    assert saved.fingerprint == first.fingerprint
    assert saved.versions["lm_eval"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(harness, "score_continuations", refuse)
    assert [each.values for each in evaluated().scores] == [each.values for each in first.scores]
    assert any("are kept from before" in line for line in said)
    with pytest.raises(AssertionError, match="asked again"):
        llamita.evaluate(
            model, ["hellaswag"], data=data, offline=True, cache=False, say=said.append
        )


def test_an_answer_belongs_to_the_weights(model: Path, data: Path, tmp_path: Path) -> None:
    """A model trained further, and called the same, is asked anew."""
    again = write_tiny_model(tmp_path / "tiny", "byte-level", longest=512, seed=2)
    named = {"data": data, "offline": True, "say": lambda line: None}
    first = llamita.evaluate(model, ["hellaswag"], **named)
    second = llamita.evaluate(again, ["hellaswag"], **named)
    assert first.model == second.model == "tiny"
    assert first.fingerprint != second.fingerprint
    asked = [[sample["resps"] for sample in each.scores[0].samples] for each in (first, second)]
    assert asked[0] != asked[1]


def test_items_that_were_trained_on(model: Path, data: Path, tmp_path: Path) -> None:
    items = [json.loads(line) for line in HELLASWAG.read_text().splitlines()]
    leaked = items[0]
    ending = leaked["endings"][int(leaked["label"])]
    planted = f"{leaked['ctx_a'].upper()}  {leaked['ctx_b']} {ending}"
    records = write_records(
        tmp_path / "prose.jsonl", [{"text": "Nothing of the kind."}, {"text": planted}]
    )
    build_data([records], tmp_path / "prose", small_tokenizer(), validation=0, num_workers=0)
    found = llamita.evaluate(
        model, ["hellaswag"], data=data, offline=True, trained_on=[tmp_path / "prose"],
        say=lambda line: None,
    )  # fmt: skip
    for score in found.scores:
        assert score.contaminated == {score.ids[0]}
        assert score.clean is not None
        assert score.clean.values == score.values[1:]


def test_the_command_and_a_comparison(
    model: Path, other: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    for each in (model, other):
        done = run.invoke(
            app, ["eval", str(each), "--suite", "tinyllama", "--data", str(data), "--offline"]
        )
        assert done.exit_code == 0, done.output
    assert "TinyLlama 3T" in done.stdout
    assert "not above chance" in done.stdout
    compared = run.invoke(
        app,
        ["eval", "--compare", "evaluations/tiny", "evaluations/other", "--html", "page.html"],
    )
    assert compared.exit_code == 0, compared.output
    assert "other beside tiny:" in compared.stdout
    page = (tmp_path / "page.html").read_text()
    assert "hellaswag" in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_writes_is_named_with_its_weights(model: Path, tmp_path: Path) -> None:
    opened = open_model(model, device="cpu")
    assert (opened.writer("torch"), opened.writer("llama.cpp")) == ("torch", "llama.cpp (q8_0)")
    file = tmp_path / "model.gguf"
    file.touch()
    assert replace(opened, model=file).writer("llama.cpp") == "llama.cpp"  # as the file is


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to measure: name suites or tasks"),
        (["--suite", "tinylama"], "there is no suite 'tinylama'"),
        (["--task", "nothing.jsonl"], "there is no file nothing.jsonl"),
        (["--task", "hellaswag", "--engine", "vllm"], "engine 'vllm': there is torch, llama.cpp"),
        (["--task", "hellaswag", "--dtype", "fp8"], "dtype 'fp8'"),
        (["--task", "hellaswag", "--limit", "0"], "a limit of 0 items cannot be"),
        (["--task", "hellaswag", "--gen", "max_gen_toks"], "write KEY=VALUE"),
        (["--task", "hellaswag", "--trained-on", "nowhere"], "nowhere is neither a run"),
        (["--task", "hellaswag", "--overlap", "2"], "threshold 2"),
        (["--task", "hellaswag", "--stride", "8"], "it is of text, and none is named"),
        (["--task", "humaneval", "--temperature", "0.5"], "one is greedy"),
        (["--text", "nowhere"], "nowhere"),
        (["--task", "hellaswag", "--every-checkpoint"], "holds no checkpoint"),
        (["--task", "hellaswag", "--beside", "nowhere"], "there is no nowhere"),
        (["second", "--task", "hellaswag"], "2 models: evaluate one after the other"),
    ],
)
def test_what_is_refused(
    model: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a model is loaded, but for what only the model can say."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded for it")

    monkeypatch.setattr("llamita.evaluation.opening.load_model", refuse)
    done = CliRunner().invoke(app, ["eval", str(model), *arguments])
    assert done.exit_code != 0
    told = str(done.exception) if isinstance(done.exception, UserError) else done.output
    assert said in told


def test_what_is_missing_is_said_and_the_rest_runs(model: Path, data: Path) -> None:
    found = llamita.evaluate(
        model, ["hellaswag", "gsm8k"], data=data, offline=True, say=lambda line: None
    )
    assert {each.task for each in found.scores} == {"hellaswag"}
    assert [each.task for each in found.missing] == ["gsm8k"]
    assert "gsm8k" in found.missing[0].why


def test_an_interrupted_one_says_how_to_go_on(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "score_continuations", interrupted)
    command = ["eval", str(model), "--task", "hellaswag", "--data", str(data), "--offline"]
    monkeypatch.setattr("sys.argv", ["llamita", *command])
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130
    assert "the answers so far are kept. Go on with: llamita eval" in done.output
    done = CliRunner().invoke(app, [*command, "--no-cache"])
    assert "nothing is kept" in done.output


def test_a_folder_of_texts_is_one_score_by_document(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "held-out"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    (folder / "more.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in TEXTS))
    found = llamita.evaluate(model, text=[folder], say=lambda line: None)
    bits = {each.task: each for each in found.scores if each.metric == "bits_per_byte"}
    assert list(bits) == ["more.jsonl", "held-out/"]
    assert len(bits["held-out/"].values) == 6
    assert bits["held-out/"].estimate.value == pytest.approx(bits["more.jsonl"].estimate.value)
    assert bits["held-out/"].estimate.low < bits["held-out/"].estimate.high < float("inf")
